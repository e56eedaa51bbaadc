#!/bin/bash
# Install HeGraphAdapter into a CoOp checkout, without changing CoOp's files. To update it, run the script again: it
# replaces its files, and keeps yours in its folders of configurations and scripts.
#
#   bash scripts/hegraph/install.sh PATH_TO_COOP [--link | --remove]
#
# --link creates symbolic links instead of copies, so that changes of this checkout take effect there. --remove removes
# everything that this script installed.

set -euo pipefail
unset CDPATH # it can redirect cd
SOURCE=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)

usage() {
    echo "usage: bash scripts/hegraph/install.sh PATH_TO_COOP [--link | --remove]" >&2
    exit 2
}

COOP=
LINK=
REMOVE=
for ARGUMENT in "$@"; do
    case $ARGUMENT in
        --link) LINK=1 ;;
        --remove) REMOVE=1 ;;
        -h | --help)
            sed -n '2,/^$/s/^# \{0,1\}//p' "$0"
            exit
            ;;
        -*) usage ;;
        *) [ -z "$COOP" ] || usage; COOP=$ARGUMENT ;;
    esac
done
[ -n "$COOP" ] || usage
if [ ! -f "$COOP/train.py" ] || [ ! -f "$COOP/datasets/oxford_pets.py" ]; then
    echo "error: $COOP is not a CoOp checkout: expected train.py and datasets/oxford_pets.py" >&2
    exit 2
fi
COOP=$(cd "$COOP" && pwd)
if [ "$COOP" = "$SOURCE" ]; then
    echo "error: $COOP is this checkout; expected the folder of CoOp" >&2
    exit 2
fi

FOLDERS="trainers/hegraph configs/trainers/HeGraphAdapter scripts/hegraph"
FILES="configs/datasets/digits.yaml configs/datasets/digits_low.yaml configs/datasets/digits_high.yaml configs/datasets/folder.yaml configs/sweeps/graph.yaml" # CoOp has no files of these names
RENAMED="requirements.txt:requirements-hegraph.txt LICENSE:LICENSE-hegraph" # CoOp has files of these names
MARK=.hegraph-installed # file in each copied folder, with the commit

# List the files in an installed folder that this checkout lacks, such as the user's own configurations
own_files() {
    [ "$1" != trainers/hegraph ] && [ -d "$COOP/$1" ] && [ ! -L "$COOP/$1" ] || return 0
    (cd "$COOP/$1" && find . -type f ! -name $MARK) | while IFS= read -r FILE; do
        [ -e "$SOURCE/$1/$FILE" ] || printf '%s\n' "$FILE"
    done
}

for FOLDER in $FOLDERS; do # check all folders before the first change
    TO=$COOP/$FOLDER
    if [ -e "$TO" ] && [ ! -L "$TO" ] && [ ! -e "$TO/$MARK" ]; then
        echo "error: $TO exists, but was not installed by this script; rename or move it" >&2
        exit 2
    fi
    if [ -n "$LINK$REMOVE" ] && [ -n "$(own_files "$FOLDER")" ]; then
        WHAT="a link would replace"
        [ -z "$REMOVE" ] || WHAT="--remove would remove"
        echo "error: $WHAT your files in $TO:" "$(own_files "$FOLDER" | tr '\n' ' '); move them" >&2
        exit 2
    fi
done

if [ -n "$REMOVE" ]; then
    for FOLDER in $FOLDERS; do
        rm -rf "${COOP:?}/$FOLDER"
    done
    for FILE in $FILES; do
        rm -f "$COOP/$FILE"
    done
    for PAIR in $RENAMED; do
        rm -f "$COOP/${PAIR#*:}"
    done
    rmdir "$COOP/configs/sweeps" "$COOP/configs/trainers" "$COOP/scripts" 2>/dev/null || true # if they are empty
    for CREATED in hegraph-requirements.txt hegraph-unfinished; do # the environment of env.sh
        [ ! -f "$COOP/.venv/$CREATED" ] || rm -rf "$COOP/.venv"
    done
    echo "Removed HeGraphAdapter from $COOP"
    exit
fi

COMMIT=$(git -C "$SOURCE" describe --always --dirty --abbrev=12 --exclude='*' 2>/dev/null || echo unknown)
echo "Installed HeGraphAdapter in"
for FOLDER in $FOLDERS; do
    FROM=$SOURCE/$FOLDER
    TO=$COOP/$FOLDER
    mkdir -p "$(dirname "$TO")"
    rm -rf "$TO.new"
    if [ -n "$LINK" ]; then
        ln -s "$FROM" "$TO.new"
    else # renamed when it is complete
        cp -R "$FROM" "$TO.new"
        find "$TO.new" -name __pycache__ -prune -exec rm -rf {} +
        [ "$FOLDER" != scripts/hegraph ] || rm -f "$TO.new/test.sh" # the tests are not installed
        [ -e "$TO.new/$MARK" ] || echo "$COMMIT" >"$TO.new/$MARK"
        own_files "$FOLDER" | while IFS= read -r FILE; do
            mkdir -p "$(dirname "$TO.new/$FILE")"
            cp "$TO/$FILE" "$TO.new/$FILE"
        done
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
    FROM=$SOURCE/${PAIR#*:} # this checkout can be a CoOp checkout with HeGraphAdapter installed
    [ -f "$FROM" ] || FROM=$SOURCE/${PAIR%:*}
    cp "$FROM" "$COOP/${PAIR#*:}"
    echo "  $COOP/${PAIR#*:}"
done
cat <<EOF

Next, in $COOP, with your Dassl environment active:
  pip install -r requirements-hegraph.txt
  DATA=/path/to/datasets bash scripts/hegraph/main.sh caltech101 rn50 16
EOF
