#!/bin/bash
# Shows a page in the browser to try a trained model. Without MODEL it is the digits with mini, which are trained first if
# that has not been done (OUTPUT/digits/HeGraphAdapter/mini_16shots/seed1).
#
#   bash scripts/hegraph/demo.sh [MODEL] [--port N] [--host ADDRESS] [--space DIR]
#
# From the environment: OUTPUT (default output).

source "$(dirname "${BASH_SOURCE[0]}")/runs.sh"

# The environment that env.sh has made gets Gradio as well; any other is left alone
if [ "$PYTHON" = "$ROOT/.venv/bin/python" ] && [ -f "$ROOT/.venv/hegraph-requirements.txt" ] &&
    ! "$PYTHON" -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("gradio") is None)'; then
    GRADIO=$("$PYTHON" -c 'from trainers.hegraph.demo.__main__ import GRADIO; print(GRADIO)') || exit 1
    "$PYTHON" -m pip install --quiet --disable-pip-version-check "$GRADIO" || exit 1
fi

if [ $# -gt 0 ] && [[ $1 != -* ]]; then
    MODEL=$1
    shift
else
    RUN=$OUTPUT/digits/HeGraphAdapter/mini_16shots/seed1
    "$PYTHON" -m trainers.hegraph --root "$DATA" --dataset-config-file digits --shots 16 --seed 1 --config-file mini \
        --output-dir "$RUN" --keep-thumbnails TRAINER.HEGRAPHADAPTER.FEATURES.DIR "$OUTPUT/features" || exit $?
    MODEL=$RUN/model
fi
exec "$PYTHON" -m trainers.hegraph.demo "$MODEL" "$@"
