#!/bin/bash
# Trains and tests HeGraphAdapter over seeds, then prints the table.
#
#   bash scripts/hegraph/main.sh [DATASET CONFIG SHOTS [KEY VALUE ...]]     default: digits mini 16
#
# From the environment: DATA (folder of the data sets), OUTPUT (default output), SEEDS (default "1 2 3").

source "$(dirname "${BASH_SOURCE[0]}")/runs.sh"

DATASET=${1:-digits}
CONFIG=${2:-mini} # a file of configs/trainers/HeGraphAdapter
SHOTS=${3:-16}    # images per class
shift $(($# < 3 ? $# : 3))

OTHER=${CONFIG}_paper
RECIPE="ours, on top of the paper's graph; the paper's own"
[[ $CONFIG != *_paper ]] || { OTHER=${CONFIG%_paper} RECIPE="the paper's; ours"; }

sweep "$@" --datasets "$DATASET" --configs "$CONFIG" --shots "$SHOTS" --verbose
[ ! -f "$ROOT/configs/trainers/HeGraphAdapter/$OTHER.yaml" ] ||
    echo "recipe: $RECIPE: bash scripts/hegraph/main.sh $DATASET $OTHER $SHOTS"
"$PYTHON" -m trainers.hegraph.results compare --format text "${RUNS[@]}"
