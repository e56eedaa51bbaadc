#!/bin/bash
# Time of an epoch, trained parameters and peak memory of every method (Table 5).
#
#   bash scripts/hegraph/complexity.sh DATASET CONFIG [SHOTS] [KEY VALUE ...]
#
# DATASET may be a feature bank. From the environment: SHOTS (default 16), METHODS (default all), and what runs.sh names.
# Let nothing else run meanwhile.

source "$(dirname "${BASH_SOURCE[0]}")/runs.sh"
take "DATASET CONFIG [SHOTS] [KEY VALUE ...]" "$@"

# a process of its own for each run, so that no memory is another's
SEPARATE=(--separate)
sweep "${MORE[@]}" --datasets "$DATASET" --configs "$CONFIG" --methods ${METHODS:-all} --shots ${SHOTS:-16}
"$PYTHON" -m trainers.hegraph.results complexity "${RUNS[@]}"
