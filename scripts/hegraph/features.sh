#!/bin/bash
# Trains and tests HeGraphAdapter from feature banks over shots and seeds, then prints the table.
#
#   bash scripts/hegraph/features.sh BANK[,BANK...] CONFIG SHOTS[,SHOTS...] [KEY VALUE ...]
#
# From the environment: OUTPUT (default output), SEEDS (default "1 2 3").

source "$(dirname "${BASH_SOURCE[0]}")/runs.sh"
[ $# -ge 3 ] || usage "BANK[,BANK...] CONFIG SHOTS[,SHOTS...] [KEY VALUE ...]"
BANKS=$1
CONFIG=$2
ALL_SHOTS=$3
shift 3

sweep "$@" --datasets ${BANKS//,/ } --configs "$CONFIG" --shots ${ALL_SHOTS//,/ }
"$PYTHON" -m trainers.hegraph.results compare --no-interval "${RUNS[@]}"
