"""Own images in class folders, a CSV file, or Hugging Face's `metadata.csv`.

ROOT/train/<class>/*.jpg         and optionally ROOT/val/<class>/ and ROOT/test/<class>/
ROOT/<class>/*.jpg               each class is split at random, as by CoOp for a data set without a split
ROOT/labels.csv, or ROOT itself  with the columns path,label[,split][,group] and paths relative to the file
                                 or path,labels[,split], with `|` between the labels of an image
ROOT/train/metadata.csv          with the columns file_name,label, and the same for val and test
ROOT/metadata.csv                with the columns file_name,label[,split] (default: the first folder of file_name)

Where no class folder has an image of its own, its folders are groups: <class>/<group>/*.jpg. A group of one name in
several classes is one group. The column `group` may be empty.

Commas, semicolons or tabs separate the columns of a table. Windows paths with `\\` are accepted. An empty cell of
`labels` is an unlabelled image, and `|` alone an image without any label.
"""

import csv
import logging
import os
import random
import re
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from ..utils.errors import UserError
from ..utils.files import absolute
from ..utils.reading import read_text, reading
from ..utils.text import normalized_name
from .base import abbreviate
from .groups import Group, assign_parts, shared_groups_only
from .images import is_image
from .layouts import TRAIN_FRACTION, VAL_FRACTION, list_folders, list_names, split_classes
from .own_images import LAYOUT, OwnImages, Row, complete_splits
from .splits import SPLITS, split_of

logger = logging.getLogger(__name__)

METADATA = "metadata.csv"
TABLE = "a UTF-8 table with columns separated by commas, semicolons or tabs"
DELIMITERS = ",;\t"
NONE_OF_THESE = "none of these"  # folder, and name in tables, of images rejected as unknown
NON_CLASS_FOLDERS = ("unlabelled", NONE_OF_THESE)  # folders of `teach` next to class folders
OUTPUT_FILES = ("result.json", "config.json")  # files that mark the folder of a run or a model
SPLIT_SEED = 1  # of the split of class folders, for all seeds of runs
MIN_IMAGES = 4  # per class, so that each of the three splits has an image


def read_folders_or_table(root: str) -> OwnImages | None:
    """Read own images from folders of splits, a CSV file or Hugging Face's `metadata.csv`, without opening an image.

    Returns:
        The images; None if `root` has none of these layouts, as for class folders without splits.

    Raises:
        UserError: If a table is malformed, or two folders are named after the same split.
    """
    path = absolute(root)
    if not os.path.exists(path):  # URLs may be too long for `path.exists`
        return None
    base, names = (path, list_names(path)) if path.is_dir() else (path.parent, [path.name])
    tables = [base / name for name in names if name.lower().endswith(".csv") and not (base / name).is_dir()]
    folders = {name: split_of(name) for name in names if split_of(name) and (base / name).is_dir()}
    with_metadata = {name: split for name, split in folders.items() if (base / name / METADATA).is_file()}
    if with_metadata:
        tops = with_metadata.items()
        rows = [row for name, split in tops for row in _rows_of_table(base / name / METADATA, name, split)]
        _check_folders(base, with_metadata)
    elif base / METADATA in tables and "file_name" in _columns(base / METADATA):
        rows = _rows_of_table(base / METADATA)
    elif any(split == "train" and list_folders(base / name) for name, split in folders.items()):
        places = []
        for top, split in folders.items():
            places += [_Folder(f"{top}/{name}", split, name) for name in list_names(base / top)]
        rows = _rows_of_folders(base, places, "train/<class>", [])
        _check_folders(base, folders)
        if tables:
            warning = "%s: skipped %d CSV files next to class folders; to read a CSV file: --root %s"
            logger.warning(warning, base, len(tables), tables[0])
    elif len(tables) == 1 and (not path.is_dir() or _lists_images(tables[0]) or not class_folders(base)):
        rows = _rows_of_table(tables[0])
    else:
        return None
    return OwnImages(rows, base)


# --- class folders


class _Folder(NamedTuple):
    """Folder of images of one class, with a path relative to the root; `group` is "" for a folder of the class."""

    path: str
    split: str
    label: str
    group: str = ""


