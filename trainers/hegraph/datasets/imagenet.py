"""ImageNet and its four variants, in CoOp's layout.

Classes are folders named by WordNet id, in sorted order; `classnames.txt` gives each id CLIP's name for it. Flat
validation folders, as ImageNet is distributed, are read with one of the files that say what is in them.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from pathlib import Path

from ..utils.errors import UserError
from .layouts import Pools, listing, read_lines, read_mat
from .pickles import read_coop_pickle
from .splits import Item

WORDNET_ID = re.compile(r"n\d{8}")

# Where the labels of a flat validation folder may be, below the folder of ImageNet. All but the last name the images or
# list WordNet ids; the last, of ILSVRC's development kit, lists its own numbers, which meta.mat translates.
GROUND_TRUTH = (
    "LOC_val_solution.csv",
    "val.txt",
    "imagenet_2012_validation_synset_labels.txt",
    "ILSVRC2012_validation_ground_truth.txt",
)
GROUND_TRUTH_FOLDERS = (".", "images", "images/val", "data", "devkit/data", "ILSVRC2012_devkit_t12/data")


def imagenet(folder: Path, rng: random.Random) -> Pools:
    """CoOp tests on the official validation images and names them as val too; here val is known to be test.

    CoOp keeps what it has read in `preprocessed.pkl`, in the order in which the file system had it, and draws from
    that ever after; so it wins here too.
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
    ids = class_ids(folder, "images/train", names)
    train = read_class_folders(folder, "images/train", names, ids)
    test = read_validation(folder, names, ids)
    return {"train": train, "val": test, "test": test}


def imagenet_v2(folder: Path, rng: random.Random) -> Pools:
    """Folders 0 to 999 are positions in classnames.txt."""
    images = "imagenetv2-matched-frequency-format-val"
    names = list(class_names_by_id(folder).values())
    test = []
    for number in sorted(int(name) for name in listing(folder / images) if name.isdigit()):
        if number >= len(names):
            raise UserError(f"{folder / 'classnames.txt'} names {len(names)} classes, and there is a folder {number}")
        files = listing(folder / images / str(number))
        test += [Item(f"{images}/{number}/{file}", number, names[number]) for file in files]
    return {"train": [], "val": [], "test": test}


def test_folders(images: str) -> Callable[[Path, random.Random], Pools]:
    """A reader of a variant that has only test images, one folder per class."""

    def read(folder: Path, rng: random.Random) -> Pools:
        names = class_names_by_id(folder)
        return {
            "train": [], "val": [],
            "test": read_class_folders(folder, images, names, class_ids(folder, images, names)),
        }  # fmt: skip

    return read


def ids(images: str) -> Callable[[Path], list[str]]:
    """A reader of the WordNet ids, in label order, of classes that are folders."""
    return lambda folder: class_ids(folder, images, class_names_by_id(folder))


def ids_by_position(folder: Path) -> list[str]:
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


def class_ids(folder: Path, images: str, names: dict[str, str]) -> list[str]:
    """The WordNet ids that have a folder, in label order."""
    ids = [name for name in listing(folder / images) if (folder / images / name).is_dir()]
    unnamed = [name for name in ids if name not in names]
    if unnamed:
        raise UserError(f"{folder / images} has a folder {unnamed[0]!r} that {folder / 'classnames.txt'} does not name")
    return ids


def read_class_folders(folder: Path, images: str, names: dict[str, str], ids: list[str]) -> list[Item]:
    """Items of one folder per WordNet id; `ids` are the classes in label order.

    Raises:
        UserError: If there is a folder of another class.
    """
    labels = {wordnet_id: label for label, wordnet_id in enumerate(ids)}
    present = class_ids(folder, images, names)
    strange = next((wordnet_id for wordnet_id in present if wordnet_id not in labels), None)
    if strange is not None:
        raise UserError(f"the class {strange!r} of {folder / images} has no folder in {folder / 'images/train'}")
    return [
        Item(f"{images}/{wordnet_id}/{file}", labels[wordnet_id], names[wordnet_id])
        for wordnet_id in present
        for file in listing(folder / images / wordnet_id)
    ]


def read_validation(folder: Path, names: dict[str, str], ids: list[str]) -> list[Item]:
    """The validation images: folders as in training, or a flat folder and a file that labels it.

    A class has the label that it has in training, also if a folder is missing.
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
    """The WordNet id of every image of a flat validation folder, `files` being its sorted names.

    `wordnet_ids` are those of all classes, sorted: training images may be here for some of them only.

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
    lines = read_lines(path)
    if path.suffix == ".csv":  # Kaggle: ImageId,PredictionString with a header; the string begins with the id
        found = {row.split(",")[0]: row.split(",")[1].split(" ")[0] for row in lines if "," in row}
        rows = [found.get(Path(file).stem) for file in files]
    elif all(len(line.split()) == 2 for line in lines):  # an image and its class: Caffe's val.txt, from 0
        found = dict(line.split() for line in lines)
        rows = [found.get(file) for file in files]
    else:  # one class a line, in the order of the images' names
        rows = lines if len(lines) == len(files) else [None] * len(files)
    if None in rows:
        raise UserError(
            f"{path} does not label the {len(files)} images of {folder / 'images/val'} ({len(lines)} lines)"
        )
    if all(row.isdigit() for row in rows):
        by_number = _ids_by_number(path, wordnet_ids)
        absent = next((row for row in rows if int(row) not in by_number), None)
        if absent is not None:
            raise UserError(f"{path} names class number {absent}, which is none of {len(by_number)}")
        rows = [by_number[int(row)] for row in rows]
    return rows


def _ids_by_number(path: Path, wordnet_ids: list[str]) -> dict[int, str]:
    """Class number -> WordNet id: Caffe counts sorted ids from 0, the development kit has an order of its own."""
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
