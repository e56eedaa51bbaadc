#!/bin/bash
# Compare backbones with HeGraphAdapter (Table 4).
#
#   bash scripts/hegraph/backbones.sh DATASET CONFIG [CONFIG ...] [SHOTS] [KEY VALUE ...]
#
# Environment variables: SHOTS (default 16), and those of runs.sh.

source "$(dirname "${BASH_SOURCE[0]}")/runs.sh"
CONFIGS=()
while [ $# -ge 2 ] && [[ ! $2 =~ ^(-|[0-9]|[[:upper:]][[:upper:][:digit:]_.]*$) ]]; do # neither SHOTS nor a KEY
    CONFIGS+=("$2")
    set -- "$1" "${@:3}"
done
[ ${#CONFIGS[@]} -gt 0 ] || usage "DATASET CONFIG [CONFIG ...] [SHOTS] [KEY VALUE ...]"
parse "" "$1" "${CONFIGS[0]}" "${@:2}"

sweep "${MORE[@]}" --datasets "$DATASET" --configs "${CONFIGS[@]}" --shots ${SHOTS:-16}
"$PYTHON" -m trainers.hegraph results compare --by backbone "${RUNS[@]}"
