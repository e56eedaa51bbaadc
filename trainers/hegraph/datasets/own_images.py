"""Own images: the form in which all readers return them, and the names, checks and conversion that readers share.

The readers are in `folder.py` (class folders and tables), `annotations.py` and `packed.py`. They return labels as they
are in the source; `build_dataset` converts them to class names, checks them, and numbers the classes.
"""

import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from ..utils.errors import UserError
from ..utils.text import normalized_name
from .base import Dataset, abbreviate, check_command
from .groups import groups_in_paths
from .images import open_image
from .layouts import list_folders, list_names
from .splits import SPLIT_NAMES, SPLITS, Item, split_of

logger = logging.getLogger(__name__)

OWN = "ImageFolder"  # DATASET.NAME of own images
LAYOUT = (
    "expected ROOT/train/<class>/*.jpg (and val, test), ROOT/<class>/*.jpg, or a CSV file with the columns "
    "path,label[,split]; for several labels per image, path,labels[,split], or annotations of Pascal VOC or COCO"
)


class Row(NamedTuple):
    """An own image as read.

    Attributes:
        split: Split, one of `SPLITS`.
        path: Path relative to the root, or another identifier of the image.
        label: Label. With several labels per image, a tuple of names, or None for an unlabelled image.
        group: Group of the image (`groups.py`); "" for a group of its own.
    """

    split: str
    path: str
    label: Any
    group: str = ""


class OwnImages(NamedTuple):
    """Own images from any source.

    Attributes:
        rows: One row for each image.
        root, version, stored: As in `Dataset`. One of `root` and `stored` is given.
        classnames: Class names in label order; () sorts the names of the rows.
    """

    rows: list[Row]
    root: Path | None = None
    version: Callable[[str], tuple[int, int]] | None = None
    stored: Callable[[str], bytes] | None = None
    classnames: Sequence[str] = ()

    def source(self, path: str) -> Path | bytes:
        """File of an image, or its bytes."""
        if self.stored is not None:
            return self.stored(path)
        assert self.root is not None
        return self.root / path

    def open(self, path: str) -> Image.Image:
        """Open an image by `open_image`."""
        return open_image(self.source(path))


# --- groups


def with_groups(images: OwnImages, pattern: str, where: object) -> OwnImages:
    """Return images with the groups that DATASET.GROUP_PATTERN finds in their paths; "" changes nothing.

    Raises:
        UserError: If the images have groups already, or the pattern is malformed or matches no path.
    """
    if not pattern:
        return images
    if grouped := next((row for row in images.rows if row.group), None):
        problem = f"{where}: {grouped.path} has the group {grouped.group!r} already"
        raise UserError(f"{problem}; leave out DATASET.GROUP_PATTERN, or remove the column or folders of groups")
    groups = groups_in_paths([row.path for row in images.rows], pattern)
    return images._replace(rows=[row._replace(group=groups.get(row.path, "")) for row in images.rows])


# --- splits


def complete_splits(splits: Mapping[str, str], where: object, remedy: str) -> dict[str, str]:
    """Return the splits of files or images, with train for all of them if none has a split.

    Args:
        splits: Split of each file or image, "" if unknown.
        where, remedy: Start and end of the error message.

    Raises:
        UserError: If only some have a split. Images with an unclear split must not become training images.
    """
    lacking = next((name for name, split in splits.items() if not split), "")
    if lacking and any(splits.values()):
        raise UserError(f"{where}: {lacking} has no split, but others have one; {remedy}")
    return {name: split or "train" for name, split in splits.items()}


def split_in(name: str) -> str:
    """Return the first split among the words of a name, "" without one. The words of "testA-0" are "test" and "A"."""
    return next(filter(None, map(split_of, re.findall(r"[A-Z]*[a-z]*", name))), "")


def files_of_splits(root: Path, suffix: str) -> dict[str, str]:
    """Find the files with a suffix in a folder, in its subfolders of splits, and in the subfolder `data`.

    The split of a file is the name of its folder, or a word of its file name.

    Returns:
        Path, relative to `root`, and split of each file.
    """
    splits: dict[str, str] = {}
    for folder in ("", *list_folders(root)):
        files = [name for name in list_names(root / folder) if name.endswith(suffix)]
        if folder in ("", "data") or split_of(folder):
            splits |= {os.path.join(folder, name): split_of(folder) or split_in(name) for name in files}
        elif files:
            warning = "%s: skipped the %s files in %s; folders of splits are named %s"
            logger.warning(warning, root, suffix, folder, ", ".join(SPLIT_NAMES))
    remedy = f"rename it after its split, such as train-0{suffix}, or move it away"
    return complete_splits(splits, root, remedy)


