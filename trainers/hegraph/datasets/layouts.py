"""How the data sets lie on disk, as CoOp reads them, and how CoOp splits those that come without a split.

Every reader takes the folder of a data set and returns items whose paths are relative to it. Listings are sorted, so
a split drawn from a seed does not depend on the file system.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from ..utils.errors import UserError
from ..utils.files import read_json
from .splits import Item

Pools = dict[str, list[Item]]  # "train", "val", "test"

TRAIN_FRACTION, VAL_FRACTION = 0.5, 0.2  # of each class, where there is no official split


def listing(folder: Path) -> list[str]:
    """Sorted names in a folder, without hidden ones.

    Raises:
        UserError: If there is no such folder.
    """
    try:
        return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise UserError(f"cannot list the folder {folder}: {error.strerror}") from error


def read_lines(path: Path) -> list[str]:
    """The lines of a text file, stripped, without empty ones.

    Raises:
        UserError: If it cannot be read.
    """
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {getattr(error, 'strerror', 'not text')}") from error


def split_trainval(trainval: list[Item], rng: random.Random) -> tuple[list[Item], list[Item]]:
    """A fifth of each class, drawn at random, becomes val (CoOp's `split_trainval`)."""
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
    """Half of each class becomes train, a fifth val, the rest test, at random (CoOp's `read_and_split_data`).

    Args:
        by_class: Label, name and image paths of each class.
        rng: What is drawn from.

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
    folder: Path, images: str, rng: random.Random, ignored: Collection[str] = (), names: Mapping[str, str] | None = None
) -> Pools:
    """One folder per class, no official split (Caltech101, DTD, EuroSAT, Food101)."""
    folders = [name for name in listing(folder / images) if name not in ignored and (folder / images / name).is_dir()]
    if not folders:
        raise UserError(f"{folder / images} holds no folder of a class")

    def paths(name: str) -> list[str]:
        return [f"{images}/{name}/{file}" for file in listing(folder / images / name)]

    return split_classes(
        ((label, (names or {}).get(name, name), paths(name)) for label, name in enumerate(folders)), rng
    )


def oxford_pets(folder: Path, rng: random.Random) -> Pools:
    """Lines `<breed>_<number> <class id> <species> <breed id>`; the class name is the breed in lower case."""

    def read(file: str) -> list[Item]:
        items = []
        for line in read_lines(folder / "annotations" / file):
            image, label, *_ = line.split(" ")
            items.append(Item(f"images/{image}.jpg", int(label) - 1, image.rpartition("_")[0].lower()))
        return items

    train, val = split_trainval(read("trainval.txt"), rng)
    return {"train": train, "val": val, "test": read("test.txt")}


def stanford_cars(folder: Path, rng: random.Random) -> Pools:
    """Matlab annotations. The year, last in the official class name, is put first."""
    names = [str(name[0]) for name in read_mat(folder / "devkit" / "cars_meta.mat", "class_names")[0]]

    def read(images: str, file: Path) -> list[Item]:
        items = []
        for row in read_mat(file, "annotations")[0]:
            label = int(row["class"][0, 0]) - 1
            model, _, year = names[label].rpartition(" ")
            items.append(Item(f"{images}/{row['fname'][0]}", label, f"{year} {model}"))
        return items

    trainval = read("cars_train", folder / "devkit" / "cars_train_annos.mat")
    test = read("cars_test", folder / "cars_test_annos_withlabels.mat")
    train, val = split_trainval(trainval, rng)
    return {"train": train, "val": val, "test": test}


def oxford_flowers(folder: Path, rng: random.Random) -> Pools:
    """Label of image 1, 2, ... in a Matlab file; CoOp does not use the official split."""
    by_label: dict[int, list[str]] = defaultdict(list)
    for number, label in enumerate(read_mat(folder / "imagelabels.mat", "labels")[0], start=1):
        by_label[int(label)].append(f"jpg/image_{number:05d}.jpg")
    names = read_json(folder / "cat_to_name.json")
    return split_classes(((label - 1, names[str(label)], paths) for label, paths in by_label.items()), rng)


def sun397(folder: Path, rng: random.Random) -> Pools:
    """Paths `/a/airplane_cabin/sun_x.jpg`; the name of `/b/balcony/interior` is "interior balcony"."""
    classes = [line[1:] for line in read_lines(folder / "ClassName.txt")]
    labels = {name: label for label, name in enumerate(classes)}

    def read(file: str) -> list[Item]:
        items = []
        for line in read_lines(folder / file):
            path = line[1:]
            scene = path.rpartition("/")[0]
            items.append(Item(f"SUN397/{path}", labels[scene], " ".join(reversed(scene.split("/")[1:]))))
        return items

    trainval, test = read("Training_01.txt"), read("Testing_01.txt")
    train, val = split_trainval(trainval, rng)
    return {"train": train, "val": val, "test": test}


def ucf101(folder: Path, rng: random.Random) -> Pools:
    """Middle frames of videos; action `ApplyEyeMakeup` is in folder and has the name `Apply_Eye_Makeup`."""
    lists = folder / "ucfTrainTestlist"
    labels = {}
    for line in read_lines(lists / "classInd.txt"):
        number, action = line.split(" ")
        labels[action] = int(number) - 1

    def read(file: str) -> list[Item]:
        items = []
        for line in read_lines(lists / file):
            action, video = line.split(" ")[0].split("/")
            name = "_".join(re.findall("[A-Z][^A-Z]*", action))
            items.append(Item(f"UCF-101-midframes/{name}/{video.replace('.avi', '.jpg')}", labels[action], name))
        return items

    trainval, test = read("trainlist01.txt"), read("testlist01.txt")
    train, val = split_trainval(trainval, rng)
    return {"train": train, "val": val, "test": test}


def fgvc_aircraft(folder: Path, rng: random.Random) -> Pools:
    """Lines `<image> <variant>`; the official split, nothing is drawn."""
    labels = {name: label for label, name in enumerate(read_lines(folder / "variants.txt"))}

    def read(split: str) -> list[Item]:
        items = []
        for line in read_lines(folder / f"images_variant_{split}.txt"):
            image, _, variant = line.partition(" ")
            items.append(Item(f"images/{image}.jpg", labels[variant], variant))
        return items

    return {split: read(split) for split in ("train", "val", "test")}


def read_mat(path: Path, variable: str) -> Any:
    """A variable of a Matlab file, as scipy gives it.

    Raises:
        UserError: If it cannot be read.
    """
    from scipy.io import loadmat  # slow to import, and few data sets need it

    try:
        with path.open("rb") as file:
            return loadmat(file)[variable]
    except Exception as error:  # on a damaged file, scipy raises whatever its bytes lead to
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"cannot read {variable} in the Matlab file {path}: {reason}") from error
