#!/bin/bash
# Measure the time of an epoch, the number of trained parameters and the peak memory of each method (Table 5).
#
#   bash scripts/hegraph/complexity.sh DATASET CONFIG [SHOTS] [FLAG ...] [KEY VALUE ...]
#
# DATASET can be a feature bank. Environment variables: SHOTS (default 16), METHODS (default all), and those of runs.sh.
# The runs are in OUTPUT/complexity, each in its own process, because the peak memory of a process with several runs is that
# of the largest. Images are encoded before, in other processes. Other programs distort the measurement, so stop
# them first.

source "$(dirname "${BASH_SOURCE[0]}")/runs.sh"
parse "DATASET CONFIG [SHOTS] [FLAG ...] [KEY VALUE ...]" "$@"
prepare
methods all
MORE=(TRAINER.HEGRAPHADAPTER.FEATURES.DIR "$OUTPUT/features" "${MORE[@]}")
OUTPUT=$OUTPUT/complexity
SEPARATE+=(--separate)

[ -f "$DATASET" ] || sweep --methods ZeroShot --suffix _encoding
sweep --methods "${CHOSEN[@]}"
results complexity "${RUNS[@]}"
