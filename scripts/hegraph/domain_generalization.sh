#!/bin/bash
# Trains on one data set and tests on other domains of its classes (Table 1), with the text classifier.
#
#   bash scripts/hegraph/domain_generalization.sh DATASET CONFIG [TARGET ...]
#
# The TARGETs of imagenet and digits are known. From the environment: SHOTS (default 16), METHODS (default those of the
# table), and what runs.sh names.

source "$(dirname "${BASH_SOURCE[0]}")/runs.sh"
[ $# -ge 2 ] || usage "DATASET CONFIG [TARGET ...]"
DATASET=$1
CONFIG=$2
shift 2
case $#$DATASET in
    0imagenet) set -- ImageNetV2 ImageNetSketch ImageNetA ImageNetR ;;
    0digits) set -- DigitsInverted DigitsRotated DigitsNoisy DigitsBlurred ;;
    0*) usage "$DATASET CONFIG TARGET [TARGET ...]" ;;
esac

sweep --datasets "$DATASET" --configs "$CONFIG" --shots ${SHOTS:-16} --suffix _domains \
    --methods ${METHODS:-ZeroShot LinearProbe CoOp TaskRes GraphAdapter HeGraphAdapter} \
    DATASET.TARGET_DOMAINS "$(list_of "$@")"
"$PYTHON" -m trainers.hegraph.results compare --by target "${RUNS[@]}"
