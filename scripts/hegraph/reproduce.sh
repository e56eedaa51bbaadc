#!/bin/bash
# Everything: each table and figure of the paper, then one page of all of it. What is done is not run again.
#
# Tables 2 and 3 are about the paper's layer, so they are made with the configuration of the paper's recipe, CONFIG_paper,
# below OUTPUT/paper, and have a page of their own.
#
#   bash scripts/hegraph/reproduce.sh [DATASET[,DATASET...] CONFIG [SHOTS] [KEY VALUE ...]]     default: digits mini
#
# For the paper's: DATA=/data bash scripts/hegraph/reproduce.sh imagenet,caltech101,oxford_pets,stanford_cars,\
# oxford_flowers,food101,fgvc_aircraft,sun397,dtd,eurosat,ucf101 rn50. Transfer and sensitivity are of the first
# DATASET. From the environment: BACKBONES (default CONFIG; the paper's: "rn50 rn101 vit_b32 vit_b16"), and what runs.sh names.

source "$(dirname "${BASH_SOURCE[0]}")/runs.sh"
[ $# -gt 1 ] || set -- "${1:-digits}" mini
take "[DATASET[,DATASET...] CONFIG [SHOTS] [KEY VALUE ...]]" "$@"
DATASETS=$DATASET
FIRST=${DATASETS%%,*}
[ -z "${SHOTS:-}" ] || export SHOTS
HERE=$(dirname "${BASH_SOURCE[0]}")
CROSS=$FIRST
[ "$FIRST" != digits ] || CROSS=digits_low
export DATA OUTPUT SEEDS PYTHON

# apart FOLDER SCRIPT DATASET CONFIG: runs of other recipes, in a folder of their own, so that no table mixes them
apart() {
    OUTPUT=$OUTPUT/$1 bash "$HERE/$2" "$3" "$4" TRAINER.HEGRAPHADAPTER.FEATURES.DIR "$OUTPUT/features" "${MORE[@]}"
}

heading() {
    printf '\n== %s\n\n' "$1"
}

heading "Few shots (Fig. 2)" && bash "$HERE/few_shot.sh" "$DATASETS" "$CONFIG" "${MORE[@]}" || exit $?
heading "Other domains (Table 1)" && bash "$HERE/domain_generalization.sh" "$FIRST" "$CONFIG" "${MORE[@]}" || exit $?
heading "Ablation (Table 2)" && PARTS=table2 apart paper ablation.sh "$DATASETS" "${CONFIG%_paper}_paper" || exit $?
heading "The graph alone" && PARTS=graph apart graph ablation.sh "$DATASETS" "$CONFIG" || exit $?
heading "Sensitivity (Table 3)" && apart paper sensitivity.sh "$FIRST" "${CONFIG%_paper}_paper" || exit $?
heading "Backbones (Table 4)" && bash "$HERE/backbones.sh" "$FIRST" ${BACKBONES:-$CONFIG} "${MORE[@]}" || exit $?
heading "Complexity (Table 5)" && bash "$HERE/complexity.sh" "$FIRST" "$CONFIG" "${MORE[@]}" || exit $?
heading "Text nodes (Fig. 3)" && bash "$HERE/tsne.sh" "$FIRST" "$CONFIG" "${MORE[@]}" || exit $?
heading "Other classes" && bash "$HERE/cross_dataset.sh" "$CROSS" "$CONFIG" "${MORE[@]}" || exit $?
heading "Base to new" && bash "$HERE/base_to_new.sh" "$FIRST" "$CONFIG" "${MORE[@]}" || exit $?
heading "Report"
RUNS=()
OF_PAPER=()
for DATASET in ${DATASETS//,/ }; do
    RUNS+=("$OUTPUT/$DATASET")
    OF_PAPER+=("$OUTPUT/paper/$DATASET")
done
"$PYTHON" -m trainers.hegraph.results report "${RUNS[@]}" --out "$OUTPUT/report.html" || exit $?
"$PYTHON" -m trainers.hegraph.results report "${OF_PAPER[@]}" --out "$OUTPUT/report_paper.html"
