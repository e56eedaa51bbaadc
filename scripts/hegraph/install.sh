#!/bin/bash
# Puts HeGraphAdapter into a CoOp checkout. No file of CoOp's is changed; run it again after an update.
#
#   bash scripts/hegraph/install.sh PATH_TO_COOP [--link]
#
# --link makes symbolic links instead of copies, so that edits here are seen there at once.

set -euo pipefail
SOURCE=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)

usage() {
    echo "usage: bash scripts/hegraph/install.sh PATH_TO_COOP [--link]" >&2
    exit 2
}

COOP=
LINK=
for ARGUMENT in "$@"; do
    case $ARGUMENT in
        --link) LINK=1 ;;
        -*) usage ;;
        *) [ -z "$COOP" ] || usage; COOP=$ARGUMENT ;;
    esac
done
[ -n "$COOP" ] || usage
if [ ! -f "$COOP/train.py" ] || [ ! -f "$COOP/datasets/oxford_pets.py" ]; then
    echo "error: $COOP is no CoOp checkout: it has no train.py and datasets/oxford_pets.py" >&2
    exit 2
fi
COOP=$(cd "$COOP" && pwd)
if [ "$COOP" = "$SOURCE" ]; then
    echo "error: $COOP is this checkout itself" >&2
    exit 2
fi

# Tells a copy of ours from a folder of somebody else's, and results which commit of ours they come from
MARK=.hegraph-installed
COMMIT=$(git -C "$SOURCE" describe --always --dirty --abbrev=12 --exclude='*' 2>/dev/null || echo unknown)
install_folder() {
    local FROM=$SOURCE/$1 TO=$COOP/$1
    if [ -e "$TO" ] && [ ! -L "$TO" ] && [ ! -e "$TO/$MARK" ]; then
        echo "error: $TO exists and was not put there by this script; move it away" >&2
        exit 2
    fi
    mkdir -p "$(dirname "$TO")"
    if [ -n "$LINK" ]; then
        rm -rf "$TO"
        ln -s "$FROM" "$TO"
    else # whole or not at all
        rm -rf "$TO.new"
        cp -R "$FROM" "$TO.new"
        find "$TO.new" -name __pycache__ -prune -exec rm -rf {} +
        echo "$COMMIT" >"$TO.new/$MARK"
        rm -rf "$TO"
        mv "$TO.new" "$TO"
    fi
    echo "  $TO"
}

echo "HeGraphAdapter is in"
install_folder trainers/hegraph
install_folder configs/trainers/HeGraphAdapter
install_folder scripts/hegraph
# Ours beside CoOp's, which has none of these names
for FILE in configs/datasets/digits.yaml configs/datasets/folder.yaml; do
    cp "$SOURCE/$FILE" "$COOP/$FILE"
    echo "  $COOP/$FILE"
done
cp "$SOURCE/requirements.txt" "$COOP/requirements-hegraph.txt"
echo "  $COOP/requirements-hegraph.txt"
cat <<EOF

Next, in $COOP, with your Dassl environment active:
  pip install -r requirements-hegraph.txt
  DATA=/path/to/datasets bash scripts/hegraph/main.sh caltech101 rn50 16
EOF
