#!/usr/bin/env bash
# Opens routing reports in a real browser and uses them: on a wide screen in light and dark, at 360 pixels, as printed.
# Any error in the console, request to the network, sideways overflow or interaction that does not do what the data says
# fails the check. Trains what it looks at, the quickstart and a short run with 64 experts: about five minutes on two
# cores, most of it training, and one for each report. Needs node and npm; takes Chromium from the Debian package of that
# name (installed here if root runs this) or from CHROMIUM, and playwright-core from npm, into target/browser.
# Usage: scripts/check_report.sh [RUN|REPORT.html]...
set -euo pipefail
cd "$(dirname "$0")/.."

place=target/check-report
browser=${CHROMIUM:-$(command -v chromium || command -v chromium-browser || true)}
if [[ -z $browser && $(id -u) == 0 ]]; then
    apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium > /dev/null
    browser=$(command -v chromium)
fi
[[ -n $browser ]] || { echo "no Chromium: install the package chromium, or set CHROMIUM to a browser" >&2; exit 1; }
[[ -d target/browser/node_modules/playwright-core ]] ||
    npm install --silent --no-audit --no-fund --prefix target/browser playwright-core

cargo build --release --quiet
tinymoe=target/release/tinymoe
runs=("$@")
if [[ ${#runs[@]} -eq 0 ]]; then
    runs=("$place/quickstart" "$place/experts-64")
    rm -rf "${runs[@]}"
    "$tinymoe" train configs/quickstart.toml --run "${runs[0]}" --set train.keep_checkpoints=5
    "$tinymoe" train configs/quickstart.toml --run "${runs[1]}" --steps 80 \
        --set train.eval_interval=20 --set train.checkpoint_interval=20 --set train.keep_checkpoints=5 \
        --set model.num_hidden_layers=2 --set model.num_experts=64 --set model.num_experts_per_tok=8 \
        --set model.moe_intermediate_size=44
fi

reports=()
for run in "${runs[@]}"; do
    if [[ $run == *.html ]]; then
        reports+=("$run")
        continue
    fi
    "$tinymoe" inspect "$run" --knockout --out "$place/reports/$(basename "$run")" > /dev/null
    reports+=("$place/reports/$(basename "$run")/index.html")
done
node scripts/check_report.mjs "$browser" "$place/screenshots" "${reports[@]}"
