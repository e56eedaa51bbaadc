"""Readers of CoOp's data sets, and CoOp's random splits of data sets without official splits.

A reader `read_<layout>` takes the folder of the data set, the generator of random splits, and the subfolder of images.
It returns items with paths relative to the data set's folder. Listings are sorted, so that splits do not depend on the
file system.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from random import Random
from typing import Any

from ..utils.errors import UserError, first_line
from ..utils.reading import Name, read_json, read_text, reading, validate
from .splits import SPLITS, Item, Pools, read_coop_pickle

TRAIN_FRACTION, VAL_FRACTION = 0.5, 0.2  # of the images of a class, in a random split
WORDNET_ID = re.compile(r"n\d{8}")
CLASSNAMES = "classnames.txt"

# Files with the labels of a flat validation folder, and their possible folders below the folder of ImageNet. The last
# file, of ILSVRC's development kit, lists class numbers, which the kit's meta.mat converts to WordNet ids. Other files
# list WordNet ids or image names.
GROUND_TRUTH = (
    "LOC_val_solution.csv", "val.txt", "imagenet_2012_validation_synset_labels.txt",
    "ILSVRC2012_validation_ground_truth.txt",
)  # fmt: skip
GROUND_TRUTH_FOLDERS = (".", "images", "images/val", "data", "devkit/data", "ILSVRC2012_devkit_t12/data")


def list_names(folder: Path) -> list[str]:
    """List the names in a folder, sorted, without hidden ones; UserError for a name that is not UTF-8."""
    try:
        names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the name
        raise UserError(f"cannot list the folder {folder}: {first_line(error)}", "folder.list") from error
    if odd := next((name for name in names if name != name.encode(errors="ignore").decode()), ""):
        raise UserError(f"{folder} contains {odd!a}, a name that is not UTF-8; rename it", "folder.utf8")
    return names


def list_folders(folder: Path) -> list[str]:
    """List the names of the folders in a folder, as `list_names`."""
    return [name for name in list_names(folder) if (folder / name).is_dir()]


def read_lines(path: Path) -> list[str]:
    """Read the lines of a text file, stripped, without empty ones."""
    return [line.strip() for line in read_text(path).splitlines() if line.strip()]


def read_mat(path: Path, variable: str) -> Any:
    """Read a variable of a Matlab file by scipy."""
    from scipy.io import loadmat  # slow to import, and few data sets need it

    with reading(path, f"a Matlab file with {variable}"), path.open("rb") as file:
        return loadmat(file)[variable]


# --- random splits


def split_trainval(trainval: list[Item], rng: Random) -> tuple[list[Item], list[Item]]:
    """Split each class at random into 80 % train and 20 % val (CoOp's `split_trainval`)."""
    by_class: dict[int, list[Item]] = defaultdict(list)  # in order of first appearance
    for item in trainval:
        by_class[item.label].append(item)
    train = []
    val = []
    for items in by_class.values():
        num_val = round(len(items) * VAL_FRACTION)
        rng.shuffle(items)
        val += items[:num_val]
        train += items[num_val:]
    return train, val


def split_classes(by_class: Iterable[tuple[int, str, list[str]]], rng: Random) -> Pools:
    """Split each class at random into 50 % train, 20 % val and 30 % test (CoOp's `read_and_split_data`).

    Args:
        by_class: Label, name and image paths of each class; the lists of paths are shuffled in place.
        rng: Generator of the split.

    Raises:
        UserError: If a class has too few images for three splits.
    """
    pools: Pools = {split: [] for split in SPLITS}
    for label, name, paths in by_class:
        rng.shuffle(paths)
        val_start = round(len(paths) * TRAIN_FRACTION)
        test_start = val_start + round(len(paths) * VAL_FRACTION)
        parts = {"train": paths[:val_start], "val": paths[val_start:test_start], "test": paths[test_start:]}
        if not all(parts.values()):
            raise UserError(f"class {name!r} has {len(paths)} images, too few to split into train, val and test")
        for split, part in parts.items():
            pools[split] += [Item(path, label, name) for path in part]
    return pools


def _official_lists(trainval: Path, test: Path, item: Callable[[str], Item], rng: Random) -> Pools:
    """Read two official lists, with an item per line, and split val from the first at random."""
    train, val = split_trainval([item(line) for line in read_lines(trainval)], rng)
    return {"train": train, "val": val, "test": [item(line) for line in read_lines(test)]}


# --- data sets other than ImageNet


def read_class_folders(
    folder: Path, rng: Random, images: str, ignored: Collection[str] = (), names: Mapping[str, str] | None = None
) -> Pools:
    """Read one folder per class, except `ignored`; `names` maps folders to different class names."""
    folders = [name for name in list_folders(folder / images) if name not in ignored]
    paths = []
    for name in folders:
        paths.append([f"{images}/{name}/{file}" for file in list_names(folder / images / name)])
    classnames = [(names or {}).get(name, name) for name in folders]
    return split_classes(zip(range(len(folders)), classnames, paths), rng)


def read_pets(folder: Path, rng: Random, images: str) -> Pools:
    """Read lines `<breed>_<number> <class id> <species> <breed id>`; the class name is the breed in lower case."""

    def item(line: str) -> Item:
        image, label, *_ = line.split(" ")
        return Item(f"{images}/{image}.jpg", int(label) - 1, image.rpartition("_")[0].lower())

    lists = folder / "annotations"
    return _official_lists(lists / "trainval.txt", lists / "test.txt", item, rng)


def read_cars(folder: Path, rng: Random, images: str) -> Pools:
    """Read Matlab annotations, and move the year from the end of a class name to the front.

    Val is split at random from the official training images. The annotations imply the folders of the images, so
    `images` is not used.
    """
    official = [str(name[0]).rpartition(" ") for name in read_mat(folder / "devkit/cars_meta.mat", "class_names")[0]]
    names = [f"{year} {model}" for model, _, year in official]

    def items(subfolder: str, file: str) -> list[Item]:
        rows = [(row["fname"][0], int(row["class"][0, 0]) - 1) for row in read_mat(folder / file, "annotations")[0]]
        return [Item(f"{subfolder}/{image}", label, names[label]) for image, label in rows]

    train, val = split_trainval(items("cars_train", "devkit/cars_train_annos.mat"), rng)
    return {"train": train, "val": val, "test": items("cars_test", "cars_test_annos_withlabels.mat")}


def read_flowers(folder: Path, rng: Random, images: str) -> Pools:
    """Read the labels of images 1, 2, ... from a Matlab file. CoOp replaces the official split by a random one."""
    by_label: dict[int, list[str]] = defaultdict(list)
    for number, label in enumerate(read_mat(folder / "imagelabels.mat", "labels")[0], start=1):
        by_label[int(label)].append(f"{images}/image_{number:05d}.jpg")
    names = validate(dict[str, Name], read_json(folder / "cat_to_name.json"), f"{folder / 'cat_to_name.json'}")
    return split_classes(((label - 1, names[str(label)], paths) for label, paths in by_label.items()), rng)


def read_aircraft(folder: Path, rng: Random, images: str) -> Pools:
    """Read lines `<image> <variant>` of the three official splits."""
    labels = {name: label for label, name in enumerate(read_lines(folder / "variants.txt"))}

    def item(line: str) -> Item:
        image, _, variant = line.partition(" ")
        return Item(f"{images}/{image}.jpg", labels[variant], variant)

    pools: Pools = {}
    for split in SPLITS:
        pools[split] = [item(line) for line in read_lines(folder / f"images_variant_{split}.txt")]
    return pools


def read_sun(folder: Path, rng: Random, images: str) -> Pools:
    """Read paths `/a/airplane_cabin/sun_x.jpg`. The class name of `/b/balcony/interior` is "interior balcony"."""
    labels = {line[1:]: label for label, line in enumerate(read_lines(folder / "ClassName.txt"))}

    def item(line: str) -> Item:
        scene = line[1:].rpartition("/")[0]
        return Item(f"{images}/{line[1:]}", labels[scene], " ".join(reversed(scene.split("/")[1:])))

    return _official_lists(folder / "Training_01.txt", folder / "Testing_01.txt", item, rng)


def read_ucf(folder: Path, rng: Random, images: str) -> Pools:
    """Read lists of videos. The action `ApplyEyeMakeup` has the folder and the class name `Apply_Eye_Makeup`."""
    lists = folder / "ucfTrainTestlist"
    numbered = (line.split(" ") for line in read_lines(lists / "classInd.txt"))
    labels = {action: int(number) - 1 for number, action in numbered}

    def item(line: str) -> Item:
        action, video = line.split(" ")[0].split("/")
        name = "_".join(re.findall("[A-Z][^A-Z]*", action))
        return Item(f"{images}/{name}/{video.replace('.avi', '.jpg')}", labels[action], name)

    return _official_lists(lists / "trainlist01.txt", lists / "testlist01.txt", item, rng)


# --- ImageNet and its variants


def read_imagenet(folder: Path, rng: Random, images: str) -> Pools:
    """Read ImageNet, with the official validation images as val and test, as in CoOp.

    CoOp stores the items in `preprocessed.pkl`, in the order of the file system, and samples from this file in later
    runs. So this file has priority over the folders.
    """
    pickled = folder / "preprocessed.pkl"
    prefix = f"{folder.name}/"
    if pickled.is_file():
        stored = read_coop_pickle(pickled, folder.name)
        items: Pools = {}
        for split, with_folder in stored.items():
            items[split] = [item._replace(path=item.path.removeprefix(prefix)) for item in with_folder]
        train = items["train"]
        test = items.get("test", [])
    else:
        names = class_names_by_id(folder)
        ids = class_ids(folder, f"{images}/train")
        train = _items(_in_folders(folder, f"{images}/train"), names, ids)
        test = _items(_validation(folder, f"{images}/val", sorted(names)), names, ids)
    return {"train": train, "val": test, "test": test}


def read_imagenet_v2(folder: Path, rng: Random, images: str) -> Pools:
    """Read ImageNetV2, with class folders 0 to 999 that are positions in `classnames.txt`."""
    names = class_names_by_id(folder)
    ids = list(names)
    labelled = [(path, ids[int(number)]) for path, number in _in_folders(folder, images) if number.isdigit()]
    return {"train": [], "val": [], "test": _items(labelled, names, ids)}


def read_test_folders(folder: Path, rng: Random, images: str) -> Pools:
    """Read a variant of ImageNet with only test images, in one folder per class."""
    test = _items(_in_folders(folder, images), class_names_by_id(folder), class_ids(folder, images))
    return {"train": [], "val": [], "test": test}


def class_names_by_id(folder: Path) -> dict[str, str]:
    """Read class names by WordNet id from `classnames.txt`, with lines `<WordNet id> <name>`."""
    names = {}
    for line in read_lines(folder / CLASSNAMES):
        wordnet_id, _, name = line.partition(" ")
        if not WORDNET_ID.fullmatch(wordnet_id) or not name:
            raise UserError(f"{folder / CLASSNAMES}: expected lines such as 'n01440764 tench', got {line!r}")
        names[wordnet_id] = name
    return names


def class_ids(folder: Path, place: str) -> list[str]:
    """Read the WordNet ids of the classes in label order, from `classnames.txt` or the names of class folders."""
    return list(class_names_by_id(folder)) if place == CLASSNAMES else list_folders(folder / place)


def _in_folders(folder: Path, place: str) -> list[tuple[str, str]]:
    """List path and WordNet id of the images in class folders."""
    top = folder / place
    return [(f"{place}/{name}/{file}", name) for name in list_folders(top) for file in list_names(top / name)]


def _validation(folder: Path, place: str, wordnet_ids: list[str]) -> list[tuple[str, str]]:
    """List path and WordNet id of the validation images, from class folders or a flat folder with a file of labels.

    Args:
        folder: Folder of ImageNet.
        place: Folder of the validation images, relative to `folder`.
        wordnet_ids: Sorted ids of all classes, including classes without images.
    """
    if list_folders(folder / place):
        return _in_folders(folder, place)
    files = [name for name in list_names(folder / place) if name.lower().endswith((".jpeg", ".jpg", ".png"))]
    candidates = [folder / where / name for name in GROUND_TRUTH for where in GROUND_TRUTH_FOLDERS]
    path = next((path for path in candidates if path.is_file()), None)
    if path is None:
        raise UserError(f"no labels of the images in {folder / place}; put one of {', '.join(GROUND_TRUTH)} there")
    labels = _read_labels(path, files)
    if all(label.isdigit() for label in labels):
        # Caffe numbers the sorted ids from 0; the development kit uses another order
        by_number = dict(enumerate(wordnet_ids)) if path.name == "val.txt" else _numbers_of_kit(path)
        labels = [by_number[int(label)] for label in labels]
    return [(f"{place}/{file}", label) for file, label in zip(files, labels)]


def _items(labelled: list[tuple[str, str]], names: dict[str, str], ids: list[str]) -> list[Item]:
    """Convert (path, WordNet id) to items, sorted by label; `ids` are in label order. KeyError for an unknown id."""
    labels = {wordnet_id: label for label, wordnet_id in enumerate(ids)}
    items = [Item(path, labels[wordnet_id], names[wordnet_id]) for path, wordnet_id in labelled]
    return sorted(items, key=lambda item: item.label)


def _read_labels(path: Path, files: list[str]) -> list[str]:
    """Read the WordNet id or the class number of each of `files` from a file of `GROUND_TRUTH`."""
    labels = lines = read_lines(path)  # one class per line, in the order of image names
    rows = [re.split(r"[,\s]", line) for line in lines]
    rows = [row for row in rows if len(row) > 1]
    if rows:  # an image and its class, in Caffe's val.txt or Kaggle's CSV file
        by_stem = {Path(image).stem: label for image, label, *_ in rows}
        labels = [by_stem.get(Path(file).stem, "") for file in files]
    if len(labels) != len(files) or not all(labels):
        raise UserError(f"{path} does not label the {len(files)} images ({len(lines)} lines)")
    return labels


def _numbers_of_kit(path: Path) -> dict[int, str]:
    """Read the WordNet id of each ILSVRC class number from `meta.mat`, next to the file or one folder above."""
    meta = next((p for p in (path.parent / "meta.mat", path.parent.parent / "meta.mat") if p.is_file()), None)
    if meta is None:
        raise UserError(f"{path} has class numbers of ILSVRC's development kit; put the kit's data/meta.mat next to it")
    synsets = read_mat(meta, "synsets")
    return {int(row[0]["ILSVRC2012_ID"].item()): str(row[0]["WNID"].item()) for row in synsets}
