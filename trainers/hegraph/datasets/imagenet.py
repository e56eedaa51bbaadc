"""How ImageNet and its four variants are read, in CoOp's layout. Readers take what those of `layouts.py` take.

Classes are folders that are named by WordNet id, in sorted order; `classnames.txt` gives CLIP's name of each id. A flat
validation folder, as ImageNet is distributed, is read with the help of one of the files that label its images.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..utils.errors import UserError
from .layouts import listing, read_lines, read_mat
from .split_files import read_coop_pickle
from .splits import Item, Pools

WORDNET_ID = re.compile(r"n\d{8}")

# Files that may label a flat validation folder, and the folders in which they may be, below the folder of ImageNet. The
# last file is that of ILSVRC's development kit; it lists numbers of its own, which the kit's meta.mat translates. All
# others list WordNet ids or name the images.
GROUND_TRUTH = (
    "LOC_val_solution.csv",
    "val.txt",
    "imagenet_2012_validation_synset_labels.txt",
    "ILSVRC2012_validation_ground_truth.txt",
)
GROUND_TRUTH_FOLDERS = (".", "images", "images/val", "data", "devkit/data", "ILSVRC2012_devkit_t12/data")


def read_imagenet(folder: Path, rng: random.Random, images: str) -> Pools:
    """Reads ImageNet. The official validation images are both val and test, as in CoOp: the very same list.

    CoOp keeps the items that it read in `preprocessed.pkl`, in the order of the file system at that time, and later
    runs draw from this file. So it goes before the folders here as well.
    """
    listed = folder / "preprocessed.pkl"
    if listed.is_file():
        found = read_coop_pickle(listed, folder.name)
        train, test = (
            [item._replace(path=item.path[len(folder.name) + 1 :]) for item in found.get(split, ())]
            for split in ("train", "test")
        )
    else:
        names = class_names_by_id(folder)
        ids = list_class_ids(folder, f"{images}/train", names)
        train = read_class_folders(folder, f"{images}/train", names, ids)
        test = read_validation(folder, images, names, ids)
    return {"train": train, "val": test, "test": test}


def read_imagenet_v2(folder: Path, rng: random.Random, images: str) -> Pools:
    """Reads ImageNetV2, whose class folders 0 to 999 are positions in `classnames.txt`."""
    names = list(class_names_by_id(folder).values())
    test = []
    for number in sorted(int(name) for name in listing(folder / images) if name.isdigit()):
        if number >= len(names):
            raise UserError(f"{folder / 'classnames.txt'} names {len(names)} classes, and there is a folder {number}")
        files = listing(folder / images / str(number))
        test += [Item(f"{images}/{number}/{file}", number, names[number]) for file in files]
    return {"train": [], "val": [], "test": test}


def read_test_folders(folder: Path, rng: random.Random, images: str) -> Pools:
    """Reads a variant that has only test images, one folder per class."""
    names = class_names_by_id(folder)
    test = read_class_folders(folder, images, names, list_class_ids(folder, images, names))
    return {"train": [], "val": [], "test": test}


def read_class_ids(folder: Path, images: str) -> list[str]:
    """The WordNet ids, in label order, of the classes that have a folder below `folder / images`."""
    return list_class_ids(folder, images, class_names_by_id(folder))


def read_training_ids(folder: Path, images: str) -> list[str]:
    """As `read_class_ids`, of ImageNet's training folders."""
    return read_class_ids(folder, f"{images}/train")


def read_all_class_ids(folder: Path, images: str) -> list[str]:
    """The WordNet ids in the order of `classnames.txt`, whose positions are ImageNetV2's labels."""
    return list(class_names_by_id(folder))


def class_names_by_id(folder: Path) -> dict[str, str]:
    """WordNet id -> class name, in the order of `classnames.txt`, whose lines are `<WordNet id> <name>`."""
    names = {}
    for line in read_lines(folder / "classnames.txt"):
        wordnet_id, _, name = line.partition(" ")
        if not WORDNET_ID.fullmatch(wordnet_id) or not name:
            raise UserError(f"{folder / 'classnames.txt'} must hold lines such as 'n01440764 tench', got {line!r}")
        names[wordnet_id] = name
    return names


def list_class_ids(folder: Path, images: str, names: dict[str, str]) -> list[str]:
    """The WordNet ids of the class folders, in order; raises UserError if `names` lacks one."""
    ids = [name for name in listing(folder / images) if (folder / images / name).is_dir()]
    unnamed = [name for name in ids if name not in names]
    if unnamed:
        raise UserError(f"{folder / images} has a folder {unnamed[0]!r} that {folder / 'classnames.txt'} does not name")
    return ids


