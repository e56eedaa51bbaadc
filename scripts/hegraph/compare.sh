#!/bin/bash
# Compare all methods on the same features, seeds and splits.
#
#   bash scripts/hegraph/compare.sh DATASET CONFIG [SHOTS] [KEY VALUE ...]
#
# DATASET can be a feature bank. Environment variables: SHOTS (default 16), METHODS (default all), and those of runs.sh.

source "$(dirname "${BASH_SOURCE[0]}")/runs.sh"
parse "DATASET CONFIG [SHOTS] [KEY VALUE ...]" "$@"

sweep "${MORE[@]}" --datasets "$DATASET" --configs "$CONFIG" --methods ${METHODS:-all} --shots ${SHOTS:-16}
"$PYTHON" -m trainers.hegraph results compare --by dataset "${RUNS[@]}"
