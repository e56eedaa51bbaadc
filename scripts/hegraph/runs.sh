# Sourced by the other scripts: functions that they share.
#
# Environment variables of all scripts: DATA (folder of the data sets, default data), OUTPUT (default output), SEEDS
# (default "1 2 3"), and PYTHON (interpreter, default python3).

source "$(dirname "${BASH_SOURCE[0]}")/env.sh"

DATA=${DATA:-data}
OUTPUT=${OUTPUT:-output}
SEEDS=${SEEDS:-1 2 3}

# In a CoOp checkout Dassl trains, which it does once in a process, so each run has its own process
SEPARATE=()
[ ! -f "$ROOT/train.py" ] || SEPARATE=(--separate --verbose)

# usage ARGUMENTS: print the usage of the script, and exit
usage() {
    echo "usage: bash scripts/hegraph/$(basename "$0") $1" >&2
    exit 2
}

# parse USAGE ARGUMENT ...: parse DATASET CONFIG [SHOTS] [MORE ...] to the variables DATASET, CONFIG, SHOTS and the array
# MORE. SHOTS is a number, or numbers separated by commas or spaces. Without it the environment variable is used.
parse() {
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

# name_of DATASET: print the name of the folder in OUTPUT for a data set or a feature bank
name_of() {
    basename "$1" .safetensors
}

# sweep ARGUMENT ...
# Run a grid (see `python -m trainers.hegraph sweep --help`) without the finished runs, and set RUNS to the folders of its
# runs without seeds.
sweep() {
    local GRID=("$@" --root "$DATA" --output "$OUTPUT" --seeds $SEEDS) FOLDER
    "$PYTHON" -m trainers.hegraph sweep "${GRID[@]}" "${SEPARATE[@]}" || exit $?
    RUNS=()
    while IFS= read -r FOLDER; do
        RUNS+=("$FOLDER")
    done < <("$PYTHON" -m trainers.hegraph sweep "${GRID[@]}" --folders)
}

# parse_targets: move the names before the KEY VALUE pairs from MORE to the array TARGETS; keys contain a dot
parse_targets() {
    TARGETS=()
    while [ ${#MORE[@]} -gt 0 ] && [[ ${MORE[0]} != *.* && ${MORE[0]} != -* ]]; do
        TARGETS+=("${MORE[0]}")
        MORE=("${MORE[@]:1}")
    done
}

# list_of NAME ...: print the names as a list for a configuration key
list_of() {
    printf '['
    printf "'%s'," "$@"
    printf ']'
}

# Install Gradio for a page, only into the environment of env.sh
need_gradio() {
    local GRADIO
    if [ "$PYTHON" = "$ROOT/.venv/bin/python" ] && [ -f "$ROOT/.venv/hegraph-requirements.txt" ] &&
        ! "$PYTHON" -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("gradio") is None)'; then
        GRADIO=$("$PYTHON" -c 'from trainers.hegraph.apps.launch import GRADIO; print(GRADIO)') || exit 1
        "$PYTHON" -m pip install --quiet --disable-pip-version-check "$GRADIO" || exit 1
    fi
}
