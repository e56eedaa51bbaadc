#!/bin/bash
# Runs the tests.
#
#   bash scripts/hegraph/test.sh [PYTEST_ARGUMENT ...]

source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
cd "$ROOT" && "$PYTHON" -m pytest "$@"