def class_folders(base: Path) -> list[str]:
    """List the class folders directly in a folder, sorted.

    These are the folders with images, except hidden folders, `NON_CLASS_FOLDERS` and outputs of this program; or, if
    there are none, the folders with folders of images, which are groups.

    Raises:
        UserError: If there are class folders and also a folder with the name of a split.
    """
    splits = []
    others = []
    for name in list_folders(base):
        if split_of(name):
            splits.append(name)
        elif name.lower() not in NON_CLASS_FOLDERS:
            others.append(name)
    classes = [name for name in others if _has_images(base / name)]
    with_groups = [name for name in others if name not in classes and _has_groups(base / name)]
    if classes and with_groups:
        problem = f"{base}: left out {abbreviate(with_groups)}, whose images are in folders below"
        _warn_once(base, f"{problem}; if it is a class, move its images up, as those of {classes[0]}")
    classes = classes or with_groups
    if classes and splits:
        problem = f"{base} contains the folder of a split, {splits[0]}, next to class folders such as {classes[0]}"
        expected = f"expected {base}/train/<class>/*.jpg, or class folders alone"
        raise UserError(f"{problem}; {expected}; if {splits[0]} is a class, rename it")
    return classes


def _has_images(folder: Path) -> bool:
    """Whether a folder has images of its own and is no output of this program."""
    files = list_names(folder)
    return not {*OUTPUT_FILES} & {*files} and any(map(is_image, files))


def _has_groups(folder: Path) -> bool:
    """Whether a folder without images has folders with images and is no output of this program."""
    names = list_names(folder)
    if {*OUTPUT_FILES} & {*names}:
        return False
    return any((folder / name).is_dir() and _has_images(folder / name) for name in names)


def read_unsplit_folders(root: str) -> OwnImages | None:
    """Read class folders directly in a folder, with all images in train; None without any.

    Raises:
        UserError: If `class_folders` fails.
    """
    base = absolute(root)
    classes = class_folders(base) if os.path.isdir(base) else []
    if not classes:
        return None
    reserved = [name for name in list_folders(base) if name.lower() in NON_CLASS_FOLDERS and _has_images(base / name)]
    if reserved:
        names = " and ".join(reserved)
        _warn_once(base, f"{base}: left out {names}, reserved names of folders that are no classes; rename classes")
    skipped = [name for name in list_names(base) if name not in classes]
    rows = _rows_of_folders(base, [_Folder(name, "train", name) for name in classes], "<class>", skipped)
    return OwnImages(rows, base)


def why_not_own(root: str) -> str:
    """Say why a folder or file is no data set of own images, and what to do."""
    base = absolute(root)
    if base.is_file():
        return f"{root} is one file; expected a folder with a folder of images for each class, or a CSV file"
    names = list_names(base)
    if loose := sum(map(is_image, names)):
        problem = f"{root} contains {loose} images without a class"
        return f"{problem}; put the images of each class into a folder in it, or list path,label in a CSV file"
    for name in names:
        deeper = Path(root, name)
        while deeper.is_dir() and len(class_folders(deeper)) < 2:
            inner = list_folders(deeper)
            if len(inner) != 1:
                break
            deeper = deeper / inner[0]
        if deeper.is_dir() and len(class_folders(deeper)) >= 2:
            place = deeper.parent if split_of(deeper.name) else deeper
            if place != Path(root):
                return f"{root} has no class folders, but {place} has; name this folder instead"
    content = abbreviate(names) or "nothing"
    return f"{base} contains {content}, neither class folders nor one CSV file; {LAYOUT}"


def split_at_random(images: OwnImages) -> OwnImages:
    """Split the images of each class of `read_unsplit_folders` into 50 % train, 20 % val and 30 % test, as CoOp does.

    The split depends only on the names of folders and files. With groups, whole groups are split.

    Raises:
        UserError: If there are fewer than two classes, a class has fewer than `MIN_IMAGES` images, or, with groups, a
            class has no image in one of the splits.
    """
    base = images.root
    assert base is not None  # as for all class folders
    rows = images.rows
    numbers = Counter(row.label for row in rows)
    if len(numbers) < 2:
        expected = "expected at least two class folders, or one CSV file with the columns path,label[,split]"
        raise UserError(f"{base} has images in only one folder, {rows[0].label}; {expected}")
    advice = f"add images, or move all class folders into {base}/train, which is not split"
    if small := [name for name, number in numbers.items() if number < MIN_IMAGES]:
        problem = f"{len(small)} of {len(numbers)} classes have fewer than {MIN_IMAGES} images, too few to split"
        raise UserError(f"{base}: {problem}, such as {small[0]}; {advice}")
    groups = shared_groups_only([row.group or row.path for row in rows])
    split = _split_images(rows) if groups is None else _split_groups(rows, groups)
    for name in SPLITS:
        if lacking := sorted({*numbers} - {row.label for row in split if row.split == name}):
            problem = f"the groups of {lacking[0]} are too few to split: none is left for {name}"
            raise UserError(f"{base}: {problem}; {advice}")
    split_counts = Counter(row.split for row in split)
    counts = ", ".join(f"{split_counts[name]} {name}" for name in SPLITS)
    what = "each class was split" if groups is None else "the groups of each class were split"
    how = f"{what} at random into 50 % train, 20 % val, 30 % test images ({counts})"
    if logger.isEnabledFor(logging.WARNING):
        _warn_once(base, f"{base.name} has no folder train, so {how}")
    return images._replace(rows=split)


