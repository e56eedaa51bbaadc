#!/bin/bash
# Trains on one data set and tests on others, which have other classes (CoCoOp's protocol).
#
#   bash scripts/hegraph/cross_dataset.sh DATASET CONFIG [SHOTS] [TARGET ...] [KEY VALUE ...]
#
# The TARGETs of imagenet, digits_low and digits_high are known. From the environment: SHOTS (default 16), METHODS
# (default those that have a rule for other classes), and what runs.sh names.

source "$(dirname "${BASH_SOURCE[0]}")/runs.sh"
take "DATASET CONFIG [SHOTS] [TARGET ...] [KEY VALUE ...]" "$@"
take_targets
case ${#TARGETS[@]}$DATASET in
    0imagenet)
        TARGETS=(Caltech101 OxfordPets StanfordCars OxfordFlowers Food101 FGVCAircraft SUN397 DescribableTextures EuroSAT UCF101)
        ;;
    0digits_low) TARGETS=(DigitsHigh) ;;
    0digits_high) TARGETS=(DigitsLow) ;;
    0*) usage "$DATASET CONFIG [SHOTS] TARGET [TARGET ...]" ;;
esac

sweep "${MORE[@]}" --datasets "$DATASET" --configs "$CONFIG" --shots ${SHOTS:-16} --suffix _datasets \
    --methods ${METHODS:-ZeroShot CoOp CLIPAdapter HeGraphAdapter} \
    DATASET.TARGET_DATASETS "$(list_of "${TARGETS[@]}")"
"$PYTHON" -m trainers.hegraph.results compare --by target "${RUNS[@]}"
