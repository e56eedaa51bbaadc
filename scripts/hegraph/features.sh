#!/bin/bash
# Trains and tests HeGraphAdapter from feature banks over shots and seeds, then prints the table.
#
#   bash scripts/hegraph/features.sh BANK[,BANK...] CONFIG [SHOTS] [KEY VALUE ...]
#
# SHOTS may be several, as 1,2,4. From the environment: SHOTS (default 16), OUTPUT (default output), SEEDS (default "1 2 3").

source "$(dirname "${BASH_SOURCE[0]}")/runs.sh"
take "BANK[,BANK...] CONFIG [SHOTS] [KEY VALUE ...]" "$@"

sweep "${MORE[@]}" --datasets ${DATASET//,/ } --configs "$CONFIG" --shots ${SHOTS:-16}
"$PYTHON" -m trainers.hegraph.results compare --no-interval "${RUNS[@]}"