def _split_images(rows: Sequence[Row]) -> list[Row]:
    """Split the images of each class, whose rows follow each other."""
    paths: dict[str, list[str]] = {}
    for row in rows:
        paths.setdefault(row.label, []).append(row.path)
    by_class = [(label, name, of_class) for label, (name, of_class) in enumerate(paths.items())]
    pools = split_classes(by_class, random.Random(SPLIT_SEED))
    group_of = {row.path: row.group for row in rows}
    split = []
    for name in SPLITS:
        split += [Row(name, item.path, item.classname, group_of[item.path]) for item in pools[name]]
    return split


def _split_groups(rows: Sequence[Row], groups: Sequence[Group]) -> list[Row]:
    """Split whole groups."""
    shares = TRAIN_FRACTION, VAL_FRACTION, 1 - TRAIN_FRACTION - VAL_FRACTION
    names = sorted({row.label for row in rows})
    number_of = {name: number for number, name in enumerate(names)}
    labels = [number_of[row.label] for row in rows]
    parts = assign_parts(labels, groups, shares, random.Random(SPLIT_SEED))
    return [row._replace(split=SPLITS[part]) for row, part in zip(rows, parts)]


@cache
def _warn_once(folder: Path, message: str) -> None:
    """Log a warning about a folder, unless this process has logged it before."""
    logger.warning(message)


def _check_folders(base: Path, folders: dict[str, str]) -> None:
    """Raise UserError if two folders, name -> split, have the same split; warn of other folders, which are skipped."""
    splits = list(folders.values())
    if repeated := [name for name, split in folders.items() if splits.count(split) > 1]:
        raise UserError(f"{base}: the folders {' and '.join(repeated)} both mean {folders[repeated[0]]}; merge them")
    if skipped := [name for name in list_folders(base) if name not in folders]:
        logger.warning("%s: read the folders %s, skipped %s", base, ", ".join(folders), ", ".join(skipped))


def _group_folders(base: Path, folders: Sequence[_Folder], form: str) -> tuple[Sequence[_Folder], str]:
    """Return the folders in class folders, which are groups, if no class folder has an image of its own.

    Otherwise the class folders themselves are returned. The second value is the expected path of a folder with images.
    """
    contents = {folder: list_names(base / folder.path) if (base / folder.path).is_dir() else [] for folder in folders}
    own = {folder: None for folder, names in contents.items() if any(map(is_image, names))}
    if own:
        rest = [folder for folder, names in contents.items() if names and folder not in own]
        others = [folder for folder in rest if _has_groups(base / folder.path)]
        if others and form != "<class>":  # directly in the root, `class_folders` has chosen
            first = next(iter(own)).path
            problem = f"{base}: the images of {others[0].path} are in folders below it, and those of {first} are not"
            raise UserError(
                f"{problem}; move them up, or put the images of all classes into folders, one for each group"
            )
        return folders, form
    groups = []
    for folder, names in contents.items():
        groups += [folder._replace(path=f"{folder.path}/{name}", group=name) for name in names] or [folder]
    if not any(_has_images(base / folder.path) for folder in groups if (base / folder.path).is_dir()):
        return folders, form
    return groups, f"{form}/<group>"


def _rows_of_folders(base: Path, folders: Sequence[_Folder], form: str, skipped: list[str]) -> list[Row]:
    """Read class folders, and warn of skipped files and folders.

    Args:
        base: Folder of all images.
        folders: Class folders.
        form: Expected path of a class folder, for the warning.
        skipped: Other names in `base`.
    """
    folders, form = _group_folders(base, list(folders), form)
    rows: list[Row] = []
    for folder in folders:
        place = folder.path
        files = list_names(base / place) if (base / place).is_dir() else []
        images = [file for file in files if is_image(file)]  # by name, since there may be millions
        rows += [Row(folder.split, f"{place}/{file}", folder.label, folder.group) for file in images]
        skipped = skipped + ([f"{place}/{file}" for file in files if not is_image(file)] if images else [place])
    if skipped:
        warning = "%s: skipped %d files and folders that are not %s/IMAGE, such as %s"
        logger.warning(warning, base, len(skipped), form, skipped[0])
    return rows


