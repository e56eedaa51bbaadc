#!/bin/bash
# Trains on the first half of the classes, tests on it and on the other half; the harmonic mean of the two (CoCoOp).
#
#   bash scripts/hegraph/base_to_new.sh DATASET CONFIG [KEY VALUE ...]
#
# From the environment: SHOTS (default 16), METHODS (default those that have a rule for other classes), and what runs.sh
# names.

source "$(dirname "${BASH_SOURCE[0]}")/runs.sh"
[ $# -ge 2 ] || usage "DATASET CONFIG [KEY VALUE ...]"
DATASET=$1
CONFIG=$2
shift 2
SHOTS=${SHOTS:-16}
METHODS=${METHODS:-ZeroShot CoOp CLIPAdapter HeGraphAdapter}
check_loops "$SHOTS" "$METHODS"
NAME=$(sed -n 's/^ *NAME: *"\(.*\)".*/\1/p' "$ROOT/configs/datasets/$DATASET.yaml")

RUNS=()
run_methods _base_to_new "$DATASET" "$CONFIG" "$SHOTS" --target-datasets "$NAME:new" "$@" \
    DATASET.SUBSAMPLE_CLASSES base
"$PYTHON" -m trainers.hegraph.results base-to-new "${RUNS[@]}"
