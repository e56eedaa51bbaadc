"""The user's own images in files: a folder of class folders, a CSV file, or Hugging Face's `metadata.csv`.

ROOT/train/<class>/*.jpg         and, if there are any, ROOT/val/<class>/ and ROOT/test/<class>/
ROOT/labels.csv, or ROOT itself  with the columns path,label[,split] and paths relative to the file
ROOT/train/metadata.csv          with the columns file_name,label, and the same for val and test
ROOT/metadata.csv                with the columns file_name,label[,split]; without a split, a path says it

A split may have any of its names in `SPLIT_NAMES`, in upper or lower case, as a folder and in a column split.
"""

from __future__ import annotations

import csv
import logging
import os
from collections import Counter
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..utils.errors import UserError
from ..utils.files import absolute
from ..utils.reading import reading
from .images import is_image, open_image
from .layouts import listing
from .rows import SPLIT_NAMES, OwnImages, Rows
from .splits import SPLITS

if TYPE_CHECKING:
    from PIL import Image

logger = logging.getLogger(__name__)

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
    """A row of a table: what it is called in messages, the image, its class, and its split, "" if it names none."""

    where: str
    image: str
    label: str
    split: str


def read_files(root: str) -> OwnImages | None:
    """The images of a folder or a CSV file; None if `root` is neither. No image is opened."""
    path = absolute(root)
    if not os.path.exists(path):  # URLs may be too long for `path.exists`
        return None
    folders, table = split_folders(path), _only_table(path)
    training = [path / name for name in folders.get("train", []) if not _holds_shards(path / name)]
    base, rows, hint = path, None, ""
    if any((path / name / METADATA).is_file() for names in folders.values() for name in names):
        rows = _read_metadata(path, folders)
    elif (path / METADATA).is_file() and "file_name" in _columns(path / METADATA):
        rows = _read_table(path / METADATA)
    elif training and not (table is not None and _goes_first(table, training)):
        rows, hint = read_class_folders(path, folders)
        if tables := tables_of(path):
            said = "%s: %d CSV files are not read, since the folder %s is; to use one, give it: --root %s"
            logger.warning(said, path, len(tables), training[0].name, tables[0])
    elif table is not None:
        base, rows = table.parent, _read_table(table)
    return None if rows is None else OwnImages(rows, partial(open_below, base), base, hint=hint)


def open_below(base: Path, path: str) -> Image.Image:
    """Opens an image below a folder."""
    return open_image(base / path)


def tables_of(path: Path) -> list[Path]:
    """The CSV files of a folder, or the file itself."""
    return [path / name for name in listing(path) if name.lower().endswith(".csv")] if path.is_dir() else [path]


def _only_table(path: Path) -> Path | None:
    """The CSV file of a folder that has one, or the file itself; None if there is no CSV file, or there are several."""
    tables = tables_of(path)
    return tables[0] if len(tables) == 1 and tables[0].suffix.lower() == ".csv" and not tables[0].is_dir() else None


def _goes_first(table: Path, training: list[Path]) -> bool:
    """Whether a table of labels is read rather than the training folders beside it.

    It is not where class folders lie in `train`. Under another name they may be those that the table names, in splits
    of its own, and images in no class folder can have their labels only from it.
    """
    if any(folder.name == "train" and _holds_folders(folder) for folder in training):
        return False
    columns = _columns(table)
    return "label" in columns and ("path" in columns or "file_name" in columns)


def _holds_shards(folder: Path) -> bool:
    """Whether a folder holds tar files and no folder of a class."""
    return any(name.endswith(".tar") for name in listing(folder)) and not _holds_folders(folder)


def _holds_folders(folder: Path) -> bool:
    return any((folder / name).is_dir() for name in listing(folder))


# --- class folders


def split_folders(path: Path) -> dict[str, list[str]]:
    """Split -> the names of its folders in a folder; splits without one are left out."""
    found: dict[str, list[str]] = {}
    for name in listing(path) if path.is_dir() else []:
        split = SPLIT_NAMES.get(name.lower())
        if split is not None and (path / name).is_dir():
            found.setdefault(split, []).append(name)
    return found


def _check_one_folder(path: Path, folders: dict[str, list[str]]) -> None:
    """Raises UserError if several folders mean one split: which of them was meant must not be guessed."""
    for split, names in folders.items():
        if len(names) > 1:
            raise UserError(
                f"{path}: the folders {' and '.join(names)} all mean {split}; keep one of them, or move the others away"
            )


def read_class_folders(path: Path, folders: dict[str, list[str]]) -> tuple[Rows, str]:
    """The images of class folders, and why training images may be missing; `folders` is of `split_folders`."""
    _check_one_folder(path, folders)
    known = {name for names in folders.values() for name in names}
    strange = [name for name in listing(path) if name not in known and (path / name).is_dir()]
    if strange:
        logger.warning("%s: %s is none of train, val and test, and is not read", path, ", ".join(strange))
    rows: Rows = {split: [] for split in SPLITS}
    left_out: dict[str, list[str]] = {kind: [] for kind in LEFT_OUT}
    for split, folder in [(split, folders[split][0]) for split in SPLITS if split in folders]:
        for name in listing(path / folder):
            inside = f"{folder}/{name}"
            if (path / inside).is_dir():
                rows[split] += [(image, name) for image in _read_class(path, inside, left_out)]
            else:
                left_out["loose" if is_image(name) else "files"].append(inside)
    for kind, said in LEFT_OUT.items():
        if left_out[kind]:
            logger.warning(f"%s: {said}", path, len(left_out[kind]), left_out[kind][0])
    for kind in ("deeper", "loose"):
        found = [each for each in left_out[kind] if each.startswith(f"{folders['train'][0]}/")]
        if found:
            return rows, LEFT_OUT[kind] % (len(found), found[0])
    return rows, ""


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


