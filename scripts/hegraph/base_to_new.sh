#!/bin/bash
# Trains on the first half of the classes, tests on it and on the other half; the harmonic mean of the two (CoCoOp).
#
#   bash scripts/hegraph/base_to_new.sh DATASET CONFIG [SHOTS] [KEY VALUE ...]
#
# DATASET may be a feature bank. From the environment: SHOTS (default 16), METHODS (default those that have a rule for
# other classes; from a bank without CoOp, which needs images), and what runs.sh names.

source "$(dirname "${BASH_SOURCE[0]}")/runs.sh"
take "DATASET CONFIG [SHOTS] [KEY VALUE ...]" "$@"
DEFAULT="ZeroShot CLIPAdapter HeGraphAdapter"
if [ -f "$DATASET" ]; then
    NAME=$("$PYTHON" - "$DATASET" <<'EOF'
import sys
from pathlib import Path
from trainers.hegraph.features.bank import BankFile
from trainers.hegraph.utils.errors import run_cli
sys.exit(run_cli(lambda: print(BankFile(Path(sys.argv[1])).dataset)))
EOF
    ) || exit $?
else
    DEFAULT="$DEFAULT CoOp"
    NAME=$(sed -n 's/^ *NAME: *"\(.*\)".*/\1/p' "$ROOT/configs/datasets/$DATASET.yaml" 2>/dev/null)
fi

sweep "${MORE[@]}" --datasets "$DATASET" --configs "$CONFIG" --methods ${METHODS:-$DEFAULT} \
    --shots ${SHOTS:-16} --suffix _base_to_new \
    DATASET.SUBSAMPLE_CLASSES base DATASET.TARGET_DATASETS "$(list_of "$NAME:new")"
"$PYTHON" -m trainers.hegraph.results base-to-new "${RUNS[@]}"
