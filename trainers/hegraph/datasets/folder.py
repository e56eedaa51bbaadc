"""The user's own images in files: a folder of class folders, a CSV file, or Hugging Face's `metadata.csv`.

ROOT/train/<class>/*.jpg         and, if there are any, ROOT/val/<class>/ and ROOT/test/<class>/
ROOT/labels.csv, or ROOT itself  with the columns path,label[,split] and paths relative to the file
ROOT/train/metadata.csv          with the columns file_name,label, and the same for val and test
ROOT/metadata.csv                with the columns file_name,label[,split]; without a split, a path says it

What all forms of own images share is here as well: their rows, and the names of splits and classes.
"""

from __future__ import annotations

import csv
import logging
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from ..utils.errors import UserError
from ..utils.files import absolute
from ..utils.reading import read_text, reading
from .images import is_image, open_below
from .layouts import folders_in, listing
from .splits import SPLIT_NAMES

logger = logging.getLogger(__name__)

METADATA = "metadata.csv"
TABLE = "a table in UTF-8 with commas between its columns"
COLUMNS = "the columns path,label[,split], each once and with commas between them, in its first line"


class Row(NamedTuple):
    """An image of the user's: its split, its path or another name, and its label as it was found, perhaps None."""

    split: str
    path: str
    label: Any


class OwnImages(NamedTuple):
    """The user's own images, in whatever form they came: `classnames` are in label order, () sorts those that occur."""

    rows: list[Row]
    open: Callable[[str], Image.Image]
    root: Path | None = None
    version: Callable[[str], tuple[int, int]] | None = None
    classnames: Sequence[str] = ()


def class_name(label: Any, where: str) -> str:
    """The class name that a label stands for, in Unicode's form NFC; "" if there is none: null, NaN or a blank text."""
    if isinstance(label, (list, dict, bytes)):
        raise UserError(f"{where}: the label must be a text or a number, got {label!r:.60}")
    return "" if label is None or label != label else unicodedata.normalize("NFC", str(label).strip())  # NaN != NaN


def files_of_splits(root: Path, suffix: str) -> list[tuple[str, str]]:
    """Split and path of the files with an ending that lie in a folder, in its folders of splits, or in `data`.

    The split of a file is that of its folder, or the first word of its name, in upper or lower case. If no name has a
    split, all are train. Raises UserError if some names begin with a split and others do not, or if one has "val" or
    "test" further on: its images must not become training images by a guess.
    """
    splits: dict[str, list[str]] = {}  # path -> the splits that the words of its name stand for, "" for other words
    for folder in ("", *folders_in(root)):
        files = [os.path.join(folder, name) for name in listing(root / folder) if name.endswith(suffix)]
        if folder.lower() in SPLIT_NAMES:
            splits |= {file: [SPLIT_NAMES[folder.lower()]] for file in files}
        elif folder in ("", "data"):
            splits |= {file: _splits_of_words(os.path.basename(file)) for file in files}
        elif files:
            said = "%s: the %s files in %s are left out; a folder of a split is called one of %s"
            logger.warning(said, root, suffix, folder, ", ".join(SPLIT_NAMES))
    some = any(words[0] for words in splits.values())
    for file, words in splits.items():
        if not words[0] and (some or {"val", "test"} & set(words)):
            allowed = ", ".join(SPLIT_NAMES)
            raise UserError(f"{root}: {file} must begin with its split, one of {allowed}, or be moved away")
    return [(words[0] or "train", file) for file, words in splits.items()]


def _splits_of_words(name: str) -> list[str]:
    """The splits that the words of a name stand for, "" for any other word; the words of "testA-0" are "test", "A"."""
    return [SPLIT_NAMES.get(word.lower(), "") for word in re.findall(r"[A-Z]*[a-z]*", name)]


# --- which files are read


