#!/usr/bin/env bash
# tinymoe beside PyTorch, transformers and llama.cpp on the same machine: sets up a Python environment from package names
# (llama.cpp is compiled: some minutes, once), then alternates all of them ROUNDS times (default 5) on each workload and
# prints medians, spread and ratios of medians, which go to docs/figures/speed.json too. Nothing else should run meanwhile; a round takes about two and a half minutes a
# workload, three and a half where the CPU multiplies bf16 numbers: elsewhere bf16 would be emulated, and is left out.
# THREADS sets the threads of all (default: all), LLAMA=0 leaves llama.cpp out.
# Usage: scripts/compare_speed.sh [WORKLOAD...]     (default: w1 w2 w3 w4)
set -euo pipefail
cd "$(dirname "$0")/.."

rounds=${ROUNDS:-5}
threads=${THREADS:-$(nproc)}
environment=${ENVIRONMENT:-target/peers}
llama=${LLAMA:-1}
workloads=("$@")
[[ ${#workloads[@]} -gt 0 ]] || workloads=(w1 w2 w3 w4)
precisions=()
if grep -qs avx512_bf16 /proc/cpuinfo; then precisions=(autocast bf16); fi
declare -A context=([w1]=32 [w2]=64 [w3]=256 [w4]=256)
# What of a run with random weights llama.cpp has to be told: its Qwen3 wants a QK-norm, and a vocabulary of byte pairs.
for_llama=(--set model.qk_norm=true --set tokenizer.kind=bpe --set train.sample_tokens=0 --set train.max_steps=1
    --set optimizer.warmup_steps=0)

if [[ ! -x $environment/bin/python ]]; then
    python3 -m venv "$environment"
    "$environment/bin/pip" install --quiet torch transformers numpy
fi
if [[ $llama = 1 ]]; then
    "${LLAMA_PYTHON:-$environment/bin/python}" -c 'import llama_cpp' 2> /dev/null || "$environment/bin/pip" install --quiet llama-cpp-python
fi
cargo build --release --quiet
files=$(mktemp -d)
trap 'rm -rf "$files"' EXIT
results=$files/results.jsonl

bench() { # WORKLOAD NAME ARGUMENTS...: a line for training and one for sampling
    target/release/tinymoe bench --threads "$threads" --json --config "configs/bench/$1.toml" "${@:3}" |
        python3 -c '
import json, sys
report = json.load(sys.stdin)["workloads"][0]["report"]
common = {"workload": report["name"], "implementation": sys.argv[1], "peak_memory_mb": report["peak_memory_mb"]}
training = report["training"]
print(json.dumps({**common, "mode": "train", "tokens_per_s": training["tokens_per_s"], "share": training["share_of_peak"]}))
print(json.dumps({**common, "mode": "sample", "tokens_per_s": report["sampling"]["tokens_per_s"]}))' "$2"
}

for workload in "${workloads[@]}"; do
    [[ $llama = 1 ]] || break
    vocabulary=4096
    [[ ${context[$workload]} -gt 64 ]] || vocabulary=320
    target/release/tinymoe --quiet train "configs/bench/$workload.toml" --run "$files/$workload" "${for_llama[@]}" \
        --set "tokenizer.vocab_size=$vocabulary"
    target/release/tinymoe --quiet export "$files/$workload" --to gguf "$files/$workload.gguf" --dtype f32
done
for ((round = 1; round <= rounds; round++)); do
    for workload in "${workloads[@]}"; do
        bench "$workload" tinymoe >> "$results"
        if [[ ${#precisions[@]} -gt 0 ]]; then
            bench "$workload" "tinymoe bf16" --set train.precision=bf16 | grep '"train"' >> "$results"
        fi
        for implementation in loop grouped dense transformers; do
            "$environment/bin/python" scripts/peers.py "$workload" "$implementation" --threads "$threads" >> "$results"
        done
        for precision in "${precisions[@]}"; do
            for implementation in loop grouped; do
                "$environment/bin/python" scripts/peers.py "$workload" "$implementation" --precision "$precision" \
                    --threads "$threads" >> "$results"
            done
        done
        "$environment/bin/python" scripts/peers.py "$workload" transformers --mode sample --threads "$threads" >> "$results"
        if [[ $llama = 1 ]]; then
            "${LLAMA_PYTHON:-$environment/bin/python}" scripts/llama_decode.py "$workload" "$files/$workload.gguf" \
                --context "${context[$workload]}" --threads "$threads" >> "$results"
        fi
        echo "round $round of $rounds: $workload" >&2
    done
done

echo "$threads threads, $rounds rounds, medians"
python3 - "$results" "$threads" "$rounds" <<'PYTHON'
import collections, json, pathlib, re, statistics, sys
results, threads, rounds = sys.argv[1:]
rows = collections.defaultdict(list)
for line in open(results):
    row = json.loads(line)
    rows[row["workload"].lower(), row["mode"], row["implementation"]].append(row)

home = pathlib.Path("docs/figures/speed.json")
figures = json.loads(home.read_text()) if home.exists() else {}
names = re.findall(r"model name\s*: (.*)", open("/proc/cpuinfo").read()) or ["unknown"]
for workload in {workload for workload, _, _ in rows}:
    figures[workload] = {"machine": f"{threads} cores, {names[0]}", "rounds": int(rounds), "command": "scripts/compare_speed.sh"}
for (workload, mode, implementation), runs in rows.items():
    speeds = [run["tokens_per_s"] for run in runs]
    figure = {"median": statistics.median(speeds), "min": min(speeds), "max": max(speeds)}
    figure["peak_memory_mb"] = max(run["peak_memory_mb"] for run in runs)
    if "share" in runs[0]:
        figure["share_of_peak"] = statistics.median(run["share"] for run in runs)
    figures[workload].setdefault(mode, {})[implementation.replace(" ", "_").replace(".", "_")] = figure
for workload in {workload for workload, _, _ in rows}:
    for mode in ("train", "sample"):
        measured = figures[workload].get(mode, {})
        for ours in ("tinymoe", "tinymoe_bf16"):
            for name, figure in measured.items():
                if ours in measured and not name.startswith("tinymoe"):
                    figure[f"{ours}_is"] = measured[ours]["median"] / figure["median"]
home.parent.mkdir(exist_ok=True)
home.write_text(json.dumps(figures, indent=1, sort_keys=True) + "\n")

print(f'{"workload":9}{"mode":8}{"implementation":18}{"tokens/s":>10}{"min":>9}{"max":>9}{"tinymoe is":>12}{"bf16 is":>9}{"memory MB":>11}')
for workload, mode, implementation in sorted(rows):
    figure = figures[workload][mode][implementation.replace(" ", "_").replace(".", "_")]
    notes = [f'{figure[key]:.2f}x' if key in figure else "" for key in ("tinymoe_is", "tinymoe_bf16_is")]
    if "share_of_peak" in figure:
        notes = [f'{100 * figure["share_of_peak"]:.0f}% peak', ""]
    print(f'{workload:9}{mode:8}{implementation:18}{figure["median"]:10,.0f}{figure["min"]:9,.0f}{figure["max"]:9,.0f}{notes[0]:>12}{notes[1]:>9}{figure["peak_memory_mb"]:11,}')

# The fastest mixture of experts in PyTorch, whatever it multiplies, beside ours: each at its best.
for workload in sorted({workload for workload, _, _ in rows}):
    train = figures[workload]["train"]
    mixtures = [name for name in train if name.split("_")[0] in ("loop", "grouped")]
    best = max(mixtures, key=lambda name: train[name]["median"])
    for ours in sorted(name for name in train if name.startswith("tinymoe")):
        print(f"{workload}: {ours} trains {train[best][f'{ours}_is']:.2f}x as fast as PyTorch at its best ({best})")
PYTHON