def read_class_folders(folder: Path, images: str, names: dict[str, str], ids: list[str]) -> list[Item]:
    """The items of all class folders; `names` is WordNet id -> class name, `ids` the WordNet ids in label order."""
    found = (
        (f"{images}/{wordnet_id}/{file}", wordnet_id)
        for wordnet_id in list_class_ids(folder, images, names)
        for file in listing(folder / images / wordnet_id)
    )
    return list(_items(folder, found, names, ids))


def read_validation(folder: Path, images: str, names: dict[str, str], ids: list[str]) -> list[Item]:
    """The validation images, which are in class folders or in a flat folder with a file that labels them.

    Every class has the label that it has in training, even if some class has no validation images.
    """
    place = f"{images}/val"
    if any(path.is_dir() for path in (folder / place).glob("n*")):
        return read_class_folders(folder, place, names, ids)
    files = [name for name in listing(folder / place) if name.lower().endswith((".jpeg", ".jpg", ".png"))]
    if not files:
        raise UserError(f"{folder / place} holds no image")
    found = ((f"{place}/{file}", wordnet_id) for file, wordnet_id in zip(files, ground_truth(folder, files, names)))
    return sorted(_items(folder, found, names, ids), key=lambda item: (item.label, item.path))


def _items(folder: Path, found: Iterable[tuple[str, str]], names: dict[str, str], ids: list[str]) -> Iterator[Item]:
    """The items of (path, WordNet id); raises UserError for a class without a training folder."""
    labels = {wordnet_id: label for label, wordnet_id in enumerate(ids)}
    for path, wordnet_id in found:
        if wordnet_id not in labels:
            raise UserError(f"the class {wordnet_id!r} of {folder / path} has no folder in {folder / 'images/train'}")
        yield Item(path, labels[wordnet_id], names[wordnet_id])


def ground_truth(folder: Path, files: list[str], wordnet_ids: Iterable[str]) -> list[str]:
    """The WordNet id of every image of a flat validation folder.

    Args:
        files: The sorted names of the images.
        wordnet_ids: The ids of all classes, including those that have no training images here.
    """
    candidates = [folder / where / name for name in GROUND_TRUTH for where in GROUND_TRUTH_FOLDERS]
    path = next((path for path in candidates if path.is_file()), None)
    if path is None:
        raise UserError(
            f"{folder / 'images/val'} holds no class folders, and there is no file that labels its images; put one of "
            f"{', '.join(GROUND_TRUTH)} into {folder}"
        )
    labels = _read_labels(path, files)
    if not all(label.isdigit() for label in labels):
        return labels
    by_number = _ids_by_number(path, sorted(wordnet_ids))
    absent = next((label for label in labels if int(label) not in by_number), None)
    if absent is not None:
        raise UserError(f"{path} names class number {absent}, which is none of {len(by_number)}")
    return [by_number[int(label)] for label in labels]


def _read_labels(path: Path, files: list[str]) -> list[str]:
    """The WordNet id, or else the class number, that a file of `GROUND_TRUTH` gives each of `files`."""
    lines = read_lines(path)
    labels: list[str | None]
    if path.suffix == ".csv":  # Kaggle's, with the header ImageId,PredictionString; a prediction begins with the id
        found = {row.split(",")[0]: row.split(",")[1].split(" ")[0] for row in lines if "," in row}
        labels = [found.get(Path(file).stem) for file in files]
    elif all(len(line.split()) == 2 for line in lines):  # Caffe's val.txt: an image and its class number from 0
        found = dict(map(str.split, lines))
        labels = [found.get(file) for file in files]
    else:  # one class a line, in the order of the names of the images
        labels = [*lines] if len(lines) == len(files) else []
    known = [label for label in labels if label is not None]
    if len(known) != len(files):
        raise UserError(f"{path} does not label the {len(files)} images ({len(lines)} lines)")
    return known


def _ids_by_number(path: Path, wordnet_ids: list[str]) -> dict[int, str]:
    """Class number -> WordNet id. Caffe counts the sorted ids from 0; the development kit has an order of its own."""
    if path.name == "val.txt":
        return dict(enumerate(wordnet_ids))
    meta = next((p for p in (path.parent / "meta.mat", path.parent.parent / "meta.mat") if p.is_file()), None)
    if meta is None:
        raise UserError(
            f"{path} holds the numbers of ILSVRC's development kit; put the kit's data/meta.mat beside it, which says "
            "what they mean"
        )
    synsets = read_mat(meta, "synsets")
    return {int(row[0]["ILSVRC2012_ID"].item()): str(row[0]["WNID"].item()) for row in synsets}
