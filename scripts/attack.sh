#!/usr/bin/env bash
# Random configurations, each trained whole, and again stopped or killed on the way and resumed on another number of
# threads; sampled, evaluated, inspected, exported and read back. All bytes must agree (tests/attack.rs). 500 take about
# two minutes on 2 cores. A failure names its seed and case; the same numbers give it again.
# Usage: scripts/attack.sh [CONFIGURATIONS] [SEED]     (default: 500, and a seed that is printed)
set -euo pipefail
cd "$(dirname "$0")/.."

export ATTACK_CONFIGURATIONS=${1:-500} ATTACK_SEED=${2:-$RANDOM}
echo "seed $ATTACK_SEED" >&2
cargo test --release --test attack -- --nocapture
