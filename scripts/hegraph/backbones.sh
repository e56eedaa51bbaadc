#!/bin/bash
# HeGraphAdapter on several backbones (Table 4).
#
#   bash scripts/hegraph/backbones.sh DATASET CONFIG [CONFIG ...]
#
# From the environment: SHOTS (default 16), and what runs.sh names.

source "$(dirname "${BASH_SOURCE[0]}")/runs.sh"
[ $# -ge 2 ] || usage "DATASET CONFIG [CONFIG ...]"
DATASET=$1
shift
SHOTS=${SHOTS:-16}
check_loops "$SHOTS"

RUNS=()
for CONFIG in "$@"; do
    RUN=$(folder_of HeGraphAdapter "$DATASET" "$CONFIG" "$SHOTS")
    run_seeds "$RUN" HeGraphAdapter "$DATASET" "$CONFIG" "$SHOTS"
    RUNS+=("$RUN")
done
"$PYTHON" -m trainers.hegraph.results compare --by backbone "${RUNS[@]}"
