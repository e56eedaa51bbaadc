#!/bin/bash
# Sensitivity to the weight of each meta-path, over the paper's grid and learned (Table 3). Text classifier only.
#
#   bash scripts/hegraph/sensitivity.sh DATASET CONFIG [SHOTS] [KEY VALUE ...]
#
# For the paper's table, use a configuration that ends in _paper.
#
# Environment variables: SHOTS (default 16), WEIGHTS (weights of meta-paths, default all four), VALUES (default the
# paper's grid), and those of runs.sh. ALPHA_NP_TEST affects only the prediction. Each of its values is a training all the
# same, since a trained model has fixed values.

source "$(dirname "${BASH_SOURCE[0]}")/runs.sh"
parse "DATASET CONFIG [SHOTS] [KEY VALUE ...]" "$@"
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
    PAPER_VALUES=$(grid "$WEIGHT") || exit 2
    sweep "${GRID[@]}" --vary $NODE."$WEIGHT" ${VALUES:-$PAPER_VALUES} --suffix "_sensitivity/$WEIGHT={$WEIGHT}"
    "$PYTHON" -m trainers.hegraph results compare --by setting "${RUNS[@]}" || exit $?
done
sweep "${GRID[@]}" $NODE.LEARN_METAPATH True --suffix _sensitivity/learned
"$PYTHON" -m trainers.hegraph results compare --by dataset "${RUNS[@]}"
