#!/bin/bash
# Show a page for training a model on the images of a folder. Without FOLDER, it shows a sample of the digits with mini,
# which is written to output/teach-digits.
#
#   bash scripts/hegraph/teach.sh [FOLDER] [--port N] [--host ADDRESS] [--backbone NAME] [--pretrained TAG]

source "$(dirname "${BASH_SOURCE[0]}")/runs.sh"
need_gradio

exec "$PYTHON" -m trainers.hegraph teach "$@"
