#!/bin/bash
# Draw the positive text nodes before and after message passing by t-SNE, and print their mean distance (Fig. 3).
#
#   bash scripts/hegraph/tsne.sh DATASET CONFIG [SHOTS] [FLAG ...] [KEY VALUE ...]
#
# Environment variables: SHOTS (default 16), and those of runs.sh. The figure uses the first of SEEDS.

source "$(dirname "${BASH_SOURCE[0]}")/runs.sh"
parse "DATASET CONFIG [SHOTS] [FLAG ...] [KEY VALUE ...]" "$@"
only_ours
prepare
SEEDS=${SEEDS%%[ ,]*}

sweep --methods HeGraphAdapter
results tsne "${RUNS[0]}" --out "$OUTPUT/tsne/$(name_of "$DATASET")_$CONFIG"
