#!/usr/bin/env bash
# Does a step cost what is active? At a fixed number of experts per token and a fixed width of an expert, times training
# steps of 4,096 tokens with 4 to 64 experts, and with 8 experts and 1,024 to 8,192 tokens. Alternates ROUNDS times
# (default 3) and prints medians beside the first row's. Takes about two minutes; nothing else should run meanwhile.
# Usage: scripts/scaling.sh
set -euo pipefail
cd "$(dirname "$0")/.."

rounds=${ROUNDS:-3}
cargo build --release --quiet
results=$(mktemp)
trap 'rm -f "$results"' EXIT
for ((round = 1; round <= rounds; round++)); do
    for shape in 4x16 8x16 16x16 32x16 64x16 8x4 8x8 8x32; do
        target/release/tinymoe bench --json --config configs/bench/w2.toml --set "model.num_experts=${shape%x*}" \
            --set "train.batch_size=${shape#*x}" --set model.max_position_embeddings=256 |
            python3 -c '
import json, sys
report = json.load(sys.stdin)["workloads"][0]["report"]
print(json.dumps([sys.argv[1], report["training"]["ms_per_step"], report["peak_memory_mb"], report["parameters"]]))' "$shape" >> "$results"
    done
done
python3 - "$results" <<'PYTHON'
import collections, json, statistics, sys
rows = collections.defaultdict(list)
for line in open(sys.argv[1]):
    shape, *figures = json.loads(line)
    rows[shape].append(figures)
print(f'{"experts":>8}{"tokens":>8}{"parameters":>12}{"ms per step":>11}{"us per token":>12}{"of 4 experts":>14}{"memory MB":>11}')
base = statistics.median(ms for ms, _, _ in rows["4x16"])
for shape, runs in rows.items():
    experts, batch = map(int, shape.split("x"))
    ms, tokens = statistics.median(run[0] for run in runs), batch * 256
    share = f"{ms / base:.2f}x" if batch == 16 else ""
    print(f'{experts:8}{tokens:8,}{runs[0][2]:12,}{ms:11.1f}{1e3 * ms / tokens:12.1f}{share:>14}{runs[0][1]:11,}')
PYTHON
