#!/usr/bin/env bash
# Peak memory of the program, which must not depend on the size of the corpus or the number of steps. Trains the
# quickstart (20 steps), a corpus of SIZE bytes (1 GB by default) that it makes from data/ by shuffling its lines, and
# a tiny model for 10,000 steps, and prints a table of peak and, for the last, of memory on the way. Takes about ten
# minutes on 2 cores, most of it the tokenizer on 1 GB, and twice SIZE of disk below TMPDIR (/var/tmp by default).
# Usage: scripts/memory_check.sh [SIZE in MB]
set -euo pipefail
cd "$(dirname "$0")/.."

# Each run is to do all the work.
export TINYMOE_CACHE=off
megabytes=${1:-1000}
cargo build --release --quiet
program=$PWD/target/release/tinymoe
folder=$(mktemp -d -p "${TMPDIR:-/var/tmp}")
trap 'rm -rf "$folder"' EXIT

# Runs a training in the background; prints its highest resident memory, in MB, and the seconds it took. What it holds
# at the steps given as AT is appended to $folder/growth.
measure() {
    local run=$1 at=${AT:-} start=$SECONDS peak=0 pid
    shift
    "$program" -q train "$@" --run "$run" > /dev/null &
    pid=$!
    while kill -0 "$pid" 2> /dev/null; do
        peak=$(awk '/VmHWM/ {print $2}' "/proc/$pid/status" 2> /dev/null || true)
        [ -n "$peak" ] && echo "$peak" > "$folder/peak"
        if [ -n "$at" ] && [ -e "$run/metrics.jsonl" ]; then
            step=$(tail -1 "$run/metrics.jsonl" | grep -oE '"step":[0-9]+' | cut -d: -f2 || true)
            if [ -n "$step" ] && [ "$step" -ge "${at%% *}" ]; then
                echo "    step $step: $(awk '/VmRSS/ {print int($2 / 1024)}' "/proc/$pid/status") MB" >> "$folder/growth"
                case $at in *' '*) at=${at#* } ;; *) at= ;; esac
            fi
        fi
        sleep 0.1
    done
    wait "$pid"
    echo "$(($(cat "$folder/peak") / 1024)) MB peak, $((SECONDS - start)) s"
}

echo "quickstart, 20 steps: $(measure "$folder/quickstart" configs/quickstart.toml --set train.max_steps=20 \
    --set optimizer.warmup_steps=5)"

python3 - "$folder/corpus.txt" "$megabytes" <<'PYTHON'
import pathlib, random, sys
lines = [line + "\n" for path in sorted(pathlib.Path("data").rglob("*")) if path.is_file()
         for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
words = [word for line in lines for word in line.split()]
rng, left = random.Random(1), int(sys.argv[2]) * 10**6
with open(sys.argv[1], "w", encoding="utf-8") as out:
    while left > 0:
        # Half the lines as they are, half made of random words: repeated, but varied.
        block = "".join(rng.choice(lines) if rng.random() < 0.5 else " ".join(rng.choices(words, k=12)) + "\n"
                        for _ in range(10000))
        out.write(block)
        left -= len(block.encode())
PYTHON
echo "a text of $megabytes MB, 20 steps: $(measure "$folder/large" configs/quickstart.toml \
    --set "data.sources=[\"$folder/corpus.txt\"]" --set data.validation_fraction=0.001 --set train.max_steps=20 \
    --set optimizer.warmup_steps=5)"

echo "a tiny model, 10,000 steps: $(AT="1000 3000 5000 7000 9000" measure "$folder/long" configs/quickstart.toml \
    --set model.hidden_size=16 --set model.num_hidden_layers=2 --set model.num_attention_heads=2 \
    --set model.moe_intermediate_size=16 --set model.max_position_embeddings=16 --set train.batch_size=4 \
    --set train.max_steps=10000 --set train.eval_interval=2500 --set train.checkpoint_interval=500)"
cat "$folder/growth"
