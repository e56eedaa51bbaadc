# Sourced by the scripts beside it: leaves in PYTHON an interpreter that has the packages.
#
# The interpreter at hand is used if it has them. Else, with a virtual or conda environment active, nothing is
# touched and the line to run is printed; with none, .venv is made in the checkout and filled, once, and again
# when requirements.txt changes.

cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit 1

has_packages() {
    "$1" - <<'EOF' >/dev/null 2>&1
from importlib.util import find_spec
names = "torch torchvision open_clip torch_geometric yacs gdown sklearn matplotlib tqdm safetensors pytest".split()
raise SystemExit(not all(map(find_spec, names)))
EOF
}

PYTHON=${PYTHON:-$(command -v python3 || command -v python)}
if [ -z "$PYTHON" ]; then
    echo "error: no python3 on PATH; install Python 3.10 to 3.13" >&2
    exit 2
fi

if ! has_packages "$PYTHON"; then
    if [ -n "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ]; then
        echo "error: the active environment lacks packages; run: $PYTHON -m pip install -r $PWD/requirements.txt" >&2
        exit 2
    fi
    if ! "$PYTHON" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))'; then
        echo "error: $PYTHON is $("$PYTHON" -V 2>&1); Python 3.10 to 3.13 is needed (choose one with PYTHON=...)" >&2
        exit 2
    fi
    # .venv/requirements.txt is the list that was installed; it is written last
    if ! cmp -s requirements.txt .venv/requirements.txt; then
        echo "Installing requirements.txt into $PWD/.venv (once; some minutes and up to a few GB) ..."
        rm -rf .venv
        "$PYTHON" -m venv .venv || exit 1
        .venv/bin/python -m pip install --disable-pip-version-check -r requirements.txt || exit 1
        cp requirements.txt .venv/requirements.txt
    fi
    PYTHON=$PWD/.venv/bin/python
fi
