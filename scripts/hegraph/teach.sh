#!/bin/bash
# Shows a page in the browser to teach a model with the images of a folder. Without FOLDER, it is the digits with mini, in
# output/teach-digits, where a few scans of each are put first.
#
#   bash scripts/hegraph/teach.sh [FOLDER] [--port N] [--host ADDRESS] [--backbone NAME] [--pretrained TAG]

source "$(dirname "${BASH_SOURCE[0]}")/runs.sh"
need_gradio

exec "$PYTHON" -m trainers.hegraph teach "$@"
