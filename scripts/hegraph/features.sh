#!/bin/bash
# Trains and tests HeGraphAdapter from feature banks over shots and seeds, then prints the table.
#
#   bash scripts/hegraph/features.sh BANK[,BANK...] CONFIG SHOTS[,SHOTS...] [KEY VALUE ...]
#
# From the environment: OUTPUT (default output), SEEDS (default "1 2 3").

source "$(dirname "${BASH_SOURCE[0]}")/runs.sh"
[ $# -ge 3 ] || usage "BANK[,BANK...] CONFIG SHOTS[,SHOTS...] [KEY VALUE ...]"
BANKS=$1
CONFIG=$2
ALL_SHOTS=$3
shift 3

RUNS=()
for BANK in ${BANKS//,/ }; do
    for SHOTS in ${ALL_SHOTS//,/ }; do
        RUN=$(folder_of HeGraphAdapter "$BANK" "$CONFIG" "$SHOTS")
        RUNS+=("$RUN")
        run_seeds "$RUN" HeGraphAdapter "$BANK" "$CONFIG" "$SHOTS" "$@"
    done
done
"$PYTHON" -m trainers.hegraph.results compare --no-interval "${RUNS[@]}"
