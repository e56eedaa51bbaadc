#!/bin/bash
# Measure the time of an epoch, the number of trained parameters and the peak memory of each method (Table 5).
#
#   bash scripts/hegraph/complexity.sh DATASET CONFIG [SHOTS] [FLAG ...] [KEY VALUE ...]
#
# DATASET can be a feature bank. Environment variables: SHOTS (default 16), METHODS (default all), and those of runs.sh.
# The runs are in OUTPUT/complexity. Each is a process that trains and tests one method, because the peak memory of a
# process with several runs is that of the largest. Images are encoded before, in other processes, and probabilities are
# not calibrated. Other programs, and --workers, distort the times.

source "$(dirname "${BASH_SOURCE[0]}")/runs.sh"
parse "DATASET CONFIG [SHOTS] [FLAG ...] [KEY VALUE ...]" "$@"
prepare
methods all
MORE=(TRAINER.HEGRAPHADAPTER.FEATURES.DIR "$OUTPUT/features" TRAINER.HEGRAPHADAPTER.CALIBRATE off "${MORE[@]}")
OUTPUT=$OUTPUT/complexity
SEPARATE+=(--separate)

[ -f "$DATASET" ] || sweep --methods ZeroShot --suffix _encoding
sweep --methods "${CHOSEN[@]}"
results complexity "${RUNS[@]}"
