#!/bin/bash
# Open the demo page of a trained model. Without MODEL, open that of mini on the digits
# (OUTPUT/digits/HeGraphAdapter/mini_16shots/seed1), which is trained first if it does not exist.
#
#   bash scripts/hegraph/demo.sh [MODEL] [--port N] [--host ADDRESS] [--space DIR]
#
# Environment variable: OUTPUT (default output).

source "$(dirname "${BASH_SOURCE[0]}")/runs.sh"
show_help "$@"
source "$ROOT/scripts/hegraph/env.sh"
need_gradio

if [ $# -gt 0 ] && [[ $1 != -* ]]; then
    MODEL=$1
    shift
else
    RUN=$OUTPUT/digits/HeGraphAdapter/mini_16shots/seed1
    "$PYTHON" -m trainers.hegraph --root "$DATA" --dataset-config-file digits --shots 16 --seed 1 --config-file mini \
        --output-dir "$RUN" --keep-thumbnails TRAINER.HEGRAPHADAPTER.FEATURES.DIR "$OUTPUT/features" || exit $?
    MODEL=$RUN/model
fi
exec "$PYTHON" -m trainers.hegraph demo "$MODEL" "$@"
