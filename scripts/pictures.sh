#!/usr/bin/env bash
# Draws the README's pictures from a run's real output: docs/pictures/terminal.svg is what `tinymoe inspect` prints on a
# terminal with 24-bit colours, docs/pictures/report.svg the head of the report's page, drawn from the same numbers
# (`inspect --json`). The same run gives the same bytes. Needs python3; half a minute for the quickstart on two cores, most
# of it its knockouts, twice. Usage: scripts/pictures.sh [RUN]   (default: runs/quickstart, which scripts/quickstart.sh trains)
set -euo pipefail
cd "$(dirname "$0")/.."

run=${1:-runs/quickstart}
tinymoe=${TINYMOE:-target/release/tinymoe}
[[ -x $tinymoe ]] || cargo build --release
[[ -d $run ]] || { echo "$run: no such run; scripts/quickstart.sh trains runs/quickstart" >&2; exit 1; }
mkdir -p docs/pictures
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

"$tinymoe" inspect "$run" --knockout --json --quiet > "$scratch/report.json"
COLORTERM=truecolor TERM=xterm-256color "$tinymoe" inspect "$run" --knockout --color always --quiet > "$scratch/terminal.txt"
python3 scripts/pictures.py terminal "tinymoe inspect $run" < "$scratch/terminal.txt" > "$scratch/terminal.svg"
python3 scripts/pictures.py report < "$scratch/report.json" > "$scratch/report.svg"
mv "$scratch/terminal.svg" "$scratch/report.svg" docs/pictures/
ls -l docs/pictures
