#!/bin/bash
# Draw the positive text nodes before and after message passing by t-SNE, and print their mean distance (Fig. 3).
#
#   bash scripts/hegraph/tsne.sh DATASET CONFIG [SHOTS] [KEY VALUE ...]
#
# Environment variables: SHOTS (default 16), and those of runs.sh. The figure uses the first of SEEDS.

source "$(dirname "${BASH_SOURCE[0]}")/runs.sh"
parse "DATASET CONFIG [SHOTS] [KEY VALUE ...]" "$@"
SEEDS=${SEEDS%% *}

sweep "${MORE[@]}" --datasets "$DATASET" --configs "$CONFIG" --shots ${SHOTS:-16}
"$PYTHON" -m trainers.hegraph results tsne "${RUNS[0]}/seed$SEEDS" --out "$OUTPUT/tsne/$(name_of "$DATASET")_$CONFIG"
