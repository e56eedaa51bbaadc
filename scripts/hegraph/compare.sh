#!/bin/bash
# All methods side by side, on the same features, seeds and splits.
#
#   bash scripts/hegraph/compare.sh DATASET CONFIG [SHOTS] [KEY VALUE ...]
#
# DATASET may be a feature bank. From the environment: SHOTS (default 16), METHODS (default all), and what runs.sh names.

source "$(dirname "${BASH_SOURCE[0]}")/runs.sh"
take "DATASET CONFIG [SHOTS] [KEY VALUE ...]" "$@"

sweep "${MORE[@]}" --datasets "$DATASET" --configs "$CONFIG" --methods ${METHODS:-all} --shots ${SHOTS:-16}
"$PYTHON" -m trainers.hegraph.results compare --by dataset "${RUNS[@]}"
