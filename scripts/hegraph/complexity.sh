#!/bin/bash
# Time of an epoch, trained parameters and peak memory of every method (Table 5).
#
#   bash scripts/hegraph/complexity.sh DATASET CONFIG [KEY VALUE ...]
#
# DATASET may be a feature bank. From the environment: SHOTS (default 16), METHODS (default all), and what runs.sh names.
# Let nothing else run meanwhile.

source "$(dirname "${BASH_SOURCE[0]}")/runs.sh"
[ $# -ge 2 ] || usage "DATASET CONFIG [KEY VALUE ...]"
DATASET=$1
CONFIG=$2
shift 2
SHOTS=${SHOTS:-16}
METHODS=${METHODS:-$ALL_METHODS}
check_loops "$SHOTS" "$METHODS"

RUNS=()
run_methods "" "$DATASET" "$CONFIG" "$SHOTS" "$@"
"$PYTHON" -m trainers.hegraph.results complexity "${RUNS[@]}"
