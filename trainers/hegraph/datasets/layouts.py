"""How CoOp's data sets are read: their lists and folders, and CoOp's way to split one without a split.

The readers `read_<layout>` take the folder of the data set, the generator that a split is drawn from, and the folder of
its images below; paths of items are relative to the data set's folder. Listings are sorted, so that a split does not
depend on the file system.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from ..utils.errors import UserError, first_line
from ..utils.reading import Name, check, read_json, read_text, reading
from .splits import SPLITS, Item, Pools, read_coop_pickle

TRAIN_FRACTION, VAL_FRACTION = 0.5, 0.2  # of each class, where there is no official split
WORDNET_ID, CLASSNAMES = re.compile(r"n\d{8}"), "classnames.txt"

# Files that may label a flat validation folder, and the folders in which they may be, below the folder of ImageNet. The
# last file is that of ILSVRC's development kit; it lists numbers of its own, which the kit's meta.mat translates. All
# others list WordNet ids or name the images.
GROUND_TRUTH = (
    "LOC_val_solution.csv", "val.txt", "imagenet_2012_validation_synset_labels.txt",
    "ILSVRC2012_validation_ground_truth.txt",
)  # fmt: skip
GROUND_TRUTH_FOLDERS = (".", "images", "images/val", "data", "devkit/data", "ILSVRC2012_devkit_t12/data")


def list_names(folder: Path) -> list[str]:
    """The names in a folder, sorted, without hidden ones; UserError if one is not UTF-8, which no record could hold."""
    try:
        names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the name
        raise UserError(f"cannot list the folder {folder}: {first_line(error)}") from error
    if odd := next((name for name in names if name != name.encode(errors="ignore").decode()), ""):
        raise UserError(f"{folder} holds {odd!a}, a name that is not UTF-8; rename it")
    return names


def list_folders(folder: Path) -> list[str]:
    """The names of the folders in a folder; as `list_names`."""
    return [name for name in list_names(folder) if (folder / name).is_dir()]


def read_lines(path: Path) -> list[str]:
    """The lines of a text file, stripped, without empty ones."""
    return [line.strip() for line in read_text(path).splitlines() if line.strip()]


def read_mat(path: Path, variable: str) -> Any:
    """A variable of a Matlab file, as scipy returns it."""
    from scipy.io import loadmat  # slow to import, and few data sets need it

    with reading(path, f"a Matlab file with {variable}"), path.open("rb") as file:
        return loadmat(file)[variable]


# --- splits that are drawn


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
    pools: Pools = {split: [] for split in SPLITS}
    for label, name, paths in by_class:
        rng.shuffle(paths)
        val = round(len(paths) * TRAIN_FRACTION)
        test = val + round(len(paths) * VAL_FRACTION)
        parts = {"train": paths[:val], "val": paths[val:test], "test": paths[test:]}
        if not all(parts.values()):
            raise UserError(f"class {name!r} has {len(paths)} images, too few to be split into train, val and test")
        for split, part in parts.items():
            pools[split] += [Item(path, label, name) for path in part]
    return pools


def _official_lists(trainval: Path, test: Path, item: Callable[[str], Item], rng: random.Random) -> Pools:
    """The items of two official lists, one a line; val is drawn from the first."""
    train, val = split_trainval([item(line) for line in read_lines(trainval)], rng)
    return {"train": train, "val": val, "test": [item(line) for line in read_lines(test)]}


# --- the data sets but for ImageNet's


def read_class_folders(
    folder: Path, rng: random.Random, images: str, ignored: Collection[str] = (), names: Mapping[str, str] | None = None
) -> Pools:
    """One folder per class, but for those `ignored`; `names` of classes that are not called as their folders."""
    folders = [name for name in list_folders(folder / images) if name not in ignored]
    paths = [[f"{images}/{name}/{file}" for file in list_names(folder / images / name)] for name in folders]
    called = [(names or {}).get(name, name) for name in folders]
    return split_classes(zip(range(len(folders)), called, paths), rng)


def read_pets(folder: Path, rng: random.Random, images: str) -> Pools:
    """Lines `<breed>_<number> <class id> <species> <breed id>`; the class name is the breed in lower case."""

    def item(line: str) -> Item:
        image, label, *_ = line.split(" ")
        return Item(f"{images}/{image}.jpg", int(label) - 1, image.rpartition("_")[0].lower())

    lists = folder / "annotations"
    return _official_lists(lists / "trainval.txt", lists / "test.txt", item, rng)


def read_cars(folder: Path, rng: random.Random, images: str) -> Pools:
    """Matlab annotations. The year, which is last in the official class name, is put first."""
    official = [str(name[0]).rpartition(" ") for name in read_mat(folder / "devkit/cars_meta.mat", "class_names")[0]]
    names = [f"{year} {model}" for model, _, year in official]

    def items(place: str, file: str) -> list[Item]:
        rows = [(row["fname"][0], int(row["class"][0, 0]) - 1) for row in read_mat(folder / file, "annotations")[0]]
        return [Item(f"{place}/{image}", label, names[label]) for image, label in rows]

    train, val = split_trainval(items("cars_train", "devkit/cars_train_annos.mat"), rng)
    return {"train": train, "val": val, "test": items("cars_test", "cars_test_annos_withlabels.mat")}


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
    numbered = (line.split(" ") for line in read_lines(lists / "classInd.txt"))
    labels = {action: int(number) - 1 for number, action in numbered}

    def item(line: str) -> Item:
        action, video = line.split(" ")[0].split("/")
        name = "_".join(re.findall("[A-Z][^A-Z]*", action))
        return Item(f"{images}/{name}/{video.replace('.avi', '.jpg')}", labels[action], name)

    return _official_lists(lists / "trainlist01.txt", lists / "testlist01.txt", item, rng)


# --- ImageNet and its variants: classes are folders, or positions in classnames.txt


def read_imagenet(folder: Path, rng: random.Random, images: str) -> Pools:
    """ImageNet. The official validation images are both val and test, as in CoOp: the very same list.

    CoOp keeps the items that it read in `preprocessed.pkl`, in the order of the file system at that time, and later
    runs draw from this file. So it goes before the folders here as well.
    """
    listed, cut = folder / "preprocessed.pkl", len(folder.name) + 1
    if listed.is_file():
        found = read_coop_pickle(listed, folder.name)
        train, test = (
            [item._replace(path=item.path[cut:]) for item in found.get(split, ())] for split in ("train", "test")
        )
    else:
        names, ids = class_names_by_id(folder), class_ids(folder, f"{images}/train")
        train = _items(_in_folders(folder, f"{images}/train"), names, ids)
        test = _items(_validation(folder, f"{images}/val", sorted(names)), names, ids)
    return {"train": train, "val": test, "test": test}


def read_imagenet_v2(folder: Path, rng: random.Random, images: str) -> Pools:
    """ImageNetV2, whose class folders 0 to 999 are positions in `classnames.txt`."""
    names = class_names_by_id(folder)
    ids = list(names)
    found = [(path, ids[int(number)]) for path, number in _in_folders(folder, images) if number.isdigit()]
    return {"train": [], "val": [], "test": _items(found, names, ids)}


def read_test_folders(folder: Path, rng: random.Random, images: str) -> Pools:
    """A variant that has only test images, one folder per class."""
    test = _items(_in_folders(folder, images), class_names_by_id(folder), class_ids(folder, images))
    return {"train": [], "val": [], "test": test}


def class_names_by_id(folder: Path) -> dict[str, str]:
    """WordNet id -> class name, in the order of `classnames.txt`, whose lines are `<WordNet id> <name>`."""
    names = {}
    for line in read_lines(folder / CLASSNAMES):
        wordnet_id, _, name = line.partition(" ")
        if not WORDNET_ID.fullmatch(wordnet_id) or not name:
            raise UserError(f"{folder / CLASSNAMES} must hold lines such as 'n01440764 tench', got {line!r}")
        names[wordnet_id] = name
    return names


def class_ids(folder: Path, place: str) -> list[str]:
    """The WordNet ids of the classes in label order: of `classnames.txt`, or of the class folders in another place."""
    return list(class_names_by_id(folder)) if place == CLASSNAMES else list_folders(folder / place)


def _in_folders(folder: Path, place: str) -> list[tuple[str, str]]:
    """Path and WordNet id of the images in class folders."""
    top = folder / place
    return [(f"{place}/{name}/{file}", name) for name in list_folders(top) for file in list_names(top / name)]


def _validation(folder: Path, place: str, wordnet_ids: list[str]) -> list[tuple[str, str]]:
    """Path and WordNet id of the validation images, which are in class folders, or in a flat folder with a file that
    labels them. `wordnet_ids` are the sorted ids of all classes, also of those without an image.
    """
    if list_folders(folder / place):
        return _in_folders(folder, place)
    files = [name for name in list_names(folder / place) if name.lower().endswith((".jpeg", ".jpg", ".png"))]
    candidates = [folder / where / name for name in GROUND_TRUTH for where in GROUND_TRUTH_FOLDERS]
    path = next((path for path in candidates if path.is_file()), None)
    if path is None:
        raise UserError(f"no file labels the images of {folder / place}; put one of {', '.join(GROUND_TRUTH)} there")
    labels = _read_labels(path, files)
    if all(label.isdigit() for label in labels):
        # Caffe counts the sorted ids from 0; the development kit has an order of its own
        by_number = dict(enumerate(wordnet_ids)) if path.name == "val.txt" else _numbers_of_kit(path)
        labels = [by_number[int(label)] for label in labels]
    return [(f"{place}/{file}", label) for file, label in zip(files, labels)]


def _items(found: list[tuple[str, str]], names: dict[str, str], ids: list[str]) -> list[Item]:
    """The items of (path, WordNet id) by label; `ids` are in label order. KeyError for an id that is not among them."""
    labels = {wordnet_id: label for label, wordnet_id in enumerate(ids)}
    items = [Item(path, labels[wordnet_id], names[wordnet_id]) for path, wordnet_id in found]
    return sorted(items, key=lambda item: item.label)


def _read_labels(path: Path, files: list[str]) -> list[str]:
    """The WordNet id, or else the class number, that a file of `GROUND_TRUTH` gives each of `files`."""
    labels = lines = read_lines(path)  # one class a line, in the order of the names of the images
    rows = [row for line in lines if len(row := re.split(r"[,\s]", line)) > 1]
    if rows:  # an image and its class, in Caffe's val.txt or Kaggle's CSV file
        found = {Path(image).stem: label for image, label, *_ in rows}
        labels = [found.get(Path(file).stem, "") for file in files]
    if len(labels) != len(files) or not all(labels):
        raise UserError(f"{path} does not label the {len(files)} images ({len(lines)} lines)")
    return labels


def _numbers_of_kit(path: Path) -> dict[int, str]:
    """ILSVRC's class number -> WordNet id, of the table `meta.mat` beside the file or a folder above."""
    meta = next((p for p in (path.parent / "meta.mat", path.parent.parent / "meta.mat") if p.is_file()), None)
    if meta is None:
        raise UserError(f"{path} holds numbers of ILSVRC's development kit; put the kit's data/meta.mat beside it")
    synsets = read_mat(meta, "synsets")
    return {int(row[0]["ILSVRC2012_ID"].item()): str(row[0]["WNID"].item()) for row in synsets}
