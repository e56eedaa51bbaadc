#!/bin/bash
# Train and test HeGraphAdapter on feature banks over shots and seeds, and print the table.
#
#   bash scripts/hegraph/features.sh BANK[,BANK...] CONFIG [SHOTS] [FLAG ...] [KEY VALUE ...]
#
# SHOTS can be a list such as 1,2,4. Environment variables: SHOTS (default 16), and those of runs.sh.

source "$(dirname "${BASH_SOURCE[0]}")/runs.sh"
parse "BANK[,BANK...] CONFIG [SHOTS] [FLAG ...] [KEY VALUE ...]" "$@"
prepare
methods HeGraphAdapter

sweep --methods "${CHOSEN[@]}"
results compare --no-interval "${RUNS[@]}"
