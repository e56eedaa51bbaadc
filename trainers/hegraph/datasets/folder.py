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
from ..utils.reading import check_regular
from .class_folders import check_one_folder, read_class_folders, split_folders
from .images import open_image
from .layouts import listing
from .own_rows import SPLIT_NAMES, OwnImages, Rows
from .splits import SPLITS

if TYPE_CHECKING:
    from PIL import Image

logger = logging.getLogger(__name__)

METADATA = "metadata.csv"
SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}  # that some programs write instead of commas


class Row(NamedTuple):
    """A row of a table.

    Attributes:
        where: What it is called in messages.
        image: The path of the image.
        label: The name of its class.
        split: One of `SPLITS`; "" if the row names none.
    """

    where: str
    image: str
    label: str
    split: str


def read_files(root: str) -> OwnImages | None:
    """The images of a folder or a CSV file; None if `root` is neither. No image is opened.

    Raises:
        UserError: If the CSV file cannot be read, or a row lacks something.
    """
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
        _warn_of_tables(path, training[0].name)
    elif table is not None:
        base, rows = table.parent, _read_table(table)
    return None if rows is None else OwnImages(rows, partial(open_below, base), base, hint=hint)


def _only_table(path: Path) -> Path | None:
    """The CSV file of a folder that has one, or the file itself; None if there is no CSV file, or there are several."""
    tables = tables_of(path)
    return tables[0] if len(tables) == 1 and tables[0].suffix.lower() == ".csv" and tables[0].is_file() else None


def _goes_first(table: Path, training: list[Path]) -> bool:
    """Whether a table of labels is read rather than the training folders beside it.

    It is not where class folders lie in `train`. Under another name they may be those that the table names, in splits
    of its own, and images in no class folder can have their labels only from it.
    """
    if any(folder.name == "train" and _holds_folders(folder) for folder in training):
        return False
    columns = _columns(table)
    return "label" in columns and ("path" in columns or "file_name" in columns)


def _warn_of_tables(path: Path, training: str) -> None:
    """Says that CSV files are not read where the folders are."""
    tables = tables_of(path)
    if tables:
        said = "%s: %d CSV files are not read, since the folder %s is; to use one, give it: --root %s"
        logger.warning(said, path, len(tables), training, tables[0])


def _holds_shards(folder: Path) -> bool:
    """Whether a folder holds tar files and no folder of a class."""
    return any(name.endswith(".tar") for name in listing(folder)) and not _holds_folders(folder)


def _holds_folders(folder: Path) -> bool:
    return any((folder / name).is_dir() for name in listing(folder))


def tables_of(path: Path) -> list[Path]:
    """The CSV files of a folder, or the file itself."""
    return [path / name for name in listing(path) if name.lower().endswith(".csv")] if path.is_dir() else [path]


def open_below(base: Path, path: str) -> Image.Image:
    """Opens an image below a folder."""
    return open_image(base / path)


def _read_metadata(path: Path, folders: dict[str, list[str]]) -> Rows:
    """The rows of a folder whose split folders hold a `metadata.csv` each; raises UserError as `_read_table` does."""
    rows: Rows = {split: [] for split in SPLITS}
    read = {split: [name for name in names if (path / name / METADATA).is_file()] for split, names in folders.items()}
    check_one_folder(path, read)
    left_out = [name for split, names in folders.items() for name in names if name not in read[split]]
    if left_out:
        said = "%s: left out are the folders %s; a folder that is read holds a %s"
        logger.warning(said, path, ", ".join(left_out), METADATA)
    for split, names in read.items():
        for name in names:
            found = _read_table(path / name / METADATA, default=split)
            rows[split] += [(f"{name}/{image}", label) for each in SPLITS for image, label in found[each]]
    _check_listed_once(path / METADATA, rows)
    return rows


def _columns(path: Path) -> list[str]:
    """The names of the columns of a table, in lower case; raises UserError if it cannot be read."""
    check_regular(path)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return [column.strip().lower() for column in next(csv.reader(file, skipinitialspace=True), [])]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise _unreadable(path, error) from error


def _read_table(path: Path, default: str = "") -> Rows:
    """The rows of a table.

    Args:
        path: The CSV file; Hugging Face's has a column `file_name` for `path`.
        default: The split of a row that names none; "" takes that of the first folder of a `file_name`, or train.

    Raises:
        UserError: If the table cannot be read, or a row lacks something, or has no split where others have one.
    """
    columns, read = _read_csv(path)
    by_folder = not default and "file_name" in columns
    found = _splits_by_folder(path.parent, [row for row in read if not row.split]) if by_folder else {}
    rows: Rows = {split: [] for split in SPLITS}
    for row in read:
        rows[row.split or found.get(row.image) or default or "train"].append((row.image, row.label))
    _check_listed_once(path, rows)
    return rows


def _read_csv(path: Path) -> tuple[list[str], list[Row]]:
    """The names of the columns of a table, in lower case, and its rows; raises UserError as `_read_table` does."""
    check_regular(path)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            table = csv.DictReader(file, skipinitialspace=True, strict=True)
            given = columns = [column.strip().lower() for column in table.fieldnames or []]
            if "path" not in columns:
                columns = ["path" if column == "file_name" else column for column in columns]
            table.fieldnames = columns
            if repeated := next((c for c in columns if columns.count(c) > 1), None):
                raise UserError(f"{path} has the column {repeated!r} twice; leave one of them out")
            if not {"path", "label"} <= set(columns):
                raise _other_columns(path, columns)
            return given, [_read_row(row, f"{path}, line {table.line_num}") for row in table]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> UserError:
    if isinstance(error, UnicodeDecodeError) or "NUL" in str(error):  # which Python 3.10 does not read
        return UserError(f"cannot read the table {path}: it is not in UTF-8; save it as UTF-8")
    return UserError(f"cannot read the table {path}: {error}")


def _other_columns(path: Path, columns: list[str]) -> UserError:
    """The error for a table without the columns that it must have; a common cause is named."""
    got = ",".join(columns)
    if "\0" in got:  # UTF-16 without a mark at its start is also UTF-8
        return UserError(f"cannot read the table {path}: it is not in UTF-8; save it as UTF-8")
    wanted = f"{path} must have the columns path,label[,split]"
    separators = [name for separator, name in SEPARATORS.items() if separator in got]
    if separators:
        return UserError(f"{wanted} with commas between them, got {got} with {separators[0]}; save it with commas")
    return UserError(f"{wanted}, got {got or 'nothing'}")


def _check_listed_once(path: Path, rows: Rows) -> None:
    """Raises UserError if an image is listed twice in one spelling, or in two with other labels or splits."""
    counts = Counter(image for split in SPLITS for image, _ in rows[split])
    seen: dict[str, tuple[str, str]] = {}
    for split in SPLITS:
        for image, label in rows[split]:
            file = os.path.abspath(path.parent / image)
            if counts[image] > 1 or seen.setdefault(file, (label, split)) != (label, split):
                raise UserError(f"{path}: {image} is listed more than once; an image has one label and one split")


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


def _splits_by_folder(base: Path, rows: list[Row]) -> dict[str, str]:
    """The split of every image, which is the first folder of its path below `base`. If none has a split, all are train.

    Raises:
        UserError: If some images lie in the folder of a split and others do not: an image must not become a training
            image by a guess.
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
