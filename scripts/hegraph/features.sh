#!/bin/bash
# Trains and tests HeGraphAdapter from feature banks over seeds, then prints the table.
#
#   bash scripts/hegraph/features.sh BANK[,BANK...] CONFIG SHOTS[,SHOTS...] [KEY VALUE ...]
#
# From the environment: OUTPUT (default output), SEEDS (default "1 2 3").

source "$(dirname "${BASH_SOURCE[0]}")/env.sh"

OUTPUT=${OUTPUT:-output}
SEEDS=${SEEDS:-1 2 3}
TRAINER=HeGraphAdapter

if [ $# -lt 3 ]; then
    echo "usage: bash scripts/hegraph/features.sh BANK[,BANK...] CONFIG SHOTS[,SHOTS...] [KEY VALUE ...]" >&2
    exit 2
fi
BANKS=$1
CFG=$2
ALL_SHOTS=$3
shift 3

RUNS=()
for BANK in ${BANKS//,/ }; do
    NAME=$(basename "$BANK" .safetensors)
    for SHOTS in ${ALL_SHOTS//,/ }; do
        RUN=$OUTPUT/$NAME/$TRAINER/${CFG}_${SHOTS}shots
        RUNS+=("$RUN")
        for SEED in $SEEDS; do
            "$PYTHON" -m trainers.hegraph \
                --features "$BANK" \
                --shots "$SHOTS" \
                --seed "$SEED" \
                --config-file "$ROOT/configs/trainers/$TRAINER/$CFG.yaml" \
                --output-dir "$RUN/seed$SEED" \
                "$@" || exit $?
        done
    done
done
"$PYTHON" -m trainers.hegraph.results grid "${RUNS[@]}"
