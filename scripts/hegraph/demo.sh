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
    GRADIO=$("$PYTHON" -c 'from trainers.hegraph.demo.server import GRADIO; print(GRADIO)') || exit 1
    "$PYTHON" -m pip install --quiet --disable-pip-version-check "$GRADIO" || exit 1
fi

if [ $# -gt 0 ] && [[ $1 != -* ]]; then
    MODEL=$1
    shift
else
    RUNS=$(folder_of HeGraphAdapter digits mini 16)
    SEEDS=1 run_seeds "$RUNS" HeGraphAdapter digits mini 16 --keep-thumbnails
    MODEL=$RUNS/seed1/model
fi
exec "$PYTHON" -m trainers.hegraph.demo "$MODEL" "$@"
