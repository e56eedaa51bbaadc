#!/bin/bash
# What each part of the method adds (Table 2): base, T-N, T-P, T, full.
#
#   bash scripts/hegraph/ablation.sh DATASET[,DATASET...] CONFIG [KEY VALUE ...]
#
# From the environment: SHOTS (default 16), and what runs.sh names.

source "$(dirname "${BASH_SOURCE[0]}")/runs.sh"
[ $# -ge 2 ] || usage "DATASET[,DATASET...] CONFIG [KEY VALUE ...]"
DATASETS=$1
CONFIG=$2
shift 2
SHOTS=${SHOTS:-16}
check_loops "$SHOTS"

RUNS=()
for DATASET in ${DATASETS//,/ }; do
    for VARIANT in base T-N T-P T full; do
        RUN=$(folder_of HeGraphAdapter "$DATASET" "$CONFIG" "$SHOTS")
        [ $VARIANT = full ] || RUN=${RUN}_$VARIANT
        run_seeds "$RUN" HeGraphAdapter "$DATASET" "$CONFIG" "$SHOTS" "$@" TRAINER.HEGRAPHADAPTER.VARIANT $VARIANT
        RUNS+=("$RUN")
    done
done
"$PYTHON" -m trainers.hegraph.results compare --by dataset "${RUNS[@]}"
