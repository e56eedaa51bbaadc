#!/bin/bash
# Trains on one data set and tests on other domains of its classes (Table 1), with the text classifier.
#
#   bash scripts/hegraph/domain_generalization.sh DATASET CONFIG [SHOTS] [TARGET ...] [KEY VALUE ...]
#
# The TARGETs of imagenet and digits are known. From the environment: SHOTS (default 16), METHODS (default those of the
# table), and what runs.sh names.

source "$(dirname "${BASH_SOURCE[0]}")/runs.sh"
take "DATASET CONFIG [SHOTS] [TARGET ...] [KEY VALUE ...]" "$@"
take_targets
case ${#TARGETS[@]}$DATASET in
    0imagenet) TARGETS=(ImageNetV2 ImageNetSketch ImageNetA ImageNetR) ;;
    0digits) TARGETS=(DigitsInverted DigitsRotated DigitsNoisy DigitsBlurred) ;;
    0*) usage "$DATASET CONFIG [SHOTS] TARGET [TARGET ...]" ;;
esac

sweep "${MORE[@]}" --datasets "$DATASET" --configs "$CONFIG" --shots ${SHOTS:-16} --suffix _domains \
    --methods ${METHODS:-ZeroShot LinearProbe CoOp TaskRes GraphAdapter HeGraphAdapter} \
    DATASET.TARGET_DOMAINS "$(list_of "${TARGETS[@]}")"
"$PYTHON" -m trainers.hegraph.results compare --by target "${RUNS[@]}"
