#!/bin/bash
# Measure the time of an epoch, the number of trained parameters and the peak memory of each method (Table 5).
#
#   bash scripts/hegraph/complexity.sh DATASET CONFIG [SHOTS] [KEY VALUE ...]
#
# DATASET can be a feature bank. Environment variables: SHOTS (default 16), METHODS (default all), and those of runs.sh.
# Other programs distort the measurement, so stop them first.

source "$(dirname "${BASH_SOURCE[0]}")/runs.sh"
parse "DATASET CONFIG [SHOTS] [KEY VALUE ...]" "$@"

# each run in its own process, so that its peak memory does not include that of other runs
SEPARATE=(--separate)
sweep "${MORE[@]}" --datasets "$DATASET" --configs "$CONFIG" --methods ${METHODS:-all} --shots ${SHOTS:-16}
"$PYTHON" -m trainers.hegraph results complexity "${RUNS[@]}"
