"""The user's own images as a data set, in whatever form `--root` names them. Adding a form adds one row here.

The classes are in sorted order, where the form has none of its own; names that are numbers come first, by value. Their
numbers of images may differ.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ..utils.errors import UserError
from ..utils.files import absolute
from .base import Dataset
from .folder import read_files, tables_of
from .hugging_face import read_hugging_face
from .own_rows import LONGEST_NUMBER, OwnImages
from .splits import SPLITS, Item
from .tar_shards import read_shards

NAME = "ImageFolder"
LAYOUT = (
    "expected ROOT/train/<class>/*.jpg (and val, test if you have them), or a CSV file with the columns "
    "path,label[,split]"
)


class Form(NamedTuple):
    """A form that images may have.

    Attributes:
        name: What it is called.
        read: Takes `--root` and returns the images, or None if it names no images of this form. No image is opened.
    """

    name: str
    read: Callable[[str], OwnImages | None]


# The first that finds something is taken
FORMS = (
    Form("folders and CSV files", read_files),
    Form("Hugging Face data sets, and Parquet files", read_hugging_face),
    Form("WebDataset's tar shards", read_shards),
)


def load_own_images(root: str) -> Dataset:
    """Reads the data set that `--root` names. No image is opened.

    Args:
        root: A folder, a file, URLs of tar shards, or "hf:" and the name of a Hugging Face data set; see docs/data.md.

    Raises:
        UserError: If it has none of the forms, or a class of val or test has no training image.
    """
    if not root:
        raise UserError(f"{NAME} needs --root, your folder or CSV file; {LAYOUT}")
    images = next((found for form in FORMS if (found := form.read(root)) is not None), None)
    if images is None:
        raise _no_form(absolute(root))
    rows, where = images.rows, images.root or root
    trained = {name for _, name in rows["train"]}
    names = [name for name in images.classnames if name in trained]
    names = names if len(names) == len(trained) else sorted(trained, key=_class_order)
    if not names:
        raise UserError(f"{where} has no training image; {LAYOUT}")
    labels = {name: label for label, name in enumerate(names)}
    for split in ("val", "test"):
        unknown = sorted({name for _, name in rows[split]} - set(names))
        if unknown:
            raise UserError(
                f"{where}: {len(unknown)} classes of {split} have no training image: {', '.join(unknown[:5])}"
            )
    train, val, test = ([Item(file, labels[name], name) for file, name in rows[split]] for split in SPLITS)
    return Dataset(NAME, names, train, val, test, images.open, images.root, version=images.version)


def _no_form(path: Path) -> UserError:
    if not os.path.exists(path):  # URLs may be too long for `path.exists`
        return UserError(f"there is no {path}; {LAYOUT}")
    tables = tables_of(path)
    found = f"{len(tables)} CSV files" if len(tables) > 1 else "neither"
    return UserError(f"{path} holds {found}; {LAYOUT}")


def _class_order(name: str) -> tuple[int, int, str]:
    """Sorts numbers by value before all other names."""
    return (0, int(name), name) if name.isdecimal() and len(name) <= LONGEST_NUMBER else (1, 0, name)