# --- tables


def read_table(path: Path, *needed: str) -> tuple[str, list[dict[str, str]]]:
    """Read a CSV file that lists images.

    Args:
        path: The file.
        needed: Required columns, in addition to `path` or Hugging Face's `file_name`.

    Returns:
        Name of the column with paths; and for each row, its values by column, and its location for messages as "where".
        Paths use `/`.

    Raises:
        UserError: If a column is missing or repeated, a row has more values than columns, or a required value is empty.
    """
    with reading(path, TABLE), path.open(encoding="utf-8-sig", newline="") as file:
        delimiter = max(DELIMITERS, key=file.readline().count)
        file.seek(0)
        table = csv.DictReader(file, skipinitialspace=True, strict=True, delimiter=delimiter)
        table.fieldnames = columns = [column.strip().lower() for column in table.fieldnames or ()]
        path_column = "path" if "path" in columns else "file_name"
        if not {path_column, *needed} <= {*columns} or len({*columns}) < len(columns):
            form = ",".join(("path", *needed)) + ("[,split]" if needed else "")
            expected = f"the columns {form} in the first line, each once, separated by commas, semicolons or tabs"
            raise UserError(f"{path}: expected {expected}; got {','.join(columns) or 'nothing'}")
        rows = []
        for row in table:
            where = f"{path}, line {table.line_num}"
            if None in row:
                raise UserError(f"{where}: more values than columns; quote values that contain a comma")
            values = {column: (value or "").strip() for column, value in row.items()}
            if empty := [column for column in (path_column, *needed) if not values[column]]:
                raise UserError(f"{where}: {' and '.join(empty)} must not be empty")
            rows.append({**values, path_column: _posix(path.parent, values[path_column]), "where": where})
        return path_column, rows


def _lists_images(path: Path) -> bool:
    """Whether a CSV file has a column of labels and one of paths."""
    columns = _columns(path)
    return bool(columns & {"label", "labels"} and columns & {"path", "file_name"})


def _columns(path: Path) -> set[str]:
    """Names in the first line of a CSV file."""
    first = read_text(path, TABLE).partition("\n")[0].lower()
    return {column.strip(' "\r') for column in re.split(rf"[{DELIMITERS}]", first)}


def _posix(base: Path, path: str) -> str:
    """Normalise a path to `/`. A `\\` is a Windows separator unless a file with this exact name exists."""
    if "\\" in path and not os.path.exists(base / path):
        path = path.replace("\\", "/")
    return Path(os.path.normpath(path)).as_posix()


def _rows_of_table(path: Path, folder: str = "", default: str = "") -> list[Row]:
    """Read the rows of a CSV file, with images relative to `folder`.

    The split of a row is its column `split`, else `default`, else the first folder of its `file_name`, else train.

    Raises:
        UserError: If the table cannot be read, has two columns of labels, or its rows have no complete splits.
    """
    if {"label", "labels"} <= (columns := _columns(path)):
        raise UserError(f"{path}: expected the column label or labels, got both; remove one")
    column, table = read_table(path, *([] if "labels" in columns else ["label"]))
    rows = [_read_row(row, column) for row in table]
    if column == "file_name" and not default:
        tops = [os.path.dirname(row.path).partition("/")[0] for row in rows]
        splits = {row.path: row.split or split_of(top) for row, top in zip(rows, tops)}
        splits = complete_splits(splits, path, "move it to a folder train, or add a column split")
        rows = [row._replace(split=splits[row.path]) for row in rows]
    splits_of_rows = [row.split or default or "train" for row in rows]
    return [row._replace(split=split, path=os.path.join(folder, row.path)) for row, split in zip(rows, splits_of_rows)]


def _read_row(row: dict[str, str], path_column: str) -> Row:
    """Convert a row of a table; the split is "" without a value."""
    split = row.get("split", "")
    if split and not split_of(split):
        raise UserError(f"{row['where']}: expected train, val or test as split, got {split!r}")
    label = row["label"] if "label" in row else _names(row)
    return Row(split_of(split), row[path_column], label, normalized_name(row.get("group", "")))


def _names(row: dict[str, str]) -> tuple[str, ...] | None:
    """Names in the cell `labels` of a row; None if the cell is empty."""
    return tuple(filter(None, map(str.strip, row["labels"].split("|")))) if row["labels"] else None
