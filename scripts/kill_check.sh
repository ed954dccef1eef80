#!/usr/bin/env bash
# Kills a training (SIGKILL) at random moments, resumes it, and compares its end with a run that nobody disturbed.
# Prints a table: kills, resumed sessions, checkpoint intervals lost at worst, temporary files left, and whether all
# bytes of the checkpoints agree. Exit code 1 if a run is lost or differs. About two minutes for 200 kills.
# Usage: scripts/kill_check.sh [KILLS, 200 by default] [SEED]
set -euo pipefail
cd "$(dirname "$0")/.."

kills=${1:-200}
RANDOM=${2:-1}
cargo build --release --quiet
program=$PWD/target/release/tinymoe
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

# Small steps and a checkpoint after every second one: a good part of the time is spent saving.
train=("$program" -q train configs/quickstart.toml --threads 1 --set tokenizer.kind=bytes --set tokenizer.vocab_size=0
    --set model.hidden_size=16 --set model.num_hidden_layers=2 --set model.num_attention_heads=2
    --set model.moe_intermediate_size=16 --set model.max_position_embeddings=32 --set train.batch_size=4
    --set train.checkpoint_interval=2 --set train.log_interval=1 --set train.eval_interval=50
    --set train.keep_checkpoints=2 --set train.sample_tokens=8 --set train.max_steps=100000
    --set optimizer.schedule=constant)

step_of() { # the last step in a run's metrics that was logged whole
    grep -oE '^\{"step":[0-9]+.*\}$' "$1/metrics.jsonl" 2> /dev/null | tail -1 | grep -oE '[0-9]+' | head -1 || true
}
latest() { # the newest checkpoint's step
    ls "$1/checkpoints" 2> /dev/null | grep -E '^step-[0-9]+$' | tail -1 | sed 's/step-0*//' || true
}

resumed=0 worst=0 left=0
for ((kill = 1; kill <= kills; kill++)); do
    if [ -e "$folder/killed/config.toml" ]; then mode=--resume; else mode=; rm -rf "$folder/killed"; fi
    "${train[@]}" --run "$folder/killed" $mode > /dev/null 2> "$folder/error" &
    pid=$!
    before=$(step_of "$folder/killed")
    sleep "0.$(printf '%03d' $((RANDOM % 600)))"
    if ! kill -9 "$pid" 2> /dev/null; then
        echo "session $kill ended by itself: $(cat "$folder/error")"
        exit 1
    fi
    wait "$pid" 2> /dev/null || true
    [ -z "$mode" ] || resumed=$((resumed + 1))
    logged=$(step_of "$folder/killed") saved=$(latest "$folder/killed")
    lost=$((${logged:-0} - ${saved:-0}))
    [ "$lost" -le "$worst" ] || worst=$lost
done
last=$(($(latest "$folder/killed") + 5))
"${train[@]}" --run "$folder/killed" --resume --steps "$last" > /dev/null
left=$(find "$folder/killed" -name '.*' ! -name .lock | wc -l)
"${train[@]}" --run "$folder/whole" --steps "$last" > /dev/null
verdict=identical
for file in model.safetensors optimizer.safetensors trainer_state.json; do
    cmp -s "$folder/killed/checkpoints/latest/$file" "$folder/whole/checkpoints/latest/$file" || verdict=DIFFERENT
done
printf '%-36s %s\n' kills "$kills" "sessions that resumed" "$resumed" "steps reached" "$last" \
    "steps lost at worst (interval: 2)" "$worst" "temporary files left" "$left" \
    "last checkpoint beside a whole run's" "$verdict"
[ "$verdict" = identical ] && [ "$left" = 0 ] && [ "$worst" -le 2 ]
