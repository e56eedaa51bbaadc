"""How ImageNet and its four variants are read, in CoOp's layout.

Classes are folders that are named by WordNet id, in sorted order; `classnames.txt` gives CLIP's name of each id. A flat
validation folder, as ImageNet is distributed, is read with the help of one of the files that label its images.
"""

from __future__ import annotations

import random
import re
from pathlib import Path

from ..utils.errors import UserError
from .layouts import listing, read_lines, read_mat
from .pickles import read_coop_pickle
from .splits import Item, Pools

IMAGENET_V2_IMAGES = "imagenetv2-matched-frequency-format-val"
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


def read_imagenet(folder: Path, rng: random.Random) -> Pools:
    """Reads ImageNet. The official validation images are both val and test, as in CoOp: the very same list.

    CoOp keeps the items that it read in `preprocessed.pkl`, in the order of the file system at that time, and later
    runs draw from this file. So it goes before the folders here as well.
    """
    listed = folder / "preprocessed.pkl"
    if listed.is_file():
        found = read_coop_pickle(listed, folder.name)
        below = {
            split: [item._replace(path=item.path[len(folder.name) + 1 :]) for item in found.get(split, ())]
            for split in ("train", "test")
        }
        return {"train": below["train"], "val": below["test"], "test": below["test"]}
    names = class_names_by_id(folder)
    ids = list_class_ids(folder, "images/train", names)
    train = read_class_folders(folder, "images/train", names, ids)
    test = read_validation(folder, names, ids)
    return {"train": train, "val": test, "test": test}


def read_imagenet_v2(folder: Path, rng: random.Random) -> Pools:
    """Reads ImageNetV2, whose class folders 0 to 999 are positions in `classnames.txt`."""
    images = IMAGENET_V2_IMAGES
    names = list(class_names_by_id(folder).values())
    test = []
    for number in sorted(int(name) for name in listing(folder / images) if name.isdigit()):
        if number >= len(names):
            raise UserError(f"{folder / 'classnames.txt'} names {len(names)} classes, and there is a folder {number}")
        files = listing(folder / images / str(number))
        test += [Item(f"{images}/{number}/{file}", number, names[number]) for file in files]
    return {"train": [], "val": [], "test": test}


def read_test_folders(folder: Path, rng: random.Random, images: str) -> Pools:
    """Reads a variant that has only test images, one folder per class, below `folder / images`."""
    names = class_names_by_id(folder)
    test = read_class_folders(folder, images, names, list_class_ids(folder, images, names))
    return {"train": [], "val": [], "test": test}


def read_class_ids(folder: Path, images: str) -> list[str]:
    """The WordNet ids, in label order, of the classes that have a folder below `folder / images`."""
    return list_class_ids(folder, images, class_names_by_id(folder))


def read_all_class_ids(folder: Path) -> list[str]:
    """The WordNet ids in the order of `classnames.txt`, whose positions are ImageNetV2's labels."""
    return list(class_names_by_id(folder))


def class_names_by_id(folder: Path) -> dict[str, str]:
    """WordNet id -> class name, in the order of `classnames.txt`.

    Raises:
        UserError: If the file is missing or a line is not `<WordNet id> <name>`.
    """
    names = {}
    for line in read_lines(folder / "classnames.txt"):
        wordnet_id, _, name = line.partition(" ")
        if not WORDNET_ID.fullmatch(wordnet_id) or not name:
            raise UserError(f"{folder / 'classnames.txt'} must hold lines such as 'n01440764 tench', got {line!r}")
        names[wordnet_id] = name
    return names


def list_class_ids(folder: Path, images: str, names: dict[str, str]) -> list[str]:
    """As `read_class_ids`, where `names` holds the name of every WordNet id.

    Raises:
        UserError: If a folder is named otherwise.
    """
    ids = [name for name in listing(folder / images) if (folder / images / name).is_dir()]
    unnamed = [name for name in ids if name not in names]
    if unnamed:
        raise UserError(f"{folder / images} has a folder {unnamed[0]!r} that {folder / 'classnames.txt'} does not name")
    return ids


def read_class_folders(folder: Path, images: str, names: dict[str, str], ids: list[str]) -> list[Item]:
    """The items of all class folders below `folder / images`.

    Args:
        folder: The folder of the data set.
        images: The folder of the class folders, below `folder`.
        names: WordNet id -> class name.
        ids: The WordNet ids in label order.

    Raises:
        UserError: If there is a folder of a class that `ids` lacks.
    """
    labels = {wordnet_id: label for label, wordnet_id in enumerate(ids)}
    present = list_class_ids(folder, images, names)
    strange = next((wordnet_id for wordnet_id in present if wordnet_id not in labels), None)
    if strange is not None:
        raise UserError(f"the class {strange!r} of {folder / images} has no folder in {folder / 'images/train'}")
    return [
        Item(f"{images}/{wordnet_id}/{file}", labels[wordnet_id], names[wordnet_id])
        for wordnet_id in present
        for file in listing(folder / images / wordnet_id)
    ]


def read_validation(folder: Path, names: dict[str, str], ids: list[str]) -> list[Item]:
    """The validation images, which are in class folders or in a flat folder with a file that labels them.

    Every class has the label that it has in training, even if some class has no validation images.
    """
    images = folder / "images" / "val"
    if any(path.is_dir() for path in images.glob("n*")):
        return read_class_folders(folder, "images/val", names, ids)
    files = [name for name in listing(images) if name.lower().endswith((".jpeg", ".jpg", ".png"))]
    if not files:
        raise UserError(f"{images} holds no image")
    labels = {wordnet_id: label for label, wordnet_id in enumerate(ids)}
    items = []
    for file, wordnet_id in zip(files, ground_truth(folder, files, sorted(names))):
        if wordnet_id not in labels:
            raise UserError(f"the class {wordnet_id!r} of {images / file} has no folder in {folder / 'images/train'}")
        items.append(Item(f"images/val/{file}", labels[wordnet_id], names[wordnet_id]))
    return sorted(items, key=lambda item: (item.label, item.path))


def ground_truth(folder: Path, files: list[str], wordnet_ids: list[str]) -> list[str]:
    """The WordNet id of every image of a flat validation folder.

    Args:
        folder: The folder of ImageNet.
        files: The sorted names of the images.
        wordnet_ids: The sorted ids of all classes, including those that have no training images here.

    Raises:
        UserError: If there is no file with the labels, or it does not fit the images.
    """
    candidates = [folder / where / name for name in GROUND_TRUTH for where in GROUND_TRUTH_FOLDERS]
    path = next((path for path in candidates if path.is_file()), None)
    if path is None:
        raise UserError(
            f"{folder / 'images/val'} holds no class folders, and there is no file that labels its images; put one of "
            f"{', '.join(GROUND_TRUTH)} into {folder}"
        )
    labels = _read_labels(path, files, folder / "images/val")
    if not all(label.isdigit() for label in labels):
        return labels
    by_number = _ids_by_number(path, wordnet_ids)
    absent = next((label for label in labels if int(label) not in by_number), None)
    if absent is not None:
        raise UserError(f"{path} names class number {absent}, which is none of {len(by_number)}")
    return [by_number[int(label)] for label in labels]


def _read_labels(path: Path, files: list[str], images: Path) -> list[str]:
    """The WordNet id, or else the class number, that a file of `GROUND_TRUTH` gives each of `files` in `images`."""
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
        raise UserError(f"{path} does not label the {len(files)} images of {images} ({len(lines)} lines)")
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
