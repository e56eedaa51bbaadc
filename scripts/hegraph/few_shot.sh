#!/bin/bash
# Accuracy of each method by number of shots (Fig. 2): print the table, and draw the curves as PNG and SVG.
#
#   bash scripts/hegraph/few_shot.sh DATASET[,DATASET...] CONFIG [SHOTS] [FLAG ...] [KEY VALUE ...]
#
# DATASET can be a feature bank. Environment variables: SHOTS (default "1 2 4 8 16"), METHODS (default all), and those of
# runs.sh.

source "$(dirname "${BASH_SOURCE[0]}")/runs.sh"
parse "DATASET[,DATASET...] CONFIG [SHOTS] [FLAG ...] [KEY VALUE ...]" "$@"
prepare
methods all
SHOTS=${SHOTS:-1 2 4 8 16}

sweep --methods "${CHOSEN[@]}"
results compare --by shots "${RUNS[@]}"
results curves "${RUNS[@]}" --out "$OUTPUT/few_shot/$CONFIG"
