#!/bin/bash
# Puts HeGraphAdapter into a CoOp checkout. No file of CoOp's is changed; run it again after an update.
#
#   bash scripts/hegraph/install.sh PATH_TO_COOP [--link]
#
# --link makes symbolic links instead of copies, so that edits here are seen there at once.

set -euo pipefail
unset CDPATH # with it, cd may go elsewhere and print where
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

FOLDERS="trainers/hegraph configs/trainers/HeGraphAdapter scripts/hegraph"
FILES="configs/datasets/digits.yaml configs/datasets/folder.yaml configs/sweeps/graph.yaml" # beside CoOp's, which has none of these names
RENAMED="requirements.txt:requirements-hegraph.txt LICENSE:LICENSE-hegraph" # CoOp has files of these names
MARK=.hegraph-installed # a copy of a folder of ours holds this file, which names the commit

for FOLDER in $FOLDERS; do # check everything before anything is changed
    TO=$COOP/$FOLDER
    if [ -e "$TO" ] && [ ! -L "$TO" ] && [ ! -e "$TO/$MARK" ]; then
        echo "error: $TO exists and was not put there by this script; move it away" >&2
        exit 2
    fi
done

COMMIT=$(git -C "$SOURCE" describe --always --dirty --abbrev=12 --exclude='*' 2>/dev/null || echo unknown)
echo "HeGraphAdapter is in"
for FOLDER in $FOLDERS; do
    FROM=$SOURCE/$FOLDER
    TO=$COOP/$FOLDER
    mkdir -p "$(dirname "$TO")"
    rm -rf "$TO.new"
    if [ -n "$LINK" ]; then
        ln -s "$FROM" "$TO.new"
    else # the copy takes its name when it is complete
        cp -R "$FROM" "$TO.new"
        find "$TO.new" -name __pycache__ -prune -exec rm -rf {} +
        [ -e "$TO.new/$MARK" ] || echo "$COMMIT" >"$TO.new/$MARK"
    fi
    rm -rf "$TO"
    mv "$TO.new" "$TO"
    echo "  $TO"
done
for FILE in $FILES; do
    mkdir -p "$(dirname "$COOP/$FILE")"
    cp "$SOURCE/$FILE" "$COOP/$FILE"
    echo "  $COOP/$FILE"
done
for PAIR in $RENAMED; do
    FROM=$SOURCE/${PAIR#*:} # this checkout may itself be one of CoOp's, with ours in it
    [ -f "$FROM" ] || FROM=$SOURCE/${PAIR%:*}
    cp "$FROM" "$COOP/${PAIR#*:}"
    echo "  $COOP/${PAIR#*:}"
done
cat <<EOF

Next, in $COOP, with your Dassl environment active:
  pip install -r requirements-hegraph.txt
  DATA=/path/to/datasets bash scripts/hegraph/main.sh caltech101 rn50 16
EOF