# --- classes


def class_name(label: Any, where: str) -> str:
    """Convert a label to a class name: its text without outer white space, in Unicode's form NFC.

    Args:
        label: Label of a table or a file, such as text or a number.
        where: Start of the error message.

    Returns:
        The class name; "" for null, NaN and blank text.

    Raises:
        UserError: If the label is a list, a dict or bytes.
    """
    if isinstance(label, (list, dict, bytes)):
        raise UserError(f"{where}: expected text or a number as label, got {label!r:.60}")
    return "" if label is None or label != label else normalized_name(str(label))  # NaN != NaN


def build_dataset(images: OwnImages, name: str, root: str) -> Dataset:
    """Convert own images to a data set.

    Classes keep the order of `images.classnames`, or are sorted with numbers first, by value.

    Args:
        images: The images.
        name: Name of the data set.
        root: The argument --root of the user.

    Raises:
        UserError: If an image occurs twice or has no label, no image is for training, or a class of val or test has no
            training image.
    """
    where = images.root or root
    _refuse_repeated(images, where)
    multilabel = any(isinstance(row.label, tuple) for row in images.rows)
    rows = _labelled(images, where) if multilabel else images.rows
    rows = [row._replace(label=_names(row, where)) for row in rows]
    classes: dict[str, set[str]] = {split: set() for split in SPLITS}
    for row in rows:
        classes[row.split].update(row.label)
    if not classes["train"]:
        raise UserError(f"{where} has no training image; {LAYOUT}")
    listed = dict.fromkeys(filter(None, (class_name(each, root) for each in images.classnames)))
    if multilabel:  # the classes that COCO lists, also those without an image
        classes["train"] |= listed.keys()
    if unseen := sorted((classes["val"] | classes["test"]) - classes["train"]):
        raise UserError(f"{where}: {len(unseen)} classes of val or test have no training image: {abbreviate(unseen)}")
    names = [each for each in listed if each in classes["train"]]
    if len(names) < len(classes["train"]):
        names = sorted(classes["train"], key=_class_order)
    if all(re.fullmatch(r"[-+]?\d+([.,]\d+)?", each) for each in names):
        warning = '%s: all class names are numbers (%s), so prompts read "a photo of a %s."; name the classes in words'
        logger.warning(warning, where, abbreviate(names), names[0])
    label_of = {each: label for label, each in enumerate(names)}
    items: dict[str, list[Item]] = {split: [] for split in SPLITS}
    for row in rows:
        labels = tuple(sorted({label_of[each] for each in row.label}))
        item = Item(row.path, labels if multilabel else labels[0], "|".join(names[label] for label in labels))
        items[row.split].append(item)
    train, val, test = items.values()
    return Dataset(
        name,
        names,
        train,
        val,
        test,
        images.open,
        images.root,
        version=images.version,
        stored=images.stored,
        check_command=check_command("folder", root),
        source=images.source,
        groups={row.path: row.group for row in rows if row.group},
    )


def _refuse_repeated(images: OwnImages, where: object) -> None:
    """Raise UserError if an image occurs twice, also through links to folders."""
    root = images.root
    if root is None:
        numbers = Counter(row.path for row in images.rows)
    else:
        real_folder = cache(os.path.realpath)  # of many images in a folder
        places = [os.path.split(root / row.path) for row in images.rows]
        numbers = Counter(os.path.join(real_folder(folder), name) for folder, name in places)
    if twice := next((path for path, number in numbers.items() if number > 1), ""):
        raise UserError(f"{where}: {twice} is listed more than once; expected one row for each image")


def _labelled(images: OwnImages, where: object) -> list[Row]:
    """Return the labelled images, and warn of the others. An empty set of labels is a label, too."""
    unlabelled = [row.path for row in images.rows if row.label is None]
    if unlabelled:
        warning = "%s: left out %d of %d images, which are unlabelled, such as %s; for an image without labels, write |"
        logger.warning(warning, where, len(unlabelled), len(images.rows), unlabelled[0])
    return [row for row in images.rows if row.label is not None]


def _names(row: Row, where: object) -> list[str]:
    """Return the class names of an image; UserError if a label is blank."""
    labels = row.label if isinstance(row.label, tuple) else (row.label,)
    names = [class_name(label, f"{where}: {row.path}") for label in labels]
    if "" in names:
        raise UserError(f"{where}: {row.path} has no label; label it or remove it")
    return names


def _class_order(name: str) -> tuple[int, int, str]:
    """Sort key: numbers by value, then other names. Python does not convert numbers of thousands of digits."""
    return (0, int(name), name) if name.isdecimal() and len(name) <= 1000 else (1, 0, name)
