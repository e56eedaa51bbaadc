#!/bin/bash
# Sensitivity to the weight of each meta-path, over the paper's grid and learned (Table 3). Text classifier only.
#
#   bash scripts/hegraph/sensitivity.sh DATASET CONFIG [SHOTS] [FLAG ...] [KEY VALUE ...]
#
# For the paper's table, use a configuration that ends in _paper.
#
# Environment variables: SHOTS (default 16), WEIGHTS (weights of meta-paths, default all four), VALUES (default the
# paper's grid), and those of runs.sh. ALPHA_NP_TEST affects only the prediction. Each of its values is a training all the
# same, since a trained model has fixed values.

source "$(dirname "${BASH_SOURCE[0]}")/runs.sh"
parse "DATASET CONFIG [SHOTS] [FLAG ...] [KEY VALUE ...]" "$@"
only_ours
prepare
read -r -a ALL_WEIGHTS <<<"${WEIGHTS:-ALPHA_PP ALPHA_VP ALPHA_NP ALPHA_NP_TEST}"

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
for WEIGHT in "${ALL_WEIGHTS[@]}"; do
    PAPER_VALUES=$(grid "$WEIGHT") || exit 2
    read -r -a NUMBERS <<<"${VALUES:-$PAPER_VALUES}"
    sweep $NODE.VARIANT T --vary "$NODE.$WEIGHT" "${NUMBERS[@]}" --suffix "_sensitivity/$WEIGHT={$WEIGHT}"
    results compare --by setting "${RUNS[@]}"
done
sweep $NODE.VARIANT T $NODE.LEARN_METAPATH True --suffix _sensitivity/learned
results compare --by dataset "${RUNS[@]}"
