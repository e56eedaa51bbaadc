#!/bin/bash
# Accuracy of each method by number of shots (Fig. 2): print the table, and draw the curves as PNG and SVG.
#
#   bash scripts/hegraph/few_shot.sh DATASET[,DATASET...] CONFIG [SHOTS] [KEY VALUE ...]
#
# DATASET can be a feature bank. Environment variables: SHOTS (default "1 2 4 8 16"), METHODS (default all), and those of
# runs.sh.

source "$(dirname "${BASH_SOURCE[0]}")/runs.sh"
parse "DATASET[,DATASET...] CONFIG [SHOTS] [KEY VALUE ...]" "$@"

sweep "${MORE[@]}" --datasets ${DATASET//,/ } --configs "$CONFIG" --methods ${METHODS:-all} --shots ${SHOTS:-1 2 4 8 16}
"$PYTHON" -m trainers.hegraph results compare --by shots "${RUNS[@]}" || exit $?
"$PYTHON" -m trainers.hegraph results curves "${RUNS[@]}" --out "$OUTPUT/few_shot/$CONFIG"