def _read_metadata(path: Path, folders: dict[str, list[str]]) -> Rows:
    """The rows of a folder whose split folders hold a `metadata.csv` each; raises UserError as `_read_table` does."""
    rows: Rows = {split: [] for split in SPLITS}
    read = {split: [name for name in names if (path / name / METADATA).is_file()] for split, names in folders.items()}
    _check_one_folder(path, read)
    left_out = [name for split, names in folders.items() for name in names if name not in read[split]]
    if left_out:
        said = "%s: left out are the folders %s; a folder that is read holds a %s"
        logger.warning(said, path, ", ".join(left_out), METADATA)
    for split, names in read.items():
        for name in names:
            found = _read_table(path / name / METADATA, default=split)
            for each in SPLITS:
                rows[split] += [(f"{name}/{image}", label) for image, label in found[each]]
    _check_listed_once(path / METADATA, rows)
    return rows


def _columns(path: Path) -> list[str]:
    """The names of the columns of a table, in lower case; raises UserError if it cannot be read."""
    with reading(path, TABLE), path.open(encoding="utf-8-sig", newline="") as file:
        return [column.strip().lower() for column in next(csv.reader(file, skipinitialspace=True), [])]


def _read_table(path: Path, default: str = "") -> Rows:
    """The rows of a CSV file; Hugging Face's has a column `file_name` for `path`.

    Args:
        default: The split of a row that names none; "" takes that of the first folder of a `file_name`, or train.
    """
    columns = _columns(path)
    read = _read_rows(path, columns)
    by_folder = not default and "file_name" in columns
    found = _splits_by_folder(path.parent, [row for row in read if not row.split]) if by_folder else {}
    rows: Rows = {split: [] for split in SPLITS}
    for row in read:
        rows[row.split or found.get(row.image) or default or "train"].append((row.image, row.label))
    _check_listed_once(path, rows)
    return rows


def _read_rows(path: Path, given: list[str]) -> list[Row]:
    columns = given
    if "path" not in given:
        columns = ["path" if column == "file_name" else column for column in given]
    if repeated := next((column for column in columns if columns.count(column) > 1), None):
        raise UserError(f"{path} has the column {repeated!r} twice; leave one of them out")
    if not {"path", "label"} <= set(columns):
        raise UserError(f"{path} must have {COLUMNS}; got {','.join(given) or 'nothing'}")
    with reading(path, TABLE), path.open(encoding="utf-8-sig", newline="") as file:
        table = csv.DictReader(file, columns, skipinitialspace=True, strict=True)
        next(table, None)  # the names of the columns
        return [_read_row(row, f"{path}, line {table.line_num}") for row in table]


def _read_row(row: dict[Any, Any], where: str) -> Row:
    """A row of a table; `where` names it in messages."""
    image, label = (row["path"] or "").strip(), (row["label"] or "").strip()
    given = (row.get("split") or "").strip().lower()
    split = SPLIT_NAMES.get(given, "")
    if None in row:
        raise UserError(f"{where}: more values than columns; put a value that holds a comma into quotes")
    if not image or not label:
        raise UserError(f"{where}: path and label must not be empty")
    if given and not split:
        raise UserError(f"{where}: split must be train, val or test, got {given!r}")
    return Row(where, Path(os.path.normpath(image)).as_posix(), label, split)


def _check_listed_once(path: Path, rows: Rows) -> None:
    """Raises UserError if an image is listed twice in one spelling, or in two with other labels or splits."""
    counts = Counter(image for split in SPLITS for image, _ in rows[split])
    seen: dict[str, tuple[str, str]] = {}
    for split in SPLITS:
        for image, label in rows[split]:
            file = os.path.abspath(path.parent / image)
            if counts[image] > 1 or seen.setdefault(file, (label, split)) != (label, split):
                raise UserError(f"{path}: {image} is listed more than once; an image has one label and one split")


def _splits_by_folder(base: Path, rows: list[Row]) -> dict[str, str]:
    """The split of every image, which is the first folder of its path below `base`. If none has a split, all are train.

    Some with and some without are an error: an image must not become a training image by a guess.
    """
    found = {row.image: SPLIT_NAMES.get(_first_folder(base, row.image).lower(), "") for row in rows}
    some = any(found.values())
    for row in rows:
        if some and not found[row.image]:
            raise UserError(
                f"{row.where}: {row.image} has no split, and other images have one by their first folder; move it to a "
                f"folder {', '.join(SPLITS)}, or add a column split"
            )
    return found


def _first_folder(base: Path, image: str) -> str:
    """The first folder of a path below `base`; "" if it has none."""
    folder, slash, _ = Path(os.path.relpath(base / image, base)).as_posix().partition("/")
    return folder if slash else ""
