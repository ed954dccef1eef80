#!/usr/bin/env bash
# Fuzzes every reader of files from elsewhere (configurations, tokenizers, checkpoints, models of transformers,
# transcripts, routing logs) and the round trip through GGUF. Usage: scripts/fuzz.sh [SECONDS for each target, 600 by
# default] [TARGET...]. Needs cargo-fuzz (cargo install cargo-fuzz), works with the stable compiler, and builds for five
# minutes at first. Prints a table of runs, coverage and findings; inputs that crash a target, take it 20 seconds or
# 2 GB stay in tests/fuzz/artifacts. Exit code 1 if there is one.
set -euo pipefail
cd "$(dirname "$0")/.."

seconds=${1:-600}
shift || true
targets=("$@")
[ ${#targets[@]} -gt 0 ] || targets=(config tokenizer checkpoint foreign gguf transcript routing_log)
command -v cargo-fuzz > /dev/null || { echo "cargo-fuzz is needed: cargo install cargo-fuzz" >&2; exit 1; }

TINYMOE_FUZZ_CORPUS=$PWD/tests/fuzz/corpus cargo test --release --quiet --test hostile no_file > /dev/null
# Coverage instrumentation is unstable. The address sanitizer is left out, since no unsafe code reads files; that is for
# scripts/sanitize.sh. Debug assertions and overflow checks are on.
export RUSTC_BOOTSTRAP=1
fuzz() { cargo fuzz "$1" --fuzz-dir tests/fuzz --target-dir target/fuzz --sanitizer none "${@:2}"; }
fuzz build
found=0
printf '%-12s %10s %8s %10s %s\n' target runs seconds coverage findings
for target in "${targets[@]}"; do
    log=$(mktemp)
    verdict=none
    fuzz run "$target" -- -max_total_time="$seconds" -timeout=20 -rss_limit_mb=2048 -max_len=65536 2> "$log" \
        || { verdict=$(grep -m1 -E 'panicked at|ERROR: libFuzzer' "$log" || tail -1 "$log"); found=1; }
    runs=$(grep -oE '^#[0-9]+' "$log" | tail -1 | tr -d '#')
    coverage=$(grep -oE 'cov: [0-9]+' "$log" | tail -1 | cut -d' ' -f2)
    printf '%-12s %10s %8s %10s %s\n' "$target" "${runs:-0}" "$seconds" "${coverage:-0}" "$verdict"
    rm -f "$log"
done
exit $found
