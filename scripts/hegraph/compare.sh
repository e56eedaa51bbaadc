#!/bin/bash
# All methods side by side, on the same features, seeds and splits.
#
#   bash scripts/hegraph/compare.sh DATASET CONFIG SHOTS [KEY VALUE ...]
#
# DATASET may be a feature bank. From the environment: METHODS (default all), and what runs.sh names.

source "$(dirname "${BASH_SOURCE[0]}")/runs.sh"
[ $# -ge 3 ] || usage "DATASET CONFIG SHOTS [KEY VALUE ...]"
DATASET=$1
CONFIG=$2
SHOTS=$3
shift 3

sweep "$@" --datasets "$DATASET" --configs "$CONFIG" --methods ${METHODS:-all} --shots "$SHOTS"
"$PYTHON" -m trainers.hegraph.results compare --by dataset "${RUNS[@]}"
