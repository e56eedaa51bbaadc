"""The user's own images in files: a folder of class folders, a CSV file, or Hugging Face's `metadata.csv`.

ROOT/train/<class>/*.jpg         and, if there are any, ROOT/val/<class>/ and ROOT/test/<class>/
ROOT/<class>/*.jpg               each class is split at random, as CoOp splits a data set without a split
ROOT/labels.csv, or ROOT itself  with the columns path,label[,split] and paths relative to the file
ROOT/train/metadata.csv          with the columns file_name,label, and the same for val and test
ROOT/metadata.csv                with the columns file_name,label[,split]; without a split, a path says it

The columns of a table are separated by commas, semicolons or tabs. Its paths may have the `\\` of Windows.

What all forms of own images share is here as well: their rows, and the names of splits and classes.
"""

from __future__ import annotations

import csv
import logging
import os
import random
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from ..utils.errors import UserError
from ..utils.files import absolute
from ..utils.reading import read_text, reading
from .images import is_image, open_below
from .layouts import list_folders, list_names, split_classes
from .splits import SPLIT_NAMES, SPLITS

logger = logging.getLogger(__name__)

METADATA = "metadata.csv"
TABLE = "a table in UTF-8 with commas, semicolons or tabs between its columns"
DELIMITERS = ",;\t"
NONE_OF_THESE = "none of these"  # the folder, and in tables the name, of images of no class
NON_CLASS_FOLDERS = ("unlabelled", NONE_OF_THESE)  # folders of `teach`, which lie beside those of the classes
OUTPUT_FILES = ("result.json", "config.json")  # a folder that holds one is the output of a run, or a model
SPLIT_SEED = 1  # of the split of class folders, whatever the seed of the run
LEAST_IMAGES = 4  # of a class, for one image or more in each of three splits


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
    for folder in ("", *list_folders(root)):
        files = [os.path.join(folder, name) for name in list_names(root / folder) if name.endswith(suffix)]
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
    names = list_names(path) if path.is_dir() else [path.name]
    base = path if path.is_dir() else path.parent
    tables = [base / name for name in names if name.lower().endswith(".csv") and not (base / name).is_dir()]
    of_splits = [name for name in names if name.lower() in SPLIT_NAMES and (base / name).is_dir()]
    folders = {name: SPLIT_NAMES[name.lower()] for name in of_splits}
    if described := {name: split for name, split in folders.items() if (base / name / METADATA).is_file()}:
        rows = [row for name, split in described.items() for row in _read_table(base / name / METADATA, name, split)]
        _check_folders(base, described)
    elif base / METADATA in tables and "file_name" in read_text(base / METADATA).partition("\n")[0].lower():
        rows = _read_table(base / METADATA)
    elif any(split == "train" and list_folders(base / name) for name, split in folders.items()):
        places = [(f"{top}/{name}", split, name) for top, split in folders.items() for name in list_names(base / top)]
        rows = _rows_of_folders(base, places, "train/<class>", [])
        _check_folders(base, folders)
        if tables:
            said = "%s: %d CSV files are not read, since there are class folders; to use one, give it: --root %s"
            logger.warning(said, base, len(tables), tables[0])
    elif len(tables) == 1 and (not path.is_dir() or _lists_images(tables[0]) or not class_folders(base)):
        rows = _read_table(tables[0])
    else:
        return None
    numbers = Counter(os.path.abspath(base / row.path) for row in rows)
    if twice := next((file for file, number in numbers.items() if number > 1), ""):
        raise UserError(f"{base}: {twice} is listed more than once; an image has one label and one split")
    return OwnImages(rows, partial(open_below, base), base)


def class_folders(base: Path) -> list[str]:
    """List the folders in a folder that hold images of a class each, in sorted order.

    Hidden folders, `NON_CLASS_FOLDERS` and outputs of this program are no classes. UserError if a folder beside them
    has the name of a split.
    """
    classes, splits = [], []
    for name in list_folders(base):
        files = list_names(base / name)
        if name.lower() in SPLIT_NAMES:
            splits.append(name)
        elif name.lower() not in NON_CLASS_FOLDERS and not {*OUTPUT_FILES} & {*files} and any(map(is_image, files)):
            classes.append(name)
    if classes and splits:
        raise UserError(
            f"{base} holds the folder of a split, {splits[0]}, and class folders beside it, such as {classes[0]}; "
            f"expected {base}/train/<class>/*.jpg, or class folders alone; if {splits[0]} is a class, rename it"
        )
    return classes


def read_class_folders(root: str, split: bool = True) -> OwnImages | None:
    """Read class folders that lie directly in a folder; None without any.

    Each class is split into 50 % train, 20 % val and 30 % test by CoOp's protocol. The split depends on the names of
    folders and files alone. Without `split`, all images are train.

    Raises:
        UserError: If there are fewer than two classes to split, or a class has fewer images than `LEAST_IMAGES`; and as
            of `class_folders`.
    """
    base = absolute(root)
    classes = class_folders(base) if os.path.isdir(base) else []
    if not classes:
        return None
    others = [name for name in list_names(base) if name not in classes]
    rows = _rows_of_folders(base, [(name, "train", name) for name in classes], "<class>", others)
    return OwnImages(_split(base, classes, rows) if split else rows, partial(open_below, base), base)


