#!/bin/bash
# Reproduce each table and figure of the paper, and write a report. Finished runs are not repeated.
#
#   bash scripts/hegraph/reproduce.sh [DATASET[,DATASET...] CONFIG [SHOTS]] [FLAG ...] [KEY VALUE ...]     (default: digits mini)
#
# Tables 2 and 3 study the paper's layer, so they use CONFIG_paper. Their runs are in OUTPUT/paper and have a separate
# report. The runs of Table 5 are in OUTPUT/complexity. Transfer and sensitivity use the first DATASET. Environment
# variables: BACKBONES (default CONFIG), and those of runs.sh. The experiments of the paper:
#
#   export DATA=/data BACKBONES="rn50 rn101 vit_b32 vit_b16"
#   DATASETS=imagenet,caltech101,oxford_pets,stanford_cars,oxford_flowers,food101,fgvc_aircraft,sun397,dtd,eurosat,ucf101
#   bash scripts/hegraph/reproduce.sh $DATASETS rn50

source "$(dirname "${BASH_SOURCE[0]}")/runs.sh"
parse "[DATASET[,DATASET...] CONFIG [SHOTS]] [FLAG ...] [KEY VALUE ...]" "$@"
read -r -a OTHER_BACKBONES <<<"${BACKBONES:-$CONFIG}"
PAPER=${CONFIG%_paper}_paper
CONFIGS+=("$PAPER" "${OTHER_BACKBONES[@]}")
prepare
HERE=$(dirname "${BASH_SOURCE[0]}")
ALL=$DATASET
FIRST=${DATASETS[0]}
CROSS=$FIRST
[ "$FIRST" != digits ] || CROSS=digits_low
export DATA OUTPUT SEEDS PYTHON
[ -z "${SHOTS:-}" ] || export SHOTS
[ -z "${METHODS:-}" ] || export METHODS

# experiment TITLE SCRIPT ARGUMENT ...: run a script under a heading
experiment() {
    printf '\n== %s\n\n' "$1"
    bash "$HERE/$2" "${@:3}" "${MORE[@]}" || exit $?
}

# experiment_in FOLDER TITLE SCRIPT ARGUMENT ...: run a script with OUTPUT/FOLDER, so that no table mixes recipes
experiment_in() {
    local ALL_OUTPUT=$OUTPUT
    OUTPUT=$ALL_OUTPUT/$1
    experiment "${@:2}" TRAINER.HEGRAPHADAPTER.FEATURES.DIR "$ALL_OUTPUT/features"
    OUTPUT=$ALL_OUTPUT
}

experiment "Few shots (Fig. 2)" few_shot.sh "$ALL" "$CONFIG"
experiment "Domain generalization (Table 1)" domain_generalization.sh "$FIRST" "$CONFIG"
PARTS=table2 experiment_in paper "Ablation (Table 2)" ablation.sh "$ALL" "$PAPER"
PARTS=graph experiment_in graph "Ablation of the graph" ablation.sh "$ALL" "$CONFIG"
experiment_in paper "Sensitivity (Table 3)" sensitivity.sh "$FIRST" "$PAPER"
experiment "Backbones (Table 4)" backbones.sh "$FIRST" "${OTHER_BACKBONES[@]}"
experiment "Complexity (Table 5)" complexity.sh "$FIRST" "$CONFIG"
experiment "Text nodes (Fig. 3)" tsne.sh "$FIRST" "$CONFIG"
experiment "Cross-dataset transfer" cross_dataset.sh "$CROSS" "$CONFIG"
experiment "Base-to-new generalization" base_to_new.sh "$FIRST" "$CONFIG"

[ -z "$DRY_RUN" ] || exit 0
printf '\n== Report\n\n'
RUNS=()
PAPER_RUNS=()
for DATASET in "${DATASETS[@]}"; do
    RUNS+=("$OUTPUT/$(name_of "$DATASET")")
    PAPER_RUNS+=("$OUTPUT/paper/$(name_of "$DATASET")")
done
results report "${RUNS[@]}" --out "$OUTPUT/report.html"
results report "${PAPER_RUNS[@]}" --out "$OUTPUT/report_paper.html"
