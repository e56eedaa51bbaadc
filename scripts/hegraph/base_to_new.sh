#!/bin/bash
# Base-to-new generalization (CoCoOp): train on the first half of the classes, test on both halves, and print the
# harmonic mean.
#
#   bash scripts/hegraph/base_to_new.sh DATASET CONFIG [SHOTS] [FLAG ...] [KEY VALUE ...]
#
# DATASET can be a feature bank. Environment variables: SHOTS (default 16), METHODS (default: methods that can classify
# new classes, for a bank without CoOp, which needs images), and those of runs.sh.

source "$(dirname "${BASH_SOURCE[0]}")/runs.sh"
parse "DATASET CONFIG [SHOTS] [FLAG ...] [KEY VALUE ...]" "$@"
prepare
DEFAULT="ZeroShot CLIPAdapter HeGraphAdapter"
if [ -f "$DATASET" ]; then
    NAME=$("$PYTHON" - "$DATASET" <<'EOF'
import sys
from pathlib import Path
from trainers.hegraph.features.bank import BankFile
from trainers.hegraph.utils.command_line import run_cli
sys.exit(run_cli(lambda: print(BankFile(Path(sys.argv[1])).dataset)))
EOF
    ) || exit $?
else
    DEFAULT+=" CoOp"
    NAME=$(sed -n 's/^ *NAME: *"\(.*\)".*/\1/p' "$ROOT/configs/datasets/$DATASET.yaml" 2>/dev/null)
fi

methods "$DEFAULT"
sweep --methods "${CHOSEN[@]}" --suffix _base_to_new \
    DATASET.SUBSAMPLE_CLASSES base DATASET.TARGET_DATASETS "$(list_of "$NAME:new")"
results base-to-new "${RUNS[@]}"
