# Sourced by the scripts beside it: what they share.
#
# From the environment: DATA (folder of the data sets), OUTPUT (default output), SEEDS (default "1 2 3"), and where a
# script compares methods or runs one number of shots, METHODS and SHOTS.

source "$(dirname "${BASH_SOURCE[0]}")/env.sh"

DATA=${DATA:-data}
OUTPUT=${OUTPUT:-output}
SEEDS=${SEEDS:-1 2 3}

# Inside CoOp, Dassl drives the runs, and Dassl trains once in a process; so each run has its own
SEPARATE=()
[ ! -f "$ROOT/train.py" ] || SEPARATE=(--separate --verbose)

# Prints how a script is called, and ends it
usage() {
    echo "usage: bash scripts/hegraph/$(basename "$0") $1" >&2
    exit 2
}

# take USAGE WORD ...: puts the words of a script, DATASET CONFIG [SHOTS] [MORE ...], into DATASET, CONFIG, SHOTS and the
# list MORE. SHOTS is a number, or several with commas or spaces between them; else that of the environment stays.
take() {
    local USAGE=$1
    shift
    [ $# -ge 2 ] || usage "$USAGE"
    DATASET=$1
    CONFIG=$2
    shift 2
    if [[ ${1:-} =~ ^-?[0-9][0-9,\ ]*$ ]]; then
        SHOTS=${1//,/ }
        shift
    fi
    MORE=("$@")
}

# Of a data set or a feature bank: the name of its folder below OUTPUT
name_of() {
    basename "$1" .safetensors
}

# sweep ARGUMENT ...
# Does the runs of a grid, see `python -m trainers.hegraph sweep --help`; what is there is not run again. The folders of
# the runs, without seeds, are put into RUNS.
sweep() {
    local GRID=("$@" --root "$DATA" --output "$OUTPUT" --seeds $SEEDS) FOLDER
    "$PYTHON" -m trainers.hegraph sweep "${GRID[@]}" "${SEPARATE[@]}" || exit $?
    RUNS=()
    while IFS= read -r FOLDER; do
        RUNS+=("$FOLDER")
    done < <("$PYTHON" -m trainers.hegraph sweep "${GRID[@]}" --folders)
}

# take_targets: moves the words of MORE that stand before its KEY VALUE pairs, whose keys have a dot, into the list TARGETS
take_targets() {
    TARGETS=()
    while [ ${#MORE[@]} -gt 0 ] && [[ ${MORE[0]} != *.* && ${MORE[0]} != -* ]]; do
        TARGETS+=("${MORE[0]}")
        MORE=("${MORE[@]:1}")
    done
}

# list_of NAME ...: a list of names as a configuration key takes it
list_of() {
    printf '['
    printf "'%s'," "$@"
    printf ']'
}

# For a page: the environment that env.sh has made gets Gradio as well; any other is left alone
need_gradio() {
    local GRADIO
    if [ "$PYTHON" = "$ROOT/.venv/bin/python" ] && [ -f "$ROOT/.venv/hegraph-requirements.txt" ] &&
        ! "$PYTHON" -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("gradio") is None)'; then
        GRADIO=$("$PYTHON" -c 'from trainers.hegraph.demo.__main__ import GRADIO; print(GRADIO)') || exit 1
        "$PYTHON" -m pip install --quiet --disable-pip-version-check "$GRADIO" || exit 1
    fi
}
