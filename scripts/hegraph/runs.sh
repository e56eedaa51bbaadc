# shellcheck shell=bash disable=SC2034 # the scripts use the variables
# Sourced by the other scripts: functions that they share.
#
# Each script takes --help, --root DIR (folder of the data sets), --output-dir DIR, --seeds N ..., --shots N ...,
# --methods NAME ... and the other flags of `python -m trainers.hegraph sweep`. Environment variables of the same meaning:
# DATA (default data), OUTPUT (default output), SEEDS (default "1 2 3"), SHOTS and METHODS. Flags take precedence. PYTHON
# is the interpreter (default python3).

unset CDPATH # it can redirect cd
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
DATA=${DATA:-data}
OUTPUT=${OUTPUT:-output}
SEEDS=${SEEDS:-1 2 3}
USAGE=

# In a CoOp checkout Dassl trains, which it does once in a process, so each run has its own process
SEPARATE=()
[ ! -f "$ROOT/train.py" ] || SEPARATE=(--separate --verbose)

# fail MESSAGE: print an error, and exit
fail() {
    echo "error: $1" >&2
    exit 2
}

# usage: print the usage of the script, and exit
usage() {
    echo "usage: bash scripts/hegraph/$(basename "$0") $USAGE" >&2
    exit 2
}

# show_help ARGUMENT ...: if an argument is --help, print the head of the script, and exit
show_help() {
    local ARGUMENT
    for ARGUMENT in "$@"; do
        case $ARGUMENT in
            -h | --help)
                sed -n '2,/^$/s/^# \{0,1\}//p' "$0"
                [ -z "$USAGE" ] || echo
                [ -z "$USAGE" ] || sed -n '4,7s/^# //p' "${BASH_SOURCE[0]}"
                exit
                ;;
        esac
    done
}

is_key() {
    [[ $1 =~ ^([A-Z][A-Z0-9_]*(\.[A-Z0-9_]+)+|OUTPUT_DIR|RESUME|SEED|USE_CUDA|VERBOSE)$ ]]
}

is_numbers() {
    [[ $1 =~ ^-?[0-9][0-9,\ -]*$ ]]
}

# take_flags ARGUMENT ...: set DATA, OUTPUT, SEEDS, SHOTS, METHODS and DRY_RUN from their flags, and MORE to the rest
take_flags() {
    local FLAG
    MORE=()
    DRY_RUN=
    while [ $# -gt 0 ]; do
        FLAG=$1
        shift
        if [[ $FLAG == --*=* ]]; then
            set -- "${FLAG#*=}" "$@"
            FLAG=${FLAG%%=*}
        fi
        case $FLAG in
            --root | --output | --output-dir | --seeds | --shots | --methods)
                take_values "$FLAG" "$@"
                shift ${#VALUES[@]}
                ;;
            --datasets | --configs | --suffix | --folders) fail "$FLAG is set by this script; see --help" ;;
            --dry-run) DRY_RUN=1 MORE+=("$FLAG") ;;
            *) MORE+=("$FLAG") ;;
        esac
    done
}

# take_values FLAG WORD ...: set the variable of a flag from the words that follow it, and VALUES to these words
take_values() {
    local FLAG=$1
    VALUES=()
    shift
    while [ $# -gt 0 ] && [[ $1 != --* ]] && ! is_key "$1"; do
        case $FLAG in
            --seeds | --shots) is_numbers "$1" || break ;;
            --root | --output*) [ ${#VALUES[@]} = 0 ] || break ;;
        esac
        VALUES+=("$1")
        shift
    done
    [ ${#VALUES[@]} -gt 0 ] || fail "$FLAG needs a value; see --help"
    case $FLAG in
        --root) DATA=${VALUES[0]} ;;
        --output | --output-dir) OUTPUT=${VALUES[0]} ;;
        --seeds) SEEDS=${VALUES[*]} ;;
        --shots) SHOTS=${VALUES[*]} ;;
        --methods) METHODS=${VALUES[*]} METHODS_FLAG=1 ;;
    esac
}

