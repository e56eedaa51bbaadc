#!/bin/bash
# Domain generalization: train on one data set, and test the text classifier on other domains of its classes (Table 1).
#
#   bash scripts/hegraph/domain_generalization.sh DATASET CONFIG [SHOTS] [TARGET ...] [FLAG ...] [KEY VALUE ...]
#
# imagenet and digits have default targets. Environment variables: SHOTS (default 16), METHODS (default: methods of
# Table 1), and those of runs.sh.

source "$(dirname "${BASH_SOURCE[0]}")/runs.sh"
parse "DATASET CONFIG [SHOTS] [TARGET ...] [FLAG ...] [KEY VALUE ...]" "$@"
TARGETS=("${NAMES[@]}")
NAMES=()
case ${#TARGETS[@]}$DATASET in
    0imagenet) TARGETS=(ImageNetV2 ImageNetSketch ImageNetA ImageNetR) ;;
    0digits) TARGETS=(DigitsInverted DigitsRotated DigitsNoisy DigitsBlurred) ;;
    0*) fail "$DATASET has no default targets: name at least one TARGET after CONFIG and SHOTS" ;;
esac
prepare
methods "ZeroShot LinearProbe CoOp TaskRes GraphAdapter HeGraphAdapter"

sweep --methods "${CHOSEN[@]}" --suffix _domains DATASET.TARGET_DOMAINS "$(list_of "${TARGETS[@]}")"
results compare --by target "${RUNS[@]}"
