#!/bin/bash
# Accuracy by shots, of every method (Fig. 2): the table, and the curves as PNG and SVG.
#
#   bash scripts/hegraph/few_shot.sh DATASET[,DATASET...] CONFIG [KEY VALUE ...]
#
# A DATASET may be a feature bank. From the environment: SHOTS (default "1 2 4 8 16"), METHODS (default all), and what
# runs.sh names.

source "$(dirname "${BASH_SOURCE[0]}")/runs.sh"
[ $# -ge 2 ] || usage "DATASET[,DATASET...] CONFIG [KEY VALUE ...]"
DATASETS=$1
CONFIG=$2
shift 2
SHOTS=${SHOTS:-1 2 4 8 16}
METHODS=${METHODS:-$ALL_METHODS}
check_loops "$SHOTS" "$METHODS"

RUNS=()
for DATASET in ${DATASETS//,/ }; do
    for COUNT in $SHOTS; do
        run_methods "" "$DATASET" "$CONFIG" "$COUNT" "$@"
    done
done
"$PYTHON" -m trainers.hegraph.results compare --by shots "${RUNS[@]}" || exit $?
"$PYTHON" -m trainers.hegraph.results curves "${RUNS[@]}" --out "$OUTPUT/few_shot/$CONFIG"
