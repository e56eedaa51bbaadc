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
NAME=$(sed -n 's/^ *NAME: *"\(.*\)".*/\1/p' "$ROOT/configs/datasets/$DATASET.yaml" 2>/dev/null)

sweep "$@" --datasets "$DATASET" --configs "$CONFIG" --methods ${METHODS:-ZeroShot CoOp CLIPAdapter HeGraphAdapter} \
    --shots ${SHOTS:-16} --suffix _base_to_new \
    DATASET.SUBSAMPLE_CLASSES base DATASET.TARGET_DATASETS "$(list_of "$NAME:new")"
"$PYTHON" -m trainers.hegraph.results base-to-new "${RUNS[@]}"
