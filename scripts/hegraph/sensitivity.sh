#!/bin/bash
# The weight of each meta-path swept over the paper's grid, and learned (Table 3); text classifier only.
#
#   bash scripts/hegraph/sensitivity.sh DATASET CONFIG [SHOTS] [KEY VALUE ...]
#
# For the paper's table, give one of the configurations that end in _paper.
#
# From the environment: SHOTS (default 16), WEIGHTS (the meta-path weights to sweep, default all four), VALUES (instead of
# the paper's grid), and what runs.sh names. ALPHA_NP_TEST changes the prediction and not the training; every one of its
# values is trained all the same, since a trained model keeps the values that it was trained with.

source "$(dirname "${BASH_SOURCE[0]}")/runs.sh"
take "DATASET CONFIG [SHOTS] [KEY VALUE ...]" "$@"
SHOTS=${SHOTS:-16}
WEIGHTS=${WEIGHTS:-ALPHA_PP ALPHA_VP ALPHA_NP ALPHA_NP_TEST}

grid() {
    case $1 in
        ALPHA_PP) echo 0.0 0.02 0.06 0.1 0.14 0.18 0.22 0.26 0.3 0.4 ;;
        ALPHA_VP) echo 0.0 0.06 0.12 0.18 0.24 0.3 0.36 0.42 0.5 0.6 ;;
        ALPHA_NP | ALPHA_NP_TEST) echo 0.0 0.05 0.1 0.15 0.2 0.25 0.3 0.4 0.5 0.6 ;;
        *)
            echo "error: unknown weight '$1' in WEIGHTS (known: ALPHA_PP ALPHA_VP ALPHA_NP ALPHA_NP_TEST)" >&2
            return 2
            ;;
    esac
}

NODE=TRAINER.HEGRAPHADAPTER
GRID=("${MORE[@]}" --datasets "$DATASET" --configs "$CONFIG" --shots $SHOTS $NODE.VARIANT T)
for WEIGHT in $WEIGHTS; do
    OF_PAPER=$(grid "$WEIGHT") || exit 2
    sweep "${GRID[@]}" --vary $NODE."$WEIGHT" ${VALUES:-$OF_PAPER} --suffix "_sensitivity/$WEIGHT={$WEIGHT}"
    "$PYTHON" -m trainers.hegraph.results compare --by setting "${RUNS[@]}" || exit $?
done
sweep "${GRID[@]}" $NODE.LEARN_METAPATH True --suffix _sensitivity/learned
"$PYTHON" -m trainers.hegraph.results compare --by dataset "${RUNS[@]}"
