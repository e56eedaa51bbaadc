#!/bin/bash
# Compare runs without unlabelled images, with a pool of unlabelled images (semi-supervised), and with the test images
# (transductive).
#
#   bash scripts/hegraph/unlabelled.sh [DATASET CONFIG [SHOTS] [KEY VALUE ...]]     (default: digits mini 1)
#
# The pool consists of the training images that were not sampled and the validation images, without labels. DATASET can be
# a feature bank. Environment variables: SHOTS (default 1), METHODS (default HeGraphAdapter), and those of runs.sh.

source "$(dirname "${BASH_SOURCE[0]}")/runs.sh"

[ $# -gt 1 ] || set -- "${1:-digits}" mini
parse "[DATASET CONFIG [SHOTS] [KEY VALUE ...]]" "$@"

ALL=()
for UNLABELLED in "" pool test; do
    sweep "${MORE[@]}" DATASET.UNLABELLED "$UNLABELLED" --datasets "$DATASET" --configs "$CONFIG" --methods ${METHODS:-HeGraphAdapter} \
        --shots ${SHOTS:-1} --suffix "${UNLABELLED:+_unlabelled_$UNLABELLED}"
    ALL+=("${RUNS[@]}")
done
"$PYTHON" -m trainers.hegraph results compare --no-interval "${ALL[@]}"
