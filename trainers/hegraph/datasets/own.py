"""The user's own images as a data set, in whatever form `--root` names them. Adding a form adds one row here.

The classes are in sorted order, where the form has none of its own; names that are numbers come first, by value. Their
numbers of images may differ.
"""

from __future__ import annotations

import logging
import os
import re
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

from ..utils.commands import command
from ..utils.errors import UserError, first_line
from ..utils.files import absolute, hash_file
from .base import Dataset, some
from .folder import OwnImages, class_name, read_files
from .layouts import listing
from .packed import read_hugging_face, read_shards
from .splits import SPLITS, Item

logger = logging.getLogger(__name__)

NAME = "ImageFolder"
LONGEST_NUMBER = 1000  # digits of a class name that is a number; Python does not convert many more
LAYOUT = (
    "expected ROOT/train/<class>/*.jpg (and val, test if you have them), or a CSV file with the columns "
    "path,label[,split]"
)

# The forms that images may have. Each takes `--root` and returns None if it names no images of this form; no image is
# opened. The first that finds something is taken.
FORMS: tuple[Callable[[str], OwnImages | None], ...] = (read_files, read_hugging_face, read_shards)


def load_own_images(root: str, name: str = NAME) -> Dataset:
    """Reads the data set that `--root` names, in one of the forms of docs/data.md. No image is opened."""
    if not root:
        raise UserError(f"{NAME} needs --root, your folder or CSV file; {LAYOUT}")
    images = next((found for read in FORMS if (found := read(root)) is not None), None)
    if images is None:
        raise _no_form(absolute(root))
    where = images.root or root
    rows: dict[str, list[tuple[str, str]]] = {split: [] for split in SPLITS}
    for split, path, label in images.rows:
        called = class_name(label, f"{where}: {path}")
        if not called:
            raise UserError(f"{where}: {path} has no label; give it one, or leave it out")
        rows[split].append((path, called))
    trained = {called for _, called in rows["train"]}
    if not trained:
        raise UserError(f"{where} has no training image; {LAYOUT}")
    if unknown := sorted({called for split in ("val", "test") for _, called in rows[split]} - trained):
        raise UserError(f"{where}: {len(unknown)} classes of val or test have no training image: {some(unknown)}")
    ordered = dict.fromkeys(class_name(each, root) for each in images.classnames)
    names = [called for called in ordered if called in trained]
    if len(names) < len(trained):
        names = sorted(trained, key=_class_order)
    if all(re.fullmatch(r"[-+]?\d+([.,]\d+)?", called) for called in names):
        said = '%s: all class names are numbers (%s), so prompts read "a photo of a %s."; give them names in words'
        logger.warning(said, where, some(names), names[0])
    labels = {called: label for label, called in enumerate(names)}
    train, val, test = ([Item(path, labels[called], called) for path, called in rows[split]] for split in SPLITS)
    check = command(f"datasets check folder --root {shlex.quote(root)}")
    return Dataset(name, names, train, val, test, images.open, images.root, (), images.version, check)


def _class_order(name: str) -> tuple[int, int, str]:
    """Sorts numbers by value before all other names."""
    return (0, int(name), name) if name.isdecimal() and len(name) <= LONGEST_NUMBER else (1, 0, name)


def _no_form(path: Path) -> UserError:
    try:
        os.stat(path)
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the name
        return UserError(f"cannot read {path}: {first_line(error)}; {LAYOUT}")
    held = (some(listing(path)) or "nothing") if path.is_dir() else "no table"
    return UserError(f"{path} holds {held}, and neither class folders in a folder train nor one CSV file; {LAYOUT}")


# --- images that are learned from and tested on: the same file under two names


def refuse_copies(dataset: Dataset) -> None:
    """Raises UserError if selected training or validation files are test files as well, byte for byte."""
    for name, found in copies_in_test(dataset).items():
        if found:
            raise UserError(
                f"{len(found)} of {len(dataset.splits[name])} {name} images are test images as well, such as "
                f"{found[0]}, so the test would say nothing about new images; take them out of {name} or out of test"
            )


def copies_in_test(dataset: Dataset) -> dict[str, list[Path]]:
    """The files of "train" and of "val" that are test files as well; none of images that are no files of their own."""
    test = dataset.files("test")
    return {split: files_among(dataset.files(split), test) for split in ("train", "val")}


def files_among(files: Sequence[Path], others: Sequence[Path]) -> list[Path]:
    """The files whose content is that of another one. Only those of equal size are read."""
    for tell in (_size, hash_file):
        told, told_of_others = ({path: tell(path) for path in paths} for paths in (files, others))
        both = set(told.values()) & set(told_of_others.values())
        files = [path for path in files if told[path] in both]
        others = [path for path in others if told_of_others[path] in both]
    return list(files)


def _size(path: Path) -> int:
    return path.stat().st_size
