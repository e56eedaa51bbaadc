#!/bin/bash
# The positive text nodes before and after message passing, by t-SNE, and their mean distance (Fig. 3).
#
#   bash scripts/hegraph/tsne.sh DATASET CONFIG [SHOTS] [KEY VALUE ...]
#
# From the environment: SHOTS (default 16), and what runs.sh names. The picture is of the first of SEEDS.

source "$(dirname "${BASH_SOURCE[0]}")/runs.sh"
take "DATASET CONFIG [SHOTS] [KEY VALUE ...]" "$@"
SEEDS=${SEEDS%% *}

sweep "${MORE[@]}" --datasets "$DATASET" --configs "$CONFIG" --shots ${SHOTS:-16}
"$PYTHON" -m trainers.hegraph.results tsne "${RUNS[0]}/seed$SEEDS" --out "$OUTPUT/tsne/$(name_of "$DATASET")_$CONFIG"
