#!/bin/bash
# Ablations: Table 2 of the paper, and a study of the graph.
#
#   bash scripts/hegraph/ablation.sh DATASET[,DATASET...] CONFIG [SHOTS] [FLAG ...] [KEY VALUE ...]
#
# Table 2 has the rows base, T-N, T-P, T and full. For the paper's recipe, use a configuration that ends in _paper. The
# default recipe also has messages in closed form.
# The second table compares the default recipe (CONFIG without _paper) with zero-shot CLIP, biases without a graph, the
# removal of each relation, and controls whose messages go to wrong classes. configs/sweeps/graph.yaml explains its rows.
#
# DATASET can be a feature bank. Environment variables: PARTS (default "table2 graph"), SHOTS (default 16 for Table 2,
# "1 4 16" for the second table), and those of runs.sh.

source "$(dirname "${BASH_SOURCE[0]}")/runs.sh"
parse "DATASET[,DATASET...] CONFIG [SHOTS] [FLAG ...] [KEY VALUE ...]" "$@"
only_ours
prepare

NODE=TRAINER.HEGRAPHADAPTER.VARIANT
GRAPH=$ROOT/configs/sweeps/graph.yaml
GIVEN=${SHOTS:-}
read -r -a ALL_PARTS <<<"${PARTS:-table2 graph}"
for PART in "${ALL_PARTS[@]}"; do
    case $PART in
        table2)
            SHOTS=${GIVEN:-16}
            CONFIGS=("$CONFIG")
            sweep --case base $NODE base --case T-N $NODE T-N --case T-P $NODE T-P --case T $NODE T --case "" $NODE full
            results compare --by dataset "${RUNS[@]}"
            ;;
        graph)
            SHOTS=${GIVEN:-1 4 16}
            CONFIGS=("${CONFIG%_paper}")
            sweep "$GRAPH" --suffix _graph
            results compare --cases "$GRAPH" "${RUNS[@]}"
            ;;
        *)
            fail "unknown part '$PART' in PARTS (known: table2 graph)"
            ;;
    esac
done
