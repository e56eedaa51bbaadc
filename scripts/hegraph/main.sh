#!/bin/bash
# Train and test HeGraphAdapter over seeds, and print the table of accuracies.
#
#   bash scripts/hegraph/main.sh [DATASET CONFIG [SHOTS]] [FLAG ...] [KEY VALUE ...]     (default: digits mini 16)
#
# CONFIG is a file in configs/trainers/HeGraphAdapter. SHOTS is the number of training images per class. Environment
# variables: SHOTS (default 16), and those of runs.sh.

source "$(dirname "${BASH_SOURCE[0]}")/runs.sh"
parse "[DATASET CONFIG [SHOTS]] [FLAG ...] [KEY VALUE ...]" "$@"
prepare
methods HeGraphAdapter

OTHER=${CONFIG}_paper
RECIPE="ours, on top of the paper's graph; the paper's own"
[[ $CONFIG != *_paper ]] || { OTHER=${CONFIG%_paper} RECIPE="the paper's; ours"; }

SHOTS=${SHOTS:-16}
sweep --methods "${CHOSEN[@]}" --verbose
[ ! -f "$ROOT/configs/trainers/HeGraphAdapter/$OTHER.yaml" ] ||
    echo "recipe: $RECIPE: bash scripts/hegraph/main.sh $(printf '%q' "$DATASET") $OTHER ${SHOTS// /,}"
results compare --format text "${RUNS[@]}"
