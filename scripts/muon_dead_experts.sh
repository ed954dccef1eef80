#!/usr/bin/env bash
# Trains with Muon for very long while most experts lie idle, under every balance rule: momenta decay through all of
# f32's magnitudes down to zero, and everything must stay finite. Prints, for each rule, how many experts got no token
# in the last fifth of the run, the smallest and the largest momentum of an expert's matrix at the end, and the loss.
# Exit code 1 if a run ends early or holds a number that is not finite. A few minutes on two cores.
# Usage: scripts/muon_dead_experts.sh [STEPS, 30000 by default]
set -euo pipefail
cd "$(dirname "$0")/.."

steps=${1:-30000}
cargo build --release --quiet
program=$PWD/target/release/tinymoe
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

# One window of 16 tokens a step, each with one of 128 experts: there are never tokens for all of them. The rules that
# balance are held back, so that they do not wake idle experts too soon.
train=("$program" -q train configs/quickstart.toml --set optimizer.kind=muon --set optimizer.schedule=constant
    --set tokenizer.kind=bytes --set model.hidden_size=16 --set model.num_hidden_layers=1
    --set model.num_attention_heads=2 --set model.max_position_embeddings=16 --set model.num_experts=128
    --set model.num_experts_per_tok=1 --set model.moe_intermediate_size=8 --set router.norm_topk_prob=false
    --set model.hidden_dropout=0 --set model.attention_dropout=0 --set train.batch_size=1
    --set train.max_steps="$steps" --set train.log_interval=50 --set train.eval_interval="$steps"
    --set train.checkpoint_interval=5000 --set train.sample_tokens=0 --set train.spike_window=0)
status=0
printf '%-28s %-14s %-26s %s\n' rule 'idle experts' 'momenta' 'validation loss'
for rule in none aux_loss bias; do
    case $rule in
        none) set=() ;;
        aux_loss) set=(--set router.router_aux_loss_coef=1e-4) ;;
        bias) set=(--set router.scoring_func=sigmoid --set router.bias_update_rate=1e-7) ;;
    esac
    run=$folder/$rule
    if ! "${train[@]}" --run "$run" --set router.balance=$rule "${set[@]}" > "$folder/out"; then
        echo "$rule: training ended early"
        status=1
        continue
    fi
    python3 - "$rule" "$run" "$steps" << 'P' || status=1
import array, json, math, struct, sys

rule, run, steps = sys.argv[1], sys.argv[2], int(sys.argv[3])
records = [json.loads(line) for line in open(f"{run}/metrics.jsonl")]
late = [r["expert_load"][0] for r in records if r["split"] == "train" and r["step"] > steps * 4 // 5]
idle = sum(not any(load) for load in zip(*late))
finite, sizes = True, []
for name in ("model", "optimizer"):
    with open(f"{run}/checkpoints/latest/{name}.safetensors", "rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
        data = array.array("f", file.read())
    for key, tensor in header.items():
        if key != "__metadata__":
            numbers = data[tensor["data_offsets"][0] // 4 : tensor["data_offsets"][1] // 4]
            finite &= all(map(math.isfinite, numbers))
            if key.startswith("exp_avg.") and ".experts." in key:
                sizes.append(max(map(abs, numbers)))
loss = records[-1]["loss"]
print(f"{rule:28} {idle:3} of {len(late[0]):<7} {min(sizes):.1e} to {max(sizes):<12.1e} {loss:.4f}")
sys.exit(not (finite and math.isfinite(loss)))
P
done
exit "$status"
