#!/bin/bash
# Reproduce each table and figure of the paper, and write a report. Finished runs are not repeated.
#
#   bash scripts/hegraph/reproduce.sh [DATASET[,DATASET...] CONFIG [SHOTS] [KEY VALUE ...]]     (default: digits mini)
#
# Tables 2 and 3 study the paper's layer, so they use CONFIG_paper. Their runs are in OUTPUT/paper and have a separate
# report. Transfer and sensitivity use the first DATASET. Environment variables: BACKBONES (default CONFIG), and those of
# runs.sh. The experiments of the paper:
#
#   export DATA=/data BACKBONES="rn50 rn101 vit_b32 vit_b16"
#   DATASETS=imagenet,caltech101,oxford_pets,stanford_cars,oxford_flowers,food101,fgvc_aircraft,sun397,dtd,eurosat,ucf101
#   bash scripts/hegraph/reproduce.sh $DATASETS rn50

source "$(dirname "${BASH_SOURCE[0]}")/runs.sh"
[ $# -gt 1 ] || set -- "${1:-digits}" mini
parse "[DATASET[,DATASET...] CONFIG [SHOTS] [KEY VALUE ...]]" "$@"
DATASETS=$DATASET
FIRST=${DATASETS%%,*}
[ -z "${SHOTS:-}" ] || export SHOTS
HERE=$(dirname "${BASH_SOURCE[0]}")
CROSS=$FIRST
[ "$FIRST" != digits ] || CROSS=digits_low
export DATA OUTPUT SEEDS PYTHON

# run_in FOLDER SCRIPT DATASET CONFIG: run a script with OUTPUT/FOLDER, so that no table mixes recipes
run_in() {
    OUTPUT=$OUTPUT/$1 bash "$HERE/$2" "$3" "$4" TRAINER.HEGRAPHADAPTER.FEATURES.DIR "$OUTPUT/features" "${MORE[@]}"
}

heading() {
    printf '\n== %s\n\n' "$1"
}

heading "Few shots (Fig. 2)" && bash "$HERE/few_shot.sh" "$DATASETS" "$CONFIG" "${MORE[@]}" || exit $?
heading "Domain generalization (Table 1)" && bash "$HERE/domain_generalization.sh" "$FIRST" "$CONFIG" "${MORE[@]}" || exit $?
heading "Ablation (Table 2)" && PARTS=table2 run_in paper ablation.sh "$DATASETS" "${CONFIG%_paper}_paper" || exit $?
heading "Ablation of the graph" && PARTS=graph run_in graph ablation.sh "$DATASETS" "$CONFIG" || exit $?
heading "Sensitivity (Table 3)" && run_in paper sensitivity.sh "$FIRST" "${CONFIG%_paper}_paper" || exit $?
heading "Backbones (Table 4)" && bash "$HERE/backbones.sh" "$FIRST" ${BACKBONES:-$CONFIG} "${MORE[@]}" || exit $?
heading "Complexity (Table 5)" && bash "$HERE/complexity.sh" "$FIRST" "$CONFIG" "${MORE[@]}" || exit $?
heading "Text nodes (Fig. 3)" && bash "$HERE/tsne.sh" "$FIRST" "$CONFIG" "${MORE[@]}" || exit $?
heading "Cross-dataset transfer" && bash "$HERE/cross_dataset.sh" "$CROSS" "$CONFIG" "${MORE[@]}" || exit $?
heading "Base-to-new generalization" && bash "$HERE/base_to_new.sh" "$FIRST" "$CONFIG" "${MORE[@]}" || exit $?
heading "Report"
RUNS=()
PAPER_RUNS=()
for DATASET in ${DATASETS//,/ }; do
    RUNS+=("$OUTPUT/$DATASET")
    PAPER_RUNS+=("$OUTPUT/paper/$DATASET")
done
"$PYTHON" -m trainers.hegraph results report "${RUNS[@]}" --out "$OUTPUT/report.html" || exit $?
"$PYTHON" -m trainers.hegraph results report "${PAPER_RUNS[@]}" --out "$OUTPUT/report_paper.html"
