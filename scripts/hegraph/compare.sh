#!/bin/bash
# Compare all methods on the same features, seeds and splits.
#
#   bash scripts/hegraph/compare.sh DATASET CONFIG [SHOTS] [FLAG ...] [KEY VALUE ...]
#
# DATASET can be a feature bank. Environment variables: SHOTS (default 16), METHODS (default all), and those of runs.sh.

source "$(dirname "${BASH_SOURCE[0]}")/runs.sh"
parse "DATASET CONFIG [SHOTS] [FLAG ...] [KEY VALUE ...]" "$@"
prepare
methods all

sweep --methods "${CHOSEN[@]}"
results compare --by dataset "${RUNS[@]}"
