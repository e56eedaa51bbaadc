#!/bin/bash
# Open the teach page, which trains a model on the images of a folder. Without FOLDER, open a sample of the digits with
# mini, which is written to output/teach-digits.
#
#   bash scripts/hegraph/teach.sh [FOLDER] [--port N] [--host ADDRESS] [--backbone NAME] [--pretrained TAG]

source "$(dirname "${BASH_SOURCE[0]}")/runs.sh"
show_help "$@"
source "$ROOT/scripts/hegraph/env.sh"
need_gradio

exec "$PYTHON" -m trainers.hegraph teach "$@"
