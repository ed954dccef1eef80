#!/usr/bin/env bash
# The whole journey on the bundled transcripts: builds tinymoe, trains configs/quickstart.toml, continues a prompt with
# a log of every token's experts, and summarises what the routers do. Arguments go to `tinymoe train`, for example
# `--steps 20` for a short trial or `--run DIR` for another place than runs/quickstart.
set -euo pipefail
cd "$(dirname "$0")/.."

run=runs/quickstart
arguments=("$@")
for ((i = 0; i < ${#arguments[@]}; i++)); do
    case ${arguments[i]} in
        --run) run=${arguments[i + 1]} ;;
        --run=*) run=${arguments[i]#--run=} ;;
    esac
done

# Not quietly: the first build takes minutes.
cargo build --release
# Through cargo, which knows where it put the program.
tinymoe() { cargo run --release --quiet -- "$@"; }
tinymoe train configs/quickstart.toml "$@"
echo
echo "== tinymoe sample $run =="
tinymoe sample "$run" --prompt "So what did you" --tokens 150 --routing-log "$run/routing.jsonl"
echo
echo "== the first two tokens of $run/routing.jsonl =="
sed -n '2,3p' "$run/routing.jsonl"
echo
echo "== tinymoe inspect $run =="
tinymoe inspect "$run" --out "$run/report"
