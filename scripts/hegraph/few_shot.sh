#!/bin/bash
# Accuracy by shots, of every method (Fig. 2): the table, and the curves as PNG and SVG.
#
#   bash scripts/hegraph/few_shot.sh DATASET[,DATASET...] CONFIG [SHOTS] [KEY VALUE ...]
#
# A DATASET may be a feature bank. From the environment: SHOTS (default "1 2 4 8 16"), METHODS (default all), and what
# runs.sh names.

source "$(dirname "${BASH_SOURCE[0]}")/runs.sh"
take "DATASET[,DATASET...] CONFIG [SHOTS] [KEY VALUE ...]" "$@"

sweep "${MORE[@]}" --datasets ${DATASET//,/ } --configs "$CONFIG" --methods ${METHODS:-all} --shots ${SHOTS:-1 2 4 8 16}
"$PYTHON" -m trainers.hegraph.results compare --by shots "${RUNS[@]}" || exit $?
"$PYTHON" -m trainers.hegraph.results curves "${RUNS[@]}" --out "$OUTPUT/few_shot/$CONFIG"