def _split(base: Path, classes: Sequence[str], rows: Sequence[Row]) -> list[Row]:
    """Split the images of class folders, each class alone; errors are those of `read_class_folders`."""
    if len(classes) < 2:
        raise UserError(f"{base} holds images in one folder alone, {classes[0]}; expected two class folders or more")
    paths = {name: [row.path for row in of_class] for name, of_class in groupby(rows, lambda row: row.label)}
    if small := [name for name in classes if len(paths[name]) < LEAST_IMAGES]:
        raise UserError(
            f"{base}: {len(small)} of {len(classes)} classes have fewer than {LEAST_IMAGES} images, too few to be split"
            f", such as {small[0]}; add images, or move all class folders into {base / 'train'}, which is not split"
        )
    pools = split_classes(((label, name, paths[name]) for label, name in enumerate(classes)), random.Random(SPLIT_SEED))
    said = "%s has no folder train: each class is split at random into 50 %% train, 20 %% val, 30 %% test images (%s)"
    logger.warning(said, base, ", ".join(f"{len(pools[name])} {name}" for name in SPLITS))
    return [Row(name, item.path, item.classname) for name in SPLITS for item in pools[name]]


def _check_folders(base: Path, read: dict[str, str]) -> None:
    """Checks that no two folders that are read mean one split, and warns of further ones, which are left out."""
    splits = list(read.values())
    if double := [name for name, split in read.items() if splits.count(split) > 1]:
        raise UserError(f"{base}: the folders {' and '.join(double)} both mean {read[double[0]]}; keep one of them")
    if others := [name for name in list_folders(base) if name not in read]:
        logger.warning("%s: the folders %s are not read; read are %s", base, ", ".join(others), ", ".join(read))


def _rows_of_folders(base: Path, places: Iterable[tuple[str, str, str]], form: str, others: Sequence[str]) -> list[Row]:
    """The images of class folders, given as path, split and class, with a warning of what is not read, as `others`."""
    rows: list[Row] = []
    left_out = [*others]
    for place, split, name in places:
        files = list_names(base / place) if (base / place).is_dir() else []
        images = [file for file in files if is_image(file)]  # by its name alone: there may be millions
        rows += [Row(split, f"{place}/{file}", name) for file in images]
        left_out += [f"{place}/{file}" for file in files if not is_image(file)] if images else [place]
    if left_out:
        said = "%s: %d files and folders hold no image at %s/IMAGE and are not read, such as %s"
        logger.warning(said, base, len(left_out), form, left_out[0])
    return rows


# --- tables


def read_table(path: Path, *needed: str) -> tuple[str, list[dict[str, str]]]:
    """Read a CSV file that lists images.

    Args:
        path: The file.
        needed: Columns that it must have, beside `path` or Hugging Face's `file_name`.

    Returns:
        The name of the column of paths; and for each row its values by column, and under "where" its place in messages.
        Paths have `/` between their parts.

    Raises:
        UserError: If a column is missing or there twice, a row has more values than columns, or a needed value is
            empty.
    """
    with reading(path, TABLE), path.open(encoding="utf-8-sig", newline="") as file:
        delimiter = max(DELIMITERS, key=file.readline().count)
        file.seek(0)
        table = csv.DictReader(file, skipinitialspace=True, strict=True, delimiter=delimiter)
        table.fieldnames = columns = [column.strip().lower() for column in table.fieldnames or ()]
        place = "path" if "path" in columns else "file_name"
        if not {place, *needed} <= {*columns} or len({*columns}) < len(columns):
            must = ",".join(("path", *needed)) + ("[,split]" if needed else "")
            raise UserError(
                f"{path} must have the columns {must} in its first line, each once, with commas, semicolons or tabs "
                f"between them; got {','.join(columns) or 'nothing'}"
            )
        rows = []
        for row in table:
            where = f"{path}, line {table.line_num}"
            if None in row:
                raise UserError(f"{where}: more values than columns; put a value that holds a comma into quotes")
            values = {column: (value or "").strip() for column, value in row.items()}
            if empty := [column for column in (place, *needed) if not values[column]]:
                raise UserError(f"{where}: {' and '.join(empty)} must not be empty")
            rows.append({**values, place: _posix(path.parent, values[place]), "where": where})
        return place, rows


def _lists_images(path: Path) -> bool:
    """Whether the first line of a CSV file has the columns of a table of images."""
    columns = set(re.split(rf"[{DELIMITERS}]", re.sub(r'[\s"]', "", read_text(path, TABLE).partition("\n")[0].lower())))
    return "label" in columns and bool(columns & {"path", "file_name"})


def _posix(base: Path, path: str) -> str:
    """A path with `/`. A `\\` in it is taken for one of Windows, unless there is a file of this very name."""
    if "\\" in path and not os.path.exists(base / path):
        path = path.replace("\\", "/")
    return Path(os.path.normpath(path)).as_posix()


def _read_table(path: Path, folder: str = "", default: str = "") -> list[Row]:
    """The rows of a CSV file, whose images are relative to `folder`.

    A row that names no split is of the `default` one, or of that of the first folder of a `file_name`, or train. If
    some have one and others do not, that is an error: an image must not become a training image by a guess.
    """
    place, table = read_table(path, "label")
    rows = [_read_row(row, place) for row in table]
    if place == "file_name" and not default:
        tops = [os.path.dirname(row.path).partition("/")[0].lower() for row in rows]
        rows = [row._replace(split=row.split or SPLIT_NAMES.get(top, "")) for row, top in zip(rows, tops)]
        lacking = next((row.path for row in rows if not row.split), "")
        if lacking and any(row.split for row in rows):
            said = "has no split, and other images have one; move it to a folder train, or add a column split"
            raise UserError(f"{path}: {lacking} {said}")
    return [Row(row.split or default or "train", os.path.join(folder, row.path), row.label) for row in rows]


def _read_row(row: dict[str, str], place: str) -> Row:
    """A row of a table, whose split is "" if it names none."""
    split = row.get("split", "")
    if split and split.lower() not in SPLIT_NAMES:
        raise UserError(f"{row['where']}: split must be train, val or test, got {split!r}")
    return Row(SPLIT_NAMES.get(split.lower(), ""), row[place], row["label"])