# parse USAGE ARGUMENT ...: parse DATASET[,DATASET...] CONFIG [SHOTS] [NAME ...] [FLAG ...] [KEY VALUE ...] to the variables
# DATASET, CONFIG and SHOTS, and the arrays DATASETS, CONFIGS, NAMES and MORE. SHOTS is a number, or numbers separated by
# commas or spaces. If USAGE begins with a bracket, the defaults are the digits and mini.
parse() {
    USAGE=$1
    shift
    show_help "$@"
    take_flags "$@"
    NAMES=()
    while [ ${#MORE[@]} -gt 0 ] && [[ ${MORE[0]} != --* ]] && ! is_key "${MORE[0]}"; do
        NAMES+=("${MORE[0]}")
        MORE=("${MORE[@]:1}")
    done
    if [[ $USAGE == \[* ]] && [ ${#NAMES[@]} -lt 2 ]; then
        [[ ${NAMES[0]:-digits} == digits* ]] ||
            fail "name a configuration after ${NAMES[0]}, such as rn50; the default, mini, knows only digits and letters"
        NAMES=("${NAMES[0]:-digits}" mini)
    fi
    [ ${#NAMES[@]} -ge 2 ] || usage
    DATASET=${NAMES[0]}
    CONFIG=${NAMES[1]}
    NAMES=("${NAMES[@]:2}")
    CONFIGS=("$CONFIG")
    DATASETS=("$DATASET")
    [ -f "$DATASET" ] || IFS=, read -r -a DATASETS <<<"$DATASET"
    take_shots
}

# take_shots: move a number of shots at the start of NAMES to SHOTS
take_shots() {
    if is_numbers "${NAMES[0]:-}"; then
        SHOTS=${NAMES[0]}
        NAMES=("${NAMES[@]:1}")
    fi
}

# prepare: check the names, and then set PYTHON to an interpreter with the packages, which may be installed
prepare() {
    local NAME
    [ ${#NAMES[@]} = 0 ] || usage
    for NAME in "${DATASETS[@]}"; do
        check_name "data set" datasets "$NAME"
    done
    for NAME in "${CONFIGS[@]}"; do
        check_name "configuration of a backbone" trainers/HeGraphAdapter "$NAME"
    done
    source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
}

# check_name KIND FOLDER NAME: exit if NAME is neither a path nor the name of a file in a folder of configurations
check_name() {
    local FILE KNOWN=()
    [[ $3 != */* && $3 != *.* ]] || return 0 # a path
    [ ! -f "$ROOT/configs/$2/$3.yaml" ] || return 0
    [ "$2" != datasets ] || [ ! -f "$ROOT/configs/trainers/HeGraphAdapter/$3.yaml" ] ||
        fail "$3 is a configuration of a backbone; name the data set before it: bash scripts/hegraph/$(basename "$0") digits $3"
    for FILE in "$ROOT/configs/$2"/*.yaml; do
        KNOWN+=("$(basename "$FILE" .yaml)")
    done
    PYTHONPATH=$ROOT "${PYTHON:-python3}" - "$1" "$3" "${KNOWN[@]}" >&2 2>/dev/null <<'PYTHON_END' || fail "unknown $1 '$3' (known: ${KNOWN[*]})"
import sys
from trainers.hegraph.utils.errors import unknown  # needs no package
kind, name, *known = sys.argv[1:]
message = str(unknown(kind, name, known))
print("error:", message if "(known:" in message else f"{message} (known: {', '.join(known)})")
PYTHON_END
    exit 2
}

# name_of DATASET: print the name of the folder in OUTPUT for a data set or a feature bank
name_of() {
    basename "$1" .safetensors
}

# sweep [GRID.yaml] ARGUMENT ...
# Run a grid (see `python -m trainers.hegraph sweep --help`) of DATASETS, CONFIGS, SHOTS (default 16) and SEEDS without the
# finished runs, and set RUNS to the folders of its runs.
sweep() {
    local FILE=() GRID COUNTS NUMBERS FOLDER SEED
    if [[ ${1:-} == *.yaml ]]; then
        FILE=("$1")
        shift
    fi
    IFS=', ' read -r -a COUNTS <<<"${SHOTS:-16}"
    IFS=', ' read -r -a NUMBERS <<<"$SEEDS"
    GRID=("${FILE[@]}" "${MORE[@]}" "$@" --datasets "${DATASETS[@]}" --configs "${CONFIGS[@]}")
    GRID+=(--shots "${COUNTS[@]}" --root "$DATA" --output "$OUTPUT" --seeds "${NUMBERS[@]}")
    "$PYTHON" -m trainers.hegraph sweep "${GRID[@]}" "${SEPARATE[@]}" || exit $?
    RUNS=()
    while IFS= read -r FOLDER; do
        for SEED in "${NUMBERS[@]}"; do
            RUNS+=("$FOLDER/seed$SEED")
        done
    done < <("$PYTHON" -m trainers.hegraph sweep "${GRID[@]}" --folders)
}

# methods DEFAULT: set the array CHOSEN to METHODS or the default, names separated by commas or spaces
methods() {
    IFS=', ' read -r -a CHOSEN <<<"${METHODS:-$1}"
}

# only_ours: refuse --methods in a script that studies HeGraphAdapter
only_ours() {
    [ -z "${METHODS_FLAG:-}" ] || fail "--methods has no effect: $(basename "$0") studies HeGraphAdapter; leave it out"
}

# results ARGUMENT ...: show the results of runs, after --dry-run nothing
results() {
    [ -z "$DRY_RUN" ] || return 0
    "$PYTHON" -m trainers.hegraph results "$@" || exit $?
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
