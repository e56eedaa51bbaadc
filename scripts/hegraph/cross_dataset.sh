#!/bin/bash
# Cross-dataset transfer (CoCoOp): train on one data set, and test on data sets with other classes.
#
#   bash scripts/hegraph/cross_dataset.sh DATASET CONFIG [SHOTS] [TARGET ...] [FLAG ...] [KEY VALUE ...]
#
# imagenet, digits_low and digits_high have default targets. Environment variables: SHOTS (default 16), METHODS
# (default: methods that can classify new classes), and those of runs.sh.

source "$(dirname "${BASH_SOURCE[0]}")/runs.sh"
parse "DATASET CONFIG [SHOTS] [TARGET ...] [FLAG ...] [KEY VALUE ...]" "$@"
TARGETS=("${NAMES[@]}")
NAMES=()
case ${#TARGETS[@]}$DATASET in
    0imagenet)
        TARGETS=(Caltech101 OxfordPets StanfordCars OxfordFlowers Food101 FGVCAircraft SUN397 DescribableTextures EuroSAT UCF101)
        ;;
    0digits_low) TARGETS=(DigitsHigh) ;;
    0digits_high) TARGETS=(DigitsLow) ;;
    0*) fail "$DATASET has no default targets: name at least one TARGET after CONFIG and SHOTS" ;;
esac
prepare
methods "ZeroShot CoOp CLIPAdapter HeGraphAdapter"

sweep --methods "${CHOSEN[@]}" --suffix _datasets DATASET.TARGET_DATASETS "$(list_of "${TARGETS[@]}")"
results compare --by target "${RUNS[@]}"
