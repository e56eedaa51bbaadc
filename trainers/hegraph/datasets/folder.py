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
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..utils.errors import UserError
from ..utils.files import absolute
from ..utils.reading import reading
from .images import is_image, open_image
from .layouts import listing
from .splits import SPLITS

if TYPE_CHECKING:
    from PIL import Image

logger = logging.getLogger(__name__)

# A folder, a file, a column or a split that other programs name otherwise; as Hugging Face's `datasets` knows them
SPLIT_NAMES = {
    "train": "train", "training": "train",
    "val": "val", "validation": "val", "valid": "val", "dev": "val",
    "test": "test", "testing": "test", "eval": "test", "evaluation": "test",
}  # fmt: skip
METADATA = "metadata.csv"
TABLE = "a table in UTF-8 with commas between its columns"
COLUMNS = "the columns path,label[,split], with commas between them, in its first line"

# What is not read below the folders of splits
LEFT_OUT = {
    "empty": "%d class folders hold no image, such as %s; without a training image there is no such class",
    "deeper": "%d folders inside class folders are not read, such as %s; move their images up",
    "loose": "%d images lie in no class folder, such as %s; move them into one",
    "files": "%d files are no images and are left out, such as %s",
}


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
    split, all are train.

    Raises:
        UserError: If some names begin with a split and others do not, or if a name has "val" or "test" further on: its
            images must not become training images by a guess.
    """
    found: dict[str, list[str]] = {}  # file or folder of a split -> paths of files
    left_out = []
    folders = [name for name in listing(root) if not name.endswith(suffix) and (root / name).is_dir()]
    inside = {name: [f"{name}/{file}" for file in listing(root / name) if file.endswith(suffix)] for name in folders}
    for name in listing(root):
        if name.endswith(suffix):
            found[name] = [name]
        elif inside.get(name) and name.lower() in SPLIT_NAMES:
            found[name] = inside[name]
        elif inside.get(name) and name != "data":
            left_out.append(name)
    found |= {file: [file] for file in inside.get("data", ())}
    if found and left_out:
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
    folders, tables = _split_folders(path), _tables(path)
    table = tables[0] if len(tables) == 1 else None
    training = [path / name for split, name in folders if split == "train" and _holds_images(path / name)]
    base, rows = path, None
    if any((path / name / METADATA).is_file() for _, name in folders):
        rows = _read_metadata(path, folders)
    elif (path / METADATA).is_file() and "file_name" in _columns(path / METADATA):
        rows = _read_table(path / METADATA)
    elif training and not (table is not None and _goes_first(table, training)):
        rows = _read_class_folders(path, folders)
        if tables:
            said = "%s: %d CSV files are not read, since the folder %s is; to use one, give it: --root %s"
            logger.warning(said, path, len(tables), training[0].name, tables[0])
    elif table is not None:
        base, rows = table.parent, _read_table(table)
    return None if rows is None else OwnImages(rows, partial(_open_below, base), base)


def _open_below(base: Path, path: str) -> Image.Image:
    return open_image(base / path)


def _tables(path: Path) -> list[Path]:
    """The CSV files of a folder, or the file itself if it is one."""
    paths = [path / name for name in listing(path)] if path.is_dir() else [path]
    return [each for each in paths if each.suffix.lower() == ".csv" and not each.is_dir()]


def _split_folders(path: Path) -> list[tuple[str, str]]:
    """Split and name of the folders of splits in a folder, train first."""
    names = [name for name in listing(path) if name.lower() in SPLIT_NAMES] if path.is_dir() else []
    found = [(SPLIT_NAMES[name.lower()], name) for name in names if (path / name).is_dir()]
    return sorted(found, key=lambda each: SPLITS.index(each[0]))


def _check_one_folder(path: Path, folders: list[tuple[str, str]]) -> None:
    """Raises UserError if several folders mean one split: which of them was meant must not be guessed."""
    for (one, first), (other, second) in pairwise(folders):
        if one == other:
            raise UserError(
                f"{path}: the folders {first} and {second} both mean {one}; keep one of them, or move the others away"
            )


def _goes_first(table: Path, training: list[Path]) -> bool:
    """Whether a table of labels is read rather than the training folders beside it: not where class folders lie in
    `train`. Under another name, the table may name them in splits of its own."""
    if any(folder.name == "train" and _holds_folders(folder) for folder in training):
        return False
    columns = _columns(table)
    return "label" in columns and ("path" in columns or "file_name" in columns)


def _holds_images(folder: Path) -> bool:
    return any(is_image(name) for name in listing(folder)) or _holds_folders(folder)


def _holds_folders(folder: Path) -> bool:
    return any((folder / name).is_dir() for name in listing(folder))


# --- class folders


def _read_class_folders(path: Path, folders: list[tuple[str, str]]) -> list[Row]:
    _check_one_folder(path, folders)
    known = {name for _, name in folders}
    if strange := [name for name in listing(path) if name not in known and (path / name).is_dir()]:
        logger.warning("%s: %s is none of train, val and test, and is not read", path, ", ".join(strange))
    rows: list[Row] = []
    left_out: dict[str, list[str]] = defaultdict(list)
    for split, folder in folders:
        for name in listing(path / folder):
            inside = f"{folder}/{name}"
            if (path / inside).is_dir():
                rows += [Row(split, image, name) for image in _read_class(path, inside, left_out)]
            else:
                left_out["loose" if is_image(name) else "files"].append(inside)
    for kind, said in LEFT_OUT.items():
        if found := left_out[kind]:
            logger.warning(f"%s: {said}", path, len(found), found[0])
    return rows


def _read_class(path: Path, folder: str, left_out: dict[str, list[str]]) -> list[str]:
    """The images of a class folder; what is left out is added to `left_out`."""
    images = []
    for name in listing(path / folder):
        inside = f"{folder}/{name}"
        if is_image(name):  # known by its name alone, since there may be millions of images
            images.append(inside)
        else:
            left_out["deeper" if (path / inside).is_dir() else "files"].append(inside)
    if not images:
        left_out["empty"].append(folder)
    return images


# --- tables


def _read_metadata(path: Path, folders: list[tuple[str, str]]) -> list[Row]:
    """The rows of a folder whose split folders hold a `metadata.csv` each."""
    read = [(split, name) for split, name in folders if (path / name / METADATA).is_file()]
    _check_one_folder(path, read)
    if left_out := [name for split, name in folders if (split, name) not in read]:
        said = "%s: left out are the folders %s; a folder that is read holds a %s"
        logger.warning(said, path, ", ".join(left_out), METADATA)
    rows = [row for split, name in read for row in _read_table(path / name / METADATA, name, split)]
    _check_listed_once(path / METADATA, rows)
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
    given = _columns(path)
    by_folder = "path" not in given
    columns = ["path" if by_folder and column == "file_name" else column for column in given]
    if repeated := next((column for column in columns if columns.count(column) > 1), ""):
        raise UserError(f"{path} has the column {repeated!r} twice; leave one of them out")
    if not {"path", "label"} <= set(columns):
        raise UserError(f"{path} must have {COLUMNS}; got {','.join(given) or 'nothing'}")
    with reading(path, TABLE), path.open(encoding="utf-8-sig", newline="") as file:
        table = csv.DictReader(file, columns, skipinitialspace=True, strict=True)
        next(table, None)  # the names of the columns
        rows = [_read_row(row, f"{path}, line {table.line_num}") for row in table]
    if by_folder and not default:
        rows = _with_splits_of_folders(path, rows)
    rows = [Row(row.split or default or "train", os.path.join(folder, row.path), row.label) for row in rows]
    _check_listed_once(path, rows)
    return rows


def _read_row(row: dict[Any, Any], where: str) -> Row:
    """A row of a table, whose split is "" if it names none; `where` names it in messages."""
    image, label, given = ((row.get(key) or "").strip() for key in ("path", "label", "split"))
    split = SPLIT_NAMES.get(given.lower(), "")
    if None in row:
        raise UserError(f"{where}: more values than columns; put a value that holds a comma into quotes")
    if not image or not label:
        raise UserError(f"{where}: path and label must not be empty")
    if given and not split:
        raise UserError(f"{where}: split must be train, val or test, got {given!r}")
    return Row(split, Path(os.path.normpath(image)).as_posix(), label)


def _check_listed_once(path: Path, rows: list[Row]) -> None:
    seen: set[str] = set()
    for row in rows:
        file = os.path.abspath(path.parent / row.path)
        if file in seen:
            raise UserError(f"{path}: {row.path} is listed more than once; an image has one label and one split")
        seen.add(file)


def _with_splits_of_folders(path: Path, rows: list[Row]) -> list[Row]:
    """The rows with splits: of those that name none, the first folder of the image's path below the table's.

    If none of them has one, all are train. Some with and some without are an error: an image must not become a training
    image by a guess.
    """
    found = {row.path: SPLIT_NAMES.get(_first_folder(path.parent, row.path), "") for row in rows if not row.split}
    lacking = next((image for image, split in found.items() if not split), "")
    if lacking and any(found.values()):
        raise UserError(
            f"{path}: {lacking} has no split, and other images have one by their first folder; move it to a folder "
            f"{', '.join(SPLITS)}, or add a column split"
        )
    return [row._replace(split=row.split or found[row.path]) for row in rows]


def _first_folder(base: Path, image: str) -> str:
    """The first folder of a path below `base`, in lower case; "" if it has none."""
    folder, slash, _ = Path(os.path.relpath(base / image, base)).as_posix().partition("/")
    return folder.lower() if slash else ""
