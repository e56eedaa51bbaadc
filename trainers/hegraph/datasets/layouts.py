"""How CoOp's data sets are read, but for ImageNet's: their lists, and CoOp's way to split one without a split.

Readers take the folder of the data set, the generator that a split is drawn from, and the folder of its images below;
paths of items are relative to the data set's folder. Listings are sorted, so that a split does not depend on the file
system.
"""

from __future__ import annotations

import os
import random
import re
import stat
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from ..utils.errors import UserError, first_line
from ..utils.reading import read_json, read_text, reading
from ..utils.schema import Name, check
from .splits import SPLITS, Item, Pools

TRAIN_FRACTION, VAL_FRACTION = 0.5, 0.2  # of each class, where there is no official split


def listing(folder: Path) -> list[str]:
    """The names in a folder, sorted, without hidden ones; UserError if one of them is not UTF-8."""
    try:
        names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise UserError(f"cannot list the folder {folder}: {first_line(error)}") from error
    for name in names:
        check_utf8(name, str(folder))
    return names


def check_utf8(name: str, where: str) -> None:
    """Raises UserError if a name of a file is not UTF-8, since no record could hold it."""
    try:
        name.encode()
    except UnicodeEncodeError as error:
        shown = os.fsencode(name).decode("utf-8", "backslashreplace")
        raise UserError(f"{where} holds {shown!r}, a name that is not UTF-8; rename it") from error


def is_folder(path: Path) -> bool:
    """Whether there is such a folder; raises UserError if this user may not know."""
    try:
        return stat.S_ISDIR(os.stat(path).st_mode)
    except PermissionError as error:
        raise UserError(f"cannot read {path}: {first_line(error)}") from error
    except (OSError, ValueError):  # a name that is too long, or that no file can have
        return False


def read_lines(path: Path) -> list[str]:
    """The lines of a text file, stripped, without empty ones."""
    return [line.strip() for line in read_text(path).splitlines() if line.strip()]


def read_mat(path: Path, variable: str) -> Any:
    """A variable of a Matlab file, as scipy returns it."""
    from scipy.io import loadmat  # slow to import, and few data sets need it

    with reading(path, f"a Matlab file with {variable}"), path.open("rb") as file:
        return loadmat(file)[variable]


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

    `by_class` gives label, name and image paths of each class.
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
        ignored: Class folders that are left out.
        names: Folder -> class name, for the classes that are not named as their folders.
    """
    folders = [name for name in listing(folder / images) if name not in ignored and (folder / images / name).is_dir()]
    if not folders:
        raise UserError(f"{folder / images} holds no folder of a class")

    def paths(name: str) -> list[str]:
        return [f"{images}/{name}/{file}" for file in listing(folder / images / name)]

    return split_classes(
        ((label, (names or {}).get(name, name), paths(name)) for label, name in enumerate(folders)), rng
    )


def read_pets(folder: Path, rng: random.Random, images: str) -> Pools:
    """Lines `<breed>_<number> <class id> <species> <breed id>`; the class name is the breed in lower case."""

    def item(line: str) -> Item:
        image, label, *_ = line.split(" ")
        return Item(f"{images}/{image}.jpg", int(label) - 1, image.rpartition("_")[0].lower())

    lists = folder / "annotations"
    return _official_lists(lists / "trainval.txt", lists / "test.txt", item, rng)


def read_cars(folder: Path, rng: random.Random, images: str) -> Pools:
    """Matlab annotations. The year, which is last in the official class name, is put first."""
    names = [str(name[0]) for name in read_mat(folder / "devkit" / "cars_meta.mat", "class_names")[0]]

    def items(place: str, file: Path) -> list[Item]:
        found = []
        for row in read_mat(file, "annotations")[0]:
            label = int(row["class"][0, 0]) - 1
            model, _, year = names[label].rpartition(" ")
            found.append(Item(f"{place}/{row['fname'][0]}", label, f"{year} {model}"))
        return found

    trainval = items("cars_train", folder / "devkit" / "cars_train_annos.mat")
    test = items("cars_test", folder / "cars_test_annos_withlabels.mat")
    train, val = split_trainval(trainval, rng)
    return {"train": train, "val": val, "test": test}


def read_flowers(folder: Path, rng: random.Random, images: str) -> Pools:
    """The labels of image 1, 2, ... in a Matlab file. CoOp does not use the official split but draws all three."""
    by_label: dict[int, list[str]] = defaultdict(list)
    for number, label in enumerate(read_mat(folder / "imagelabels.mat", "labels")[0], start=1):
        by_label[int(label)].append(f"{images}/image_{number:05d}.jpg")
    names = check(dict[str, Name], read_json(folder / "cat_to_name.json"), f"{folder / 'cat_to_name.json'}")
    return split_classes(((label - 1, names[str(label)], paths) for label, paths in by_label.items()), rng)


def read_aircraft(folder: Path, rng: random.Random, images: str) -> Pools:
    """Lines `<image> <variant>` of the official split into three. Nothing is drawn."""
    labels = {name: label for label, name in enumerate(read_lines(folder / "variants.txt"))}

    def item(line: str) -> Item:
        image, _, variant = line.partition(" ")
        return Item(f"{images}/{image}.jpg", labels[variant], variant)

    return {split: [item(line) for line in read_lines(folder / f"images_variant_{split}.txt")] for split in SPLITS}


def read_sun(folder: Path, rng: random.Random, images: str) -> Pools:
    """Paths `/a/airplane_cabin/sun_x.jpg`. The class name of `/b/balcony/interior` is "interior balcony"."""
    labels = {line[1:]: label for label, line in enumerate(read_lines(folder / "ClassName.txt"))}

    def item(line: str) -> Item:
        scene = line[1:].rpartition("/")[0]
        return Item(f"{images}/{line[1:]}", labels[scene], " ".join(reversed(scene.split("/")[1:])))

    return _official_lists(folder / "Training_01.txt", folder / "Testing_01.txt", item, rng)


def read_ucf(folder: Path, rng: random.Random, images: str) -> Pools:
    """Lists of videos. The action `ApplyEyeMakeup` has the folder and the class name `Apply_Eye_Makeup`."""
    lists = folder / "ucfTrainTestlist"
    labels = {}
    for line in read_lines(lists / "classInd.txt"):
        number, action = line.split(" ")
        labels[action] = int(number) - 1

    def item(line: str) -> Item:
        action, video = line.split(" ")[0].split("/")
        name = "_".join(re.findall("[A-Z][^A-Z]*", action))
        return Item(f"{images}/{name}/{video.replace('.avi', '.jpg')}", labels[action], name)

    return _official_lists(lists / "trainlist01.txt", lists / "testlist01.txt", item, rng)


def _official_lists(trainval: Path, test: Path, item: Callable[[str], Item], rng: random.Random) -> Pools:
    """The items of two official lists, one a line; val is drawn from the first."""
    train, val = split_trainval([item(line) for line in read_lines(trainval)], rng)
    return {"train": train, "val": val, "test": [item(line) for line in read_lines(test)]}
