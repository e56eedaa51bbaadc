#!/bin/bash
# Compare backbones with HeGraphAdapter (Table 4).
#
#   bash scripts/hegraph/backbones.sh DATASET CONFIG [CONFIG ...] [SHOTS] [FLAG ...] [KEY VALUE ...]
#
# Environment variables: SHOTS (default 16), and those of runs.sh.

source "$(dirname "${BASH_SOURCE[0]}")/runs.sh"
parse "DATASET CONFIG [CONFIG ...] [SHOTS] [FLAG ...] [KEY VALUE ...]" "$@"
while [ ${#NAMES[@]} -gt 0 ] && ! is_numbers "${NAMES[0]}"; do
    CONFIGS+=("${NAMES[0]}")
    NAMES=("${NAMES[@]:1}")
done
take_shots
prepare
methods HeGraphAdapter

sweep --methods "${CHOSEN[@]}"
results compare --by backbone "${RUNS[@]}"
