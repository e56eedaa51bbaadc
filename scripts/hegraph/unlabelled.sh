#!/bin/bash
# Compare runs without unlabelled images, with a pool of unlabelled images (semi-supervised), and with the test images
# (transductive).
#
#   bash scripts/hegraph/unlabelled.sh [DATASET CONFIG [SHOTS]] [FLAG ...] [KEY VALUE ...]     (default: digits mini 1)
#
# The pool consists of the training images that were not sampled and the validation images, without labels. DATASET can be
# a feature bank. Environment variables: SHOTS (default 1), METHODS (default HeGraphAdapter), and those of runs.sh.

source "$(dirname "${BASH_SOURCE[0]}")/runs.sh"
parse "[DATASET CONFIG [SHOTS]] [FLAG ...] [KEY VALUE ...]" "$@"
prepare
methods HeGraphAdapter
SHOTS=${SHOTS:-1}

ALL=()
for UNLABELLED in "" pool test; do
    sweep DATASET.UNLABELLED "$UNLABELLED" --methods "${CHOSEN[@]}" --suffix "${UNLABELLED:+_unlabelled_$UNLABELLED}"
    ALL+=("${RUNS[@]}")
done
results compare --no-interval "${ALL[@]}"
