#!/bin/bash
# HeGraphAdapter on several backbones (Table 4).
#
#   bash scripts/hegraph/backbones.sh DATASET CONFIG [CONFIG ...]
#
# From the environment: SHOTS (default 16), and what runs.sh names.

source "$(dirname "${BASH_SOURCE[0]}")/runs.sh"
[ $# -ge 2 ] || usage "DATASET CONFIG [CONFIG ...]"
DATASET=$1
shift

sweep --datasets "$DATASET" --configs "$@" --shots ${SHOTS:-16}
"$PYTHON" -m trainers.hegraph.results compare --by backbone "${RUNS[@]}"
