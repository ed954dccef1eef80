#!/usr/bin/env bash
# Runs the tests of all unsafe code, which stands in src/ops: under AddressSanitizer once for each instruction set that
# this CPU has, under ThreadSanitizer, and in Miri (pointers, aliasing, and the thread pool with threads that are
# interrupted anywhere) as if compiled for each instruction set, whatever this CPU has. Debug assertions are on. Usage:
# scripts/sanitize.sh [address|thread|miri]..., all by default. Needs a nightly compiler (rustup toolchain install
# nightly), for the last two also
# `rustup +nightly component add rust-src miri`. Compiles the kernels alone (tests/kernels), a few minutes at first, into
# target/sanitize. WITH_GRADIENTS=1: also the gradient tests of the whole program under AddressSanitizer, which compiles
# candle. Leaks are not looked for: threads of the pool live as long as the program. Prints a table; exit code 1 if
# anything was found.
set -euo pipefail
cd "$(dirname "$0")/.."

checks=("$@")
[ ${#checks[@]} -gt 0 ] || checks=(address thread miri)
host=$(rustc -vV | sed -n 's/^host: //p')
cargo +nightly --version > /dev/null || { echo "a nightly compiler is needed: rustup toolchain install nightly" >&2; exit 1; }
export ASAN_OPTIONS=detect_leaks=0 CARGO_TERM_QUIET=true
kernels=(--release --manifest-path tests/kernels/Cargo.toml --lib)
paths=(portable)
if [ -r /proc/cpuinfo ]; then
    flags=$(grep -m1 '^flags' /proc/cpuinfo || true)
    [[ $flags != *" avx2 "* ]] || paths+=(avx2)
    [[ $flags != *" avx512vl "* ]] || paths+=(avx512)
fi

found=0
printf '%-8s %-9s %-10s %7s %8s %s\n' check path tests passed seconds findings
# run CHECK PATH TESTS COMMAND...
run() {
    local log started=$SECONDS verdict=none passed
    log=$(mktemp)
    "${@:4}" > "$log" 2>&1 || {
        verdict=$(grep -m1 -E 'ERROR: AddressSanitizer|WARNING: ThreadSanitizer|Undefined Behavior|panicked at|^error' "$log" \
            || tail -1 "$log")
        found=1
    }
    passed=$(sed -nE 's/^test result: .* ([0-9]+) passed.*/\1/p' "$log" | tail -1)
    printf '%-8s %-9s %-10s %7s %8s %s\n' "$1" "$2" "$3" "${passed:-0}" $((SECONDS - started)) "$verdict"
    rm -f "$log"
}
for check in "${checks[@]}"; do
    target=target/sanitize/$check
    case $check in
    address)
        export RUSTFLAGS="-Zsanitizer=address -Cdebug-assertions"
        cargo +nightly test "${kernels[@]}" --target "$host" --target-dir "$target" --no-run
        for path in "${paths[@]}"; do
            run address "$path" ops env TINYMOE_SIMD="$path" \
                cargo +nightly test "${kernels[@]}" --target "$host" --target-dir "$target"
        done
        if [ -n "${WITH_GRADIENTS:-}" ]; then
            gradients=(--release --test gradients --target "$host" --target-dir target/sanitize/program)
            cargo +nightly test "${gradients[@]}" --no-run
            for path in "${paths[@]}"; do
                run address "$path" gradients env TINYMOE_SIMD="$path" cargo +nightly test "${gradients[@]}"
            done
        fi
        ;;
    thread)
        export RUSTFLAGS="-Zsanitizer=thread -Cdebug-assertions"
        # The standard library has to be compiled with it.
        run thread "${paths[-1]}" ops cargo +nightly test "${kernels[@]}" -Zbuild-std --target "$host" --target-dir "$target"
        ;;
    miri)
        # Workers of the pool live as long as the program. Some tests are smaller in Miri, and those of arithmetic alone
        # are left out, as is all that the gemm crate does on the portable path: it asks the CPU for its caches in
        # assembly, which Miri does not read. There is no bf16 arithmetic in Miri.
        export MIRIFLAGS="-Zmiri-disable-isolation -Zmiri-ignore-leaks -Zmiri-num-cpus=3"
        pool=(pool:: buffer:: views_side_by_side view_beyond matrix_times_vector sums_have max_finds a_row_with_nan)
        products=(gemm:: matmul::)
        for path in portable avx2 avx512; do
            tests=("${pool[@]}")
            case $path in
            portable) cpu=x86-64 ;;
            avx2) cpu=x86-64-v3 tests+=("${products[@]}") ;;
            avx512) cpu=x86-64-v4 tests+=("${products[@]}") ;;
            esac
            [[ $host == x86_64-* ]] || { [ $path = portable ] && cpu=generic || continue; }
            RUSTFLAGS="-Ctarget-cpu=$cpu" run miri "$path" ops env TINYMOE_SIMD="$path" \
                cargo +nightly miri test "${kernels[@]}" --target-dir "$target-$path" -- --test-threads=1 "${tests[@]}"
        done
        ;;
    *)
        echo "unknown check: $check" >&2
        exit 2
        ;;
    esac
done
[ $found = 0 ] && echo "nothing was found" || echo "something was found: see above"
exit $found
