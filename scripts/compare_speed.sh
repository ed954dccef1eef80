#!/usr/bin/env bash
# tinymoe beside PyTorch on the same machine: sets up a Python environment from package names, then alternates the two
# ROUNDS times (default 5) on each workload and prints medians, spread and ratios. Nothing else should run meanwhile.
# THREADS sets the threads of both (default: all).
# Usage: scripts/compare_speed.sh [WORKLOAD...]     (default: w1 w2 w3 w4)
set -euo pipefail
cd "$(dirname "$0")/.."

rounds=${ROUNDS:-5}
threads=${THREADS:-$(nproc)}
environment=${ENVIRONMENT:-target/peers}
workloads=("$@")
[[ ${#workloads[@]} -gt 0 ]] || workloads=(w1 w2 w3 w4)

if [[ ! -x $environment/bin/python ]]; then
    python3 -m venv "$environment"
    "$environment/bin/pip" install --quiet torch transformers numpy
fi
cargo build --release --quiet
results=$(mktemp)
trap 'rm -f "$results"' EXIT

for ((round = 1; round <= rounds; round++)); do
    for workload in "${workloads[@]}"; do
        target/release/tinymoe bench --threads "$threads" --json --config "configs/bench/$workload.toml" |
            python3 -c '
import json, sys
outer = json.load(sys.stdin)["workloads"][0]
report = outer["report"]
common = {"workload": report["name"], "implementation": "tinymoe", "peak_memory_mb": report["peak_memory_mb"]}
training = report["training"]
print(json.dumps({**common, "mode": "train", "tokens_per_s": training["tokens_per_s"], "share": training["share_of_peak"]}))
print(json.dumps({**common, "mode": "sample", "tokens_per_s": report["sampling"]["tokens_per_s"]}))' >> "$results"
        for implementation in loop grouped dense transformers; do
            "$environment/bin/python" scripts/peers.py "$workload" "$implementation" --threads "$threads" >> "$results"
        done
        "$environment/bin/python" scripts/peers.py "$workload" transformers --mode sample --threads "$threads" >> "$results"
        echo "round $round of $rounds: $workload" >&2
    done
done

echo "$threads threads, $rounds rounds, medians"
python3 - "$results" <<'PYTHON'
import collections, json, statistics, sys
rows = collections.defaultdict(list)
for line in open(sys.argv[1]):
    row = json.loads(line)
    rows[row["workload"], row["mode"], row["implementation"]].append(row)
print(f'{"workload":9}{"mode":8}{"implementation":16}{"tokens/s":>10}{"min":>9}{"max":>9}{"tinymoe is":>12}{"memory MB":>11}')
for (workload, mode, implementation), runs in rows.items():
    speeds = [run["tokens_per_s"] for run in runs]
    ours = [run["tokens_per_s"] for run in rows[workload, mode, "tinymoe"]]
    # Round by round, because the machine's speed drifts.
    ratio = statistics.median(a / b for a, b in zip(ours, speeds))
    memory = max(run["peak_memory_mb"] for run in runs)
    note = f'{ratio:.2f}x' if implementation != "tinymoe" else ""
    if "share" in runs[0]:
        note = f'{100 * statistics.median(run["share"] for run in runs):.0f}% peak'
    print(f'{workload:9}{mode:8}{implementation:16}{statistics.median(speeds):10,.0f}{min(speeds):9,.0f}{max(speeds):9,.0f}{note:>12}{memory:11,}')
PYTHON
