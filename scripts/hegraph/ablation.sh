#!/bin/bash
# What each part of the method adds: Table 2 of the paper, and whether the graph earns its place.
#
#   bash scripts/hegraph/ablation.sh DATASET[,DATASET...] CONFIG [SHOTS] [KEY VALUE ...]
#
# Table 2 has the rows base, T-N, T-P, T and full. For the paper's reading of them, give one of the configurations that
# end in _paper: the default recipe adds messages in closed form.
# The second table is about the default recipe, with CONFIG less its _paper: zero-shot CLIP, biases without a graph,
# each relation left out, and controls whose messages go to wrong classes. Its rows are explained in
# configs/sweeps/graph.yaml.
#
# A DATASET may be a feature bank. From the environment: PARTS (default "table2 graph"), SHOTS (default 16 for Table 2 and
# "1 4 16" for the other), and what runs.sh names.

source "$(dirname "${BASH_SOURCE[0]}")/runs.sh"
take "DATASET[,DATASET...] CONFIG [SHOTS] [KEY VALUE ...]" "$@"

NODE=TRAINER.HEGRAPHADAPTER.VARIANT
GRAPH=$ROOT/configs/sweeps/graph.yaml
for PART in ${PARTS:-table2 graph}; do
    case $PART in
        table2)
            sweep "${MORE[@]}" --datasets ${DATASET//,/ } --configs "$CONFIG" --shots ${SHOTS:-16} \
                --case base $NODE base --case T-N $NODE T-N --case T-P $NODE T-P --case T $NODE T --case "" $NODE full
            "$PYTHON" -m trainers.hegraph.results compare --by dataset "${RUNS[@]}" || exit $?
            ;;
        graph)
            sweep "$GRAPH" "${MORE[@]}" --suffix _graph --datasets ${DATASET//,/ } --configs "${CONFIG%_paper}" --shots ${SHOTS:-1 4 16}
            "$PYTHON" -m trainers.hegraph.results compare --cases "$GRAPH" "${RUNS[@]}" || exit $?
            ;;
        *)
            echo "error: unknown part '$PART' in PARTS (known: table2 graph)" >&2
            exit 2
            ;;
    esac
done
