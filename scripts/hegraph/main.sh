#!/bin/bash
# Train and test HeGraphAdapter over seeds, and print the table of accuracies.
#
#   bash scripts/hegraph/main.sh [DATASET CONFIG [SHOTS] [KEY VALUE ...]]     (default: digits mini 16)
#
# SHOTS is the number of training images per class. Environment variables: SHOTS (default 16), and those of runs.sh.

source "$(dirname "${BASH_SOURCE[0]}")/runs.sh"

[ $# -gt 1 ] || set -- "${1:-digits}" mini # CONFIG is a file in configs/trainers/HeGraphAdapter
parse "[DATASET CONFIG [SHOTS] [KEY VALUE ...]]" "$@"

OTHER=${CONFIG}_paper
RECIPE="ours, on top of the paper's graph; the paper's own"
[[ $CONFIG != *_paper ]] || { OTHER=${CONFIG%_paper} RECIPE="the paper's; ours"; }

SHOTS=${SHOTS:-16}
sweep "${MORE[@]}" --datasets "$DATASET" --configs "$CONFIG" --shots $SHOTS --verbose
[ ! -f "$ROOT/configs/trainers/HeGraphAdapter/$OTHER.yaml" ] ||
    echo "recipe: $RECIPE: bash scripts/hegraph/main.sh $DATASET $OTHER $SHOTS"
"$PYTHON" -m trainers.hegraph results compare --format text "${RUNS[@]}"
