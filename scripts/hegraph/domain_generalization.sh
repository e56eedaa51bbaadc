#!/bin/bash
# Domain generalization: train on one data set, and test the text classifier on other domains of its classes (Table 1).
#
#   bash scripts/hegraph/domain_generalization.sh DATASET CONFIG [SHOTS] [TARGET ...] [KEY VALUE ...]
#
# imagenet and digits have default targets. Environment variables: SHOTS (default 16), METHODS (default: methods of
# Table 1), and those of runs.sh.

source "$(dirname "${BASH_SOURCE[0]}")/runs.sh"
parse "DATASET CONFIG [SHOTS] [TARGET ...] [KEY VALUE ...]" "$@"
parse_targets
case ${#TARGETS[@]}$DATASET in
    0imagenet) TARGETS=(ImageNetV2 ImageNetSketch ImageNetA ImageNetR) ;;
    0digits) TARGETS=(DigitsInverted DigitsRotated DigitsNoisy DigitsBlurred) ;;
    0*) usage "$DATASET CONFIG [SHOTS] TARGET [TARGET ...]" ;;
esac

sweep "${MORE[@]}" --datasets "$DATASET" --configs "$CONFIG" --shots ${SHOTS:-16} --suffix _domains \
    --methods ${METHODS:-ZeroShot LinearProbe CoOp TaskRes GraphAdapter HeGraphAdapter} \
    DATASET.TARGET_DOMAINS "$(list_of "${TARGETS[@]}")"
"$PYTHON" -m trainers.hegraph results compare --by target "${RUNS[@]}"
