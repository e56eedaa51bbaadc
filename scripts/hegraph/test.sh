#!/bin/bash
# Run the tests in two processes with one thread each. --runslow includes the slow tests (see CONTRIBUTING.md).
#
#   bash scripts/hegraph/test.sh [PYTEST_ARGUMENT ...]

case ${1:-} in
    -h | --help)
        sed -n '2,/^$/s/^# \{0,1\}//p' "$0"
        exit
        ;;
esac
TESTED="pytest xdist"
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
if [ ! -d "$ROOT/tests" ]; then
    echo "error: $ROOT has no tests; run this script in a checkout of HeGraphAdapter" >&2
    exit 2
fi
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
cd "$ROOT" && "$PYTHON" -m pytest -n 2 --dist worksteal "$@"
