# shellcheck shell=bash
# Sourced by the other scripts: set PYTHON to an interpreter that has the required packages, and ROOT to the checkout.
#
# The current interpreter is used if it has the packages. Otherwise, if a virtual or conda environment is active, the
# script prints the command that installs them, and stops. If none is active, the packages are installed into .venv in the
# checkout. This happens once, and again when requirements.txt changes.

unset CDPATH # it can redirect cd
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
REQUIREMENTS=$ROOT/requirements-hegraph.txt # its name in a CoOp checkout, where requirements.txt is CoOp's
[ -f "$REQUIREMENTS" ] || REQUIREMENTS=$ROOT/requirements.txt
# The scripts work in any current folder, so Python finds the package by this path
export PYTHONPATH=$ROOT${PYTHONPATH:+:$PYTHONPATH}

# test.sh sets TESTED to the packages of the tests
has_packages() {
    local MORE_NAMES
    read -r -a MORE_NAMES <<<"${TESTED:-}"
    "$1" - "${MORE_NAMES[@]}" <<'EOF' >/dev/null 2>&1
import sys
from importlib.util import find_spec
names = "torch torchvision open_clip yacs gdown requests pydantic sklearn scipy matplotlib pandas jinja2 tqdm safetensors".split()
raise SystemExit(not all(map(find_spec, [*names, *sys.argv[1:]])))
EOF
}

# quoted WORD ...: print a command that can be pasted
quoted() {
    local COMMAND
    printf -v COMMAND '%q ' "$@"
    printf '%s' "${COMMAND% }"
}

PYTHON=${PYTHON:-$(command -v python3 || command -v python)}
if [ -n "$PYTHON" ] && ! command -v "$PYTHON" >/dev/null; then
    echo "error: PYTHON=$PYTHON is not a program; expected a Python interpreter" >&2
    exit 2
fi
if [ -z "$PYTHON" ]; then
    echo "error: no python3 on PATH; install Python 3.10 to 3.13" >&2
    exit 2
fi

if ! has_packages "$PYTHON"; then
    if [ -n "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ]; then
        echo "error: the active environment lacks packages; run: $(quoted "$PYTHON" -m pip install -r "$REQUIREMENTS")" >&2
        exit 2
    fi
    if ! "$PYTHON" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))'; then
        echo "error: $PYTHON is $("$PYTHON" -V 2>&1); Python 3.10 to 3.13 is needed (choose one with PYTHON=...)" >&2
        exit 2
    fi
    VENV=$ROOT/.venv
    MARK=$VENV/hegraph-requirements.txt # copy of the installed requirements, written last
    if [ -d "$VENV" ] && [ ! -f "$MARK" ] && [ ! -f "$VENV/hegraph-unfinished" ]; then # created by the user
        if ! has_packages "$VENV/bin/python"; then
            echo "error: $VENV lacks packages; run: $(quoted "$VENV/bin/python" -m pip install -r "$REQUIREMENTS")" >&2
            exit 2
        fi
    elif ! cmp -s "$REQUIREMENTS" "$MARK"; then
        echo "Installing $(basename "$REQUIREMENTS") into $VENV (once; takes minutes, and up to a few GB) ..."
        rm -rf "$VENV"
        mkdir "$VENV" && touch "$VENV/hegraph-unfinished" || exit 1
        "$PYTHON" -m venv "$VENV" || exit 1
        "$VENV/bin/python" -m pip install --disable-pip-version-check -r "$REQUIREMENTS" || exit 1
        cp "$REQUIREMENTS" "$MARK" && rm "$VENV/hegraph-unfinished"
    fi
    PYTHON=$VENV/bin/python
fi
