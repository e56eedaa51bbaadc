# Sourced by the scripts beside it: what their loops share.
#
# From the environment: DATA (folder of the data sets), OUTPUT (default output), SEEDS (default "1 2 3"), and where a
# script compares methods or runs one number of shots, METHODS and SHOTS.

source "$(dirname "${BASH_SOURCE[0]}")/env.sh"

DATA=${DATA:-data}
OUTPUT=${OUTPUT:-output}
SEEDS=${SEEDS:-1 2 3}
ALL_METHODS=$("$PYTHON" -m trainers.hegraph.baselines) || exit 1 # one a line
ALL_METHODS=${ALL_METHODS//$'\n'/ }
BANK_METHODS= # those that run on a feature bank; asked for when there is one

FEATURES_DIR=TRAINER.HEGRAPHADAPTER.FEATURES.DIR

# Prints how a script is called, and ends it
usage() {
    echo "usage: bash scripts/hegraph/$(basename "$0") $1" >&2
    exit 2
}

# Fails with one line if SEEDS, a number of shots or a method is wrong, before anything runs
check_loops() {
    local WORD
    for WORD in $SEEDS $1; do
        if ! [[ $WORD =~ ^-?[0-9]+$ ]]; then
            echo "error: SEEDS and shots are whole numbers, got '$WORD'" >&2
            exit 2
        fi
    done
    for WORD in ${2:-}; do
        if ! [[ " $ALL_METHODS " == *" $WORD "* ]]; then
            echo "error: unknown method '$WORD' in METHODS (known: $ALL_METHODS)" >&2
            exit 2
        fi
    done
}

# runs_on_a_bank METHOD: whether it needs no backbone and so no images
runs_on_a_bank() {
    [ -n "$BANK_METHODS" ] || BANK_METHODS=$("$PYTHON" -m trainers.hegraph.baselines --from-bank) || exit 1
    [[ " ${BANK_METHODS//$'\n'/ } " == *" $1 "* ]]
}

# Of a data set or a feature bank: the name of its folder below OUTPUT
name_of() {
    basename "$1" .safetensors
}

# folder_of METHOD DATASET CONFIG SHOTS: where the runs of one experiment lie, as CoOp lays them out
folder_of() {
    echo "$OUTPUT/$(name_of "$2")/$1/${3}_${4}shots"
}

# run_seeds FOLDER METHOD DATASET CONFIG SHOTS [ARGUMENT ...]
# Trains and tests once for each of SEEDS, in FOLDER/seedK; what is there is not run again. DATASET is a file of
# configs/datasets, or a feature bank; with a bank, a method that needs the backbone is left out.
run_seeds() {
    local FOLDER=$1 METHOD=$2 DATASET=$3 CONFIG=$4 SHOTS=$5 SEED
    local FROM=(--root "$DATA" --dataset-config-file "$ROOT/configs/datasets/$DATASET.yaml")
    shift 5
    if [[ $DATASET == *.safetensors ]]; then
        FROM=(--features "$DATASET")
        if ! runs_on_a_bank "$METHOD"; then
            echo "$METHOD is left out: it needs images, and $DATASET is a feature bank" >&2
            return
        fi
    fi
    [[ " $* " == *" $FEATURES_DIR "* ]] || set -- "$@" $FEATURES_DIR "$OUTPUT/features"
    for SEED in $SEEDS; do
        "$PYTHON" -m trainers.hegraph \
            "${FROM[@]}" \
            --shots "$SHOTS" \
            --seed "$SEED" \
            --trainer "$METHOD" \
            --config-file "$ROOT/configs/trainers/HeGraphAdapter/$CONFIG.yaml" \
            --output-dir "$FOLDER/seed$SEED" \
            "$@" || exit $?
    done
}

# run_methods SUFFIX DATASET CONFIG SHOTS [ARGUMENT ...]
# run_seeds for each of METHODS, in its own folder with SUFFIX behind; adds the folders to RUNS.
run_methods() {
    local SUFFIX=$1 METHOD RUN
    shift
    for METHOD in $METHODS; do
        RUN=$(folder_of "$METHOD" "$1" "$2" "$3")$SUFFIX
        run_seeds "$RUN" "$METHOD" "$@"
        [ ! -d "$RUN" ] || RUNS+=("$RUN")
    done
}
