#!/bin/bash
# The same runs without unlabelled images, with a pool of them, and with the test images together, side by side.
#
#   bash scripts/hegraph/unlabelled.sh [DATASET CONFIG [SHOTS] [KEY VALUE ...]]     default: digits mini 1
#
# The pool are the training images that were not sampled, and the validation images, without their labels. DATASET may be a
# feature bank. From the environment: SHOTS (default 1), METHODS (default HeGraphAdapter), and what runs.sh names.

source "$(dirname "${BASH_SOURCE[0]}")/runs.sh"

[ $# -gt 1 ] || set -- "${1:-digits}" mini
take "[DATASET CONFIG [SHOTS] [KEY VALUE ...]]" "$@"

ALL=()
for WHAT in "" pool test; do
    sweep "${MORE[@]}" DATASET.UNLABELLED "$WHAT" --datasets "$DATASET" --configs "$CONFIG" --methods ${METHODS:-HeGraphAdapter} \
        --shots ${SHOTS:-1} --suffix "${WHAT:+_unlabelled_$WHAT}"
    ALL+=("${RUNS[@]}")
done
"$PYTHON" -m trainers.hegraph.results compare --no-interval "${ALL[@]}"