def read_files(root: str) -> OwnImages | None:
    """The images of a folder or a CSV file; None if `root` is neither. No image is opened."""
    path = absolute(root)
    if not os.path.exists(path):  # URLs may be too long for `path.exists`
        return None
    names = listing(path) if path.is_dir() else [path.name]
    base = path if path.is_dir() else path.parent
    tables = [base / name for name in names if name.lower().endswith(".csv") and not (base / name).is_dir()]
    of_splits = [name for name in names if name.lower() in SPLIT_NAMES and (base / name).is_dir()]
    folders = {name: SPLIT_NAMES[name.lower()] for name in of_splits}
    if described := {name: split for name, split in folders.items() if (base / name / METADATA).is_file()}:
        rows = [row for name, split in described.items() for row in _read_table(base / name / METADATA, name, split)]
        _check_folders(base, described)
    elif base / METADATA in tables and "file_name" in read_text(base / METADATA).partition("\n")[0].lower():
        rows = _read_table(base / METADATA)
    elif any(split == "train" and folders_in(base / name) for name, split in folders.items()):
        rows = _read_class_folders(base, folders)
        _check_folders(base, folders)
        if tables:
            said = "%s: %d CSV files are not read, since there are class folders; to use one, give it: --root %s"
            logger.warning(said, base, len(tables), tables[0])
    elif len(tables) == 1:
        rows = _read_table(tables[0])
    else:
        return None
    numbers = Counter(os.path.abspath(base / row.path) for row in rows)
    if twice := next((file for file, number in numbers.items() if number > 1), ""):
        raise UserError(f"{base}: {twice} is listed more than once; an image has one label and one split")
    return OwnImages(rows, partial(open_below, base), base)


def _check_folders(base: Path, read: dict[str, str]) -> None:
    """Checks that no two folders that are read mean one split, and warns of further ones, which are left out."""
    splits = list(read.values())
    if double := [name for name, split in read.items() if splits.count(split) > 1]:
        raise UserError(f"{base}: the folders {' and '.join(double)} both mean {read[double[0]]}; keep one of them")
    if others := [name for name in folders_in(base) if name not in read]:
        logger.warning("%s: the folders %s are not read; read are %s", base, ", ".join(others), ", ".join(read))


def _read_class_folders(base: Path, folders: dict[str, str]) -> list[Row]:
    rows: list[Row] = []
    left_out: list[str] = []
    for place, split, name in [(f"{top}/{n}", split, n) for top, split in folders.items() for n in listing(base / top)]:
        files = listing(base / place) if (base / place).is_dir() else []
        images = [file for file in files if is_image(file)]  # by its name alone: there may be millions
        rows += [Row(split, f"{place}/{file}", name) for file in images]
        left_out += [f"{place}/{file}" for file in files if not is_image(file)] if images else [place]
    if left_out:
        said = "%s: %d files and folders hold no image at train/<class>/IMAGE and are not read, such as %s"
        logger.warning(said, base, len(left_out), left_out[0])
    return rows


# --- tables


def _read_table(path: Path, folder: str = "", default: str = "") -> list[Row]:
    """The rows of a CSV file, whose images are relative to `folder`; Hugging Face's has `file_name` for `path`.

    A row that names no split is of the `default` one, or of that of the first folder of a `file_name`, or train. If
    some have one and others do not, that is an error: an image must not become a training image by a guess.
    """
    with reading(path, TABLE), path.open(encoding="utf-8-sig", newline="") as file:
        table = csv.DictReader(file, skipinitialspace=True, strict=True)
        table.fieldnames = columns = [column.strip().lower() for column in table.fieldnames or ()]
        place = "path" if "path" in columns else "file_name"
        if not {place, "label"} <= {*columns} or len({*columns}) < len(columns):
            raise UserError(f"{path} must have {COLUMNS}; got {','.join(columns) or 'nothing'}")
        rows = [_read_row(row, place, f"{path}, line {table.line_num}") for row in table]
    if place == "file_name" and not default:
        tops = [os.path.dirname(row.path).partition("/")[0].lower() for row in rows]
        rows = [row._replace(split=row.split or SPLIT_NAMES.get(top, "")) for row, top in zip(rows, tops)]
        lacking = next((row.path for row in rows if not row.split), "")
        if lacking and any(row.split for row in rows):
            said = "has no split, and other images have one; move it to a folder train, or add a column split"
            raise UserError(f"{path}: {lacking} {said}")
    return [Row(row.split or default or "train", os.path.join(folder, row.path), row.label) for row in rows]


def _read_row(row: dict[Any, Any], place: str, where: str) -> Row:
    """A row of a table, whose split is "" if it names none; `where` names it in messages."""
    if None in row:
        raise UserError(f"{where}: more values than columns; put a value that holds a comma into quotes")
    image, label, split = ((row.get(key) or "").strip() for key in (place, "label", "split"))
    if not image or not label:
        raise UserError(f"{where}: path and label must not be empty")
    if split and split.lower() not in SPLIT_NAMES:
        raise UserError(f"{where}: split must be train, val or test, got {split!r}")
    return Row(SPLIT_NAMES.get(split.lower(), ""), Path(os.path.normpath(image)).as_posix(), label)
