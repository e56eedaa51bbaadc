#!/bin/bash
# Trains and tests HeGraphAdapter over seeds, then prints the table.
#
#   bash scripts/hegraph/main.sh [DATASET CONFIG SHOTS [KEY VALUE ...]]     default: digits mini 16
#
# From the environment: DATA (folder of the data sets), OUTPUT (default output), SEEDS (default "1 2 3").

source "$(dirname "${BASH_SOURCE[0]}")/env.sh"

DATA=${DATA:-data}
OUTPUT=${OUTPUT:-output}
SEEDS=${SEEDS:-1 2 3}
TRAINER=HeGraphAdapter

DATASET=${1:-digits}
CFG=${2:-mini}     # a file of configs/trainers/HeGraphAdapter
SHOTS=${3:-16}     # images per class
shift $(($# < 3 ? $# : 3))

RUNS=$OUTPUT/$DATASET/$TRAINER/${CFG}_${SHOTS}shots
for SEED in $SEEDS; do
    "$PYTHON" -m trainers.hegraph \
        --root "$DATA" \
        --seed "$SEED" \
        --trainer $TRAINER \
        --dataset-config-file "$ROOT/configs/datasets/$DATASET.yaml" \
        --config-file "$ROOT/configs/trainers/$TRAINER/$CFG.yaml" \
        --output-dir "$RUNS/seed$SEED" \
        DATASET.NUM_SHOTS "$SHOTS" \
        TRAINER.HEGRAPHADAPTER.FEATURES.DIR "$OUTPUT/features" \
        "$@" || exit $?
done
"$PYTHON" -m trainers.hegraph.results table "$RUNS"
