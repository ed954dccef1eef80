#!/usr/bin/env bash
# How much tinymoe learns in how much time: trains the configurations below with fixed seeds, prints tables of mean and
# spread, and writes curves of validation loss against seconds and against tokens as SVG. What has been trained already
# is not trained again, so a broken-off call can be repeated. Losses depend on seed and instruction set alone; for the
# seconds nothing else should run meanwhile. Figures go to docs/figures/learning.json, from which README and docs quote.
# Usage: scripts/learning.sh PART... [--out DIR] [--shakespeare FILE] [--transcript FILE] [--corpus DIR...] [--seeds N...]
#        [--precision f32|bf16]
#   shakespeare  tinyshakespeare-char.toml: seconds to 1.88 nats, loss in nanoGPT's time (five minutes)
#   long         tinyshakespeare-long.toml: half an hour, one seed
#   dense        mixture against dense model, equal tokens and equal time, on --shakespeare and each --corpus
#   transcript   transcript.toml on --transcript: bits per byte in ten minutes
#   quickstart   quickstart.toml: bits per byte in 90 seconds
#   first-run    quickstart.toml with the seed that scripts/quickstart.sh uses
#   configs      the eight configurations that share text and schedule
# Texts are not included; scripts/compare_nanogpt.md says where they come from.
set -euo pipefail
cd "$(dirname "$0")/.."

environment=${ENVIRONMENT:-target/learning}
if [[ ! -x $environment/bin/python ]]; then
    python3 -m venv "$environment"
    "$environment/bin/pip" install --quiet matplotlib
fi
cargo build --release --quiet
"$environment/bin/python" scripts/learning.py --binary target/release/tinymoe --out runs/learning "$@"
