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
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..utils.errors import UserError
from ..utils.files import absolute
from ..utils.reading import reading
from .images import is_image, open_below
from .layouts import folders_in, listing
from .splits import SPLIT_NAMES, SPLITS

if TYPE_CHECKING:
    from PIL import Image

logger = logging.getLogger(__name__)

METADATA = "metadata.csv"
TABLE = "a table in UTF-8 with commas between its columns"
COLUMNS = "the columns path,label[,split], with commas between them, in its first line"


class Row(NamedTuple):
    """An image of the user's: its split, its path or another name, and its label as it was found, perhaps None."""

    split: str
    path: str
    label: Any


class OwnImages(NamedTuple):
    """The user's own images, in whatever form they came.

    `classnames` are in label order; () sorts those that occur. The rest is as of `Dataset`.
    """

    rows: list[Row]
    open: Callable[[str], Image.Image]
    root: Path | None = None
    version: Callable[[str], tuple[int, int]] | None = None
    classnames: Sequence[str] = ()


def class_name(label: Any, where: str) -> str:
    """The class name that a label stands for; "" if there is none: null, NaN, or a blank text.

    It is in Unicode's form NFC: macOS writes an umlaut as two characters, and other systems as one.
    """
    if isinstance(label, (list, dict, bytes)):
        raise UserError(f"{where}: the label must be a text or a number, got {label!r:.60}")
    return "" if label is None or label != label else unicodedata.normalize("NFC", str(label).strip())  # NaN != NaN


def files_of_splits(root: Path, suffix: str) -> list[tuple[str, str]]:
    """Split and path of the files with an ending that lie in a folder, in its folders of splits, or in `data`.

    The split of a file is the first word of its name, in upper or lower case, or that of its folder. If no name has a
    split, all are train. Raises UserError if some names begin with a split and others do not, or if one has "val" or
    "test" further on: its images must not become training images by a guess.
    """
    found: dict[str, list[str]] = {}  # file or folder of a split -> paths of files
    inside: dict[str, list[str]] = {}
    for name in listing(root):
        if name.endswith(suffix):
            found[name] = [name]
        elif (root / name).is_dir():
            inside[name] = [f"{name}/{file}" for file in listing(root / name) if file.endswith(suffix)]
            if inside[name] and name.lower() in SPLIT_NAMES:
                found[name] = inside.pop(name)
    found |= {file: [file] for file in inside.pop("data", ())}
    if found and (left_out := [name for name, files in inside.items() if files]):
        said = "%s: the %s files in %s are left out; a folder of a split is called one of %s"
        logger.warning(said, root, suffix, ", ".join(left_out), ", ".join(SPLIT_NAMES))
    splits = {name: _splits_of_words(name.rpartition("/")[2]) for name in found}
    some = any(words[0] for words in splits.values())
    for name, words in splits.items():
        if not words[0] and (some or {"val", "test"} & set(words)):
            allowed = ", ".join(SPLIT_NAMES)
            raise UserError(f"{root}: {name} must begin with its split, one of {allowed}, or be moved away")
    return [(splits[name][0] or "train", path) for name, paths in found.items() for path in paths]


def _splits_of_words(name: str) -> list[str]:
    """The splits that the words of a name stand for, "" for any other word; the words of "testA-0" are "test", "A"."""
    splits = [SPLIT_NAMES.get(word.lower(), "") for word in re.findall(r"[A-Z]*[a-z]*", name)]
    return [SPLIT_NAMES.get(name.lower(), splits[0]), *splits[1:]]


# --- which files are read


def read_files(root: str) -> OwnImages | None:
    """The images of a folder or a CSV file; None if `root` is neither. No image is opened."""
    path = absolute(root)
    if not os.path.exists(path):  # URLs may be too long for `path.exists`
        return None
    names = listing(path) if path.is_dir() else [path.name]
    base = path if path.is_dir() else path.parent
    tables = [base / name for name in names if name.lower().endswith(".csv") and not (base / name).is_dir()]
    folders = [
        (SPLIT_NAMES[name.lower()], name) for name in names if name.lower() in SPLIT_NAMES and (base / name).is_dir()
    ]
    folders.sort(key=lambda each: SPLITS.index(each[0]))
    training = [name for split, name in folders if split == "train" and _holds_images(base / name)]
    if described := [each for each in folders if (base / each[1] / METADATA).is_file()]:
        rows = _read_metadata(base, described)
        _warn_of_others(base, [name for _, name in folders], described)
    elif base / METADATA in tables and "file_name" in _columns(base / METADATA):
        rows = _read_table(base / METADATA)
    elif training and not (len(tables) == 1 and _goes_first(tables[0], base, training)):
        rows = _read_class_folders(base, folders)
        _warn_of_others(base, folders_in(base), folders)
        if tables:
            said = "%s: %d CSV files are not read, since the folder %s is; to use one, give it: --root %s"
            logger.warning(said, base, len(tables), training[0], tables[0])
    elif len(tables) == 1:
        rows = _read_table(tables[0])
    else:
        return None
    return OwnImages(rows, partial(open_below, base), base)


