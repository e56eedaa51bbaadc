"""What the readers of the entries share: listing, reading lists, and CoOp's way to split a data set without a split.

Listings are sorted, so a split that is drawn from a seed does not depend on the file system.
"""

from __future__ import annotations

import os
import random
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from ..utils.errors import UserError
from ..utils.reading import check_regular, read_text
from .splits import Item, Pools

TRAIN_FRACTION, VAL_FRACTION = 0.5, 0.2  # of each class, where there is no official split


def listing(folder: Path) -> list[str]:
    """The names in a folder, sorted, without hidden ones.

    Raises:
        UserError: If there is no such folder, or a name in it is not UTF-8.
    """
    try:
        names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise UserError(f"cannot list the folder {folder}: {error.strerror}") from error
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError as error:
            shown = os.fsencode(name).decode("utf-8", "backslashreplace")
            raise UserError(
                f"{folder} holds {shown!r}, a name that is not UTF-8, which no record could hold; rename it"
            ) from error
    return names


def read_lines(path: Path) -> list[str]:
    """The lines of a text file, stripped, without empty ones.

    Raises:
        UserError: If it cannot be read.
    """
    return [line.strip() for line in read_text(path).splitlines() if line.strip()]


def read_mat(path: Path, variable: str) -> Any:
    """A variable of a Matlab file, as scipy returns it.

    Raises:
        UserError: If it cannot be read.
    """
    from scipy.io import loadmat  # slow to import, and few data sets need it

    check_regular(path, f"cannot read {variable} in the Matlab file")
    try:
        with path.open("rb") as file:
            return loadmat(file)[variable]
    except Exception as error:  # scipy raises many kinds of exceptions on a damaged file
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"cannot read {variable} in the Matlab file {path}: {reason}") from error


def split_trainval(trainval: list[Item], rng: random.Random) -> tuple[list[Item], list[Item]]:
    """Draws a fifth of each class as val; the rest is train (CoOp's `split_trainval`)."""
    by_class: dict[int, list[Item]] = defaultdict(list)  # in order of first appearance
    for item in trainval:
        by_class[item.label].append(item)
    train, val = [], []
    for items in by_class.values():
        num_val = round(len(items) * VAL_FRACTION)
        rng.shuffle(items)
        val += items[:num_val]
        train += items[num_val:]
    return train, val


def split_classes(by_class: Iterable[tuple[int, str, list[str]]], rng: random.Random) -> Pools:
    """Draws half of each class as train and a fifth as val; the rest is test (CoOp's `read_and_split_data`).

    Args:
        by_class: Label, name and image paths of each class.
        rng: The generator to draw from.

    Raises:
        UserError: If a class has too few images for the three.
    """
    pools: Pools = {"train": [], "val": [], "test": []}
    for label, name, paths in by_class:
        rng.shuffle(paths)
        num_train, num_val = round(len(paths) * TRAIN_FRACTION), round(len(paths) * VAL_FRACTION)
        parts = {
            "train": paths[:num_train],
            "val": paths[num_train : num_train + num_val],
            "test": paths[num_train + num_val :],
        }
        if not all(parts.values()):
            raise UserError(f"class {name!r} has {len(paths)} images, too few to be split into train, val and test")
        for split, part in parts.items():
            pools[split] += [Item(path, label, name) for path in part]
    return pools


def split_class_folders(
    folder: Path, rng: random.Random, images: str, ignored: Collection[str] = (), names: Mapping[str, str] | None = None
) -> Pools:
    """Reads a data set that is one folder per class, without an official split, and draws a split.

    Args:
        folder: The folder of the data set.
        rng: The generator to draw from.
        images: The folder of the class folders, below `folder`.
        ignored: Class folders that are left out.
        names: Folder -> class name, for the classes that are not named as their folders.

    Raises:
        UserError: If there is no class folder, or a class has too few images.
    """
    folders = [name for name in listing(folder / images) if name not in ignored and (folder / images / name).is_dir()]
    if not folders:
        raise UserError(f"{folder / images} holds no folder of a class")

    def paths(name: str) -> list[str]:
        return [f"{images}/{name}/{file}" for file in listing(folder / images / name)]

    return split_classes(
        ((label, (names or {}).get(name, name), paths(name)) for label, name in enumerate(folders)), rng
    )
