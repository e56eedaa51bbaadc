#!/bin/bash
# Trains on one data set and tests on others, which have other classes (CoCoOp's protocol).
#
#   bash scripts/hegraph/cross_dataset.sh DATASET CONFIG [TARGET ...]
#
# The TARGETs of imagenet, digits_low and digits_high are known. From the environment: SHOTS (default 16), METHODS
# (default those that have a rule for other classes), and what runs.sh names.

source "$(dirname "${BASH_SOURCE[0]}")/runs.sh"
[ $# -ge 2 ] || usage "DATASET CONFIG [TARGET ...]"
DATASET=$1
CONFIG=$2
shift 2
case $#$DATASET in
    0imagenet)
        set -- Caltech101 OxfordPets StanfordCars OxfordFlowers Food101 FGVCAircraft SUN397 DescribableTextures EuroSAT UCF101
        ;;
    0digits_low) set -- DigitsHigh ;;
    0digits_high) set -- DigitsLow ;;
    0*) usage "$DATASET CONFIG TARGET [TARGET ...]" ;;
esac

sweep --datasets "$DATASET" --configs "$CONFIG" --shots ${SHOTS:-16} --suffix _datasets \
    --methods ${METHODS:-ZeroShot CoOp CLIPAdapter HeGraphAdapter} \
    DATASET.TARGET_DATASETS "$(list_of "$@")"
"$PYTHON" -m trainers.hegraph.results compare --by target "${RUNS[@]}"