def _warn_of_others(base: Path, names: list[str], folders: list[tuple[str, str]]) -> None:
    """Checks that no two folders mean one split, and warns of further ones, which are left out."""
    for (one, first), (other, second) in pairwise(folders):
        if one == other:  # which of them was meant must not be guessed
            raise UserError(f"{base}: the folders {first} and {second} both mean {one}; keep one of them")
    read = [name for _, name in folders]
    if others := [name for name in names if name not in read]:
        logger.warning("%s: the folders %s are not read; read are %s", base, ", ".join(others), ", ".join(read))


def _goes_first(table: Path, base: Path, training: list[str]) -> bool:
    """Whether a table of labels is read rather than the training folders beside it: not where class folders lie in
    `train`. Under another name, the table may name them in splits of its own."""
    columns = {*_columns(table)}
    return (
        "label" in columns
        and bool(columns & {"path", "file_name"})
        and not ("train" in training and folders_in(base / "train"))
    )


def _holds_images(folder: Path) -> bool:
    return any(is_image(name) or (folder / name).is_dir() for name in listing(folder))


def _read_class_folders(base: Path, folders: list[tuple[str, str]]) -> list[Row]:
    rows: list[Row] = []
    left_out: list[str] = []
    for split, folder in folders:
        for name in listing(base / folder):
            place = f"{folder}/{name}"
            files = listing(base / place) if (base / place).is_dir() else []
            images = [file for file in files if is_image(file)]  # by its name alone: there may be millions
            rows += [Row(split, f"{place}/{file}", name) for file in images]
            left_out += [f"{place}/{file}" for file in files if not is_image(file)] if images else [place]
    if left_out:
        said = "%s: %d files and folders hold no image at train/<class>/IMAGE and are not read, such as %s"
        logger.warning(said, base, len(left_out), left_out[0])
    return rows


# --- tables


def _read_metadata(base: Path, folders: list[tuple[str, str]]) -> list[Row]:
    """The rows of the split folders that hold a `metadata.csv` each."""
    rows = [row for split, name in folders for row in _read_table(base / name / METADATA, name, split)]
    _check_listed_once(base, rows)
    return rows


def _columns(path: Path) -> list[str]:
    """The names of the columns of a table, in lower case; raises UserError if it cannot be read."""
    with reading(path, TABLE), path.open(encoding="utf-8-sig", newline="") as file:
        return [column.strip().lower() for column in next(csv.reader(file, skipinitialspace=True), [])]


def _read_table(path: Path, folder: str = "", default: str = "") -> list[Row]:
    """The rows of a CSV file; Hugging Face's has a column `file_name` for `path`.

    Its images are relative to `folder`, below the folder that is read. A row that names no split is of the `default`
    one, or of that of the first folder of a `file_name`, or train.
    """
    columns = _columns(path)
    place = "path" if "path" in columns else "file_name"
    if repeated := next((column for column in columns if columns.count(column) > 1), ""):
        raise UserError(f"{path} has the column {repeated!r} twice; leave one of them out")
    if not {place, "label"} <= {*columns}:
        raise UserError(f"{path} must have {COLUMNS}; got {','.join(columns) or 'nothing'}")
    with reading(path, TABLE), path.open(encoding="utf-8-sig", newline="") as file:
        table = csv.DictReader(file, columns, skipinitialspace=True, strict=True)
        next(table, None)  # the names of the columns
        rows = [_read_row(row, place, f"{path}, line {table.line_num}") for row in table]
    if place == "file_name" and not default:
        rows = _with_splits_of_folders(path, rows)
    rows = [Row(row.split or default or "train", os.path.join(folder, row.path), row.label) for row in rows]
    _check_listed_once(path.parent, rows)
    return rows


def _read_row(row: dict[Any, Any], place: str, where: str) -> Row:
    """A row of a table, whose split is "" if it names none; `where` names it in messages."""
    image, label, given = ((row.get(key) or "").strip() for key in (place, "label", "split"))
    split = SPLIT_NAMES.get(given.lower(), "")
    if None in row:
        raise UserError(f"{where}: more values than columns; put a value that holds a comma into quotes")
    if not image or not label:
        raise UserError(f"{where}: path and label must not be empty")
    if given and not split:
        raise UserError(f"{where}: split must be train, val or test, got {given!r}")
    return Row(split, Path(os.path.normpath(image)).as_posix(), label)


def _check_listed_once(base: Path, rows: list[Row]) -> None:
    seen: set[str] = set()
    for row in rows:
        file = os.path.abspath(base / row.path)
        if file in seen:
            raise UserError(f"{base}: {row.path} is listed more than once; an image has one label and one split")
        seen.add(file)


def _with_splits_of_folders(path: Path, rows: list[Row]) -> list[Row]:
    """The rows with splits: of those that name none, the first folder of the image's path below the table's.

    If none of them has one, all are train. Some with and some without are an error: an image must not become a training
    image by a guess.
    """
    found: dict[str, str] = {}
    for row in rows:
        folder, slash, _ = Path(os.path.relpath(path.parent / row.path, path.parent)).as_posix().partition("/")
        if not row.split:
            found[row.path] = SPLIT_NAMES.get(folder.lower(), "") if slash else ""
    lacking = next((image for image, split in found.items() if not split), "")
    if lacking and any(found.values()):
        raise UserError(
            f"{path}: {lacking} has no split, and other images have one by their first folder; move it to a folder "
            f"{', '.join(SPLITS)}, or add a column split"
        )
    return [row._replace(split=row.split or found[row.path]) for row in rows]
