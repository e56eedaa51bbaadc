"""Layouts and random splits, compared with CoOp's loaders; and labels of ImageNet.

Expected values are from runs of CoOp's loaders (ff61507, with Dassl c61a1b5 and sorted `os.listdir`) on the same trees.
The data sets of the golden tree are in test_loading.py.
"""

import json
import random
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from dataset_files import make, write
from scipy.io import savemat

from trainers.hegraph import UserError, load_dataset, load_few_shot
from trainers.hegraph.datasets.base import Dataset
from trainers.hegraph.datasets.layouts import list_names, split_classes
from trainers.hegraph.datasets.splits import Item

# Images in a mixed order, of three classes: 8, 5 and 10 of them
MIXED = (2, 0, 2, 1, 0, 2, 1, 2, 0, 2, 0, 1, 2, 0, 2, 1, 0, 2, 0, 1, 2, 2, 0)
TEST = (2, 0, 1, 1)

Truth = dict[str, tuple[int, str]]  # path below the root -> label, class name


def write_lines(path: Path, lines: list[str]) -> None:
    write(path, "".join(f"{line}\n" for line in lines))


def stanford_cars(root: Path) -> Truth:
    folder = root / "stanford_cars"
    names = ("AM General Hummer SUV 2000", "Audi TT RS Coupe 2012", "Ram C/V Cargo Van Minivan 2012")
    ours = ("2000 AM General Hummer SUV", "2012 Audi TT RS Coupe", "2012 Ram C/V Cargo Van Minivan")
    cells = np.empty((1, len(names)), dtype=object)
    cells[0, :] = names
    (folder / "devkit").mkdir(parents=True)
    savemat(folder / "devkit" / "cars_meta.mat", {"class_names": cells})
    truth = {}
    for images, file, labels in (
        ("cars_train", "devkit/cars_train_annos.mat", MIXED), ("cars_test", "cars_test_annos_withlabels.mat", TEST)
    ):  # fmt: skip
        rows = np.zeros((1, len(labels)), dtype=[("bbox_x1", object), ("class", object), ("fname", object)])
        for number, label in enumerate(labels, start=1):
            rows[0, number - 1] = (np.uint8(7), np.uint8(label + 1), f"{number:05d}.jpg")
            truth[f"stanford_cars/{images}/{number:05d}.jpg"] = (label, ours[label])
        savemat(folder / file, {"annotations": rows})
    return truth


def oxford_flowers(root: Path) -> Truth:
    folder = root / "oxford_flowers"
    folder.mkdir(parents=True)
    savemat(folder / "imagelabels.mat", {"labels": np.array([MIXED], dtype=np.uint8) + 1})
    names = ("pink primrose", "hard-leaved pocket orchid", "canterbury bells")
    write(folder / "cat_to_name.json", json.dumps({"2": names[1], "1": names[0], "3": names[2]}))
    return {f"oxford_flowers/jpg/image_{n:05d}.jpg": (label, names[label]) for n, label in enumerate(MIXED, start=1)}


def sun397(root: Path) -> Truth:
    scenes = ("/a/abbey", "/b/balcony/interior", "/b/balcony/exterior")
    names = ("abbey", "interior balcony", "exterior balcony")
    write_lines(root / "sun397" / "ClassName.txt", list(scenes))
    truth = {}
    for file, labels, first in (("Training_01.txt", MIXED, 0), ("Testing_01.txt", TEST, 50)):
        lines = [f"{scenes[label]}/sun_{number:03d}.jpg" for number, label in enumerate(labels, start=first)]
        write_lines(root / "sun397" / file, lines)
        truth |= {f"sun397/SUN397{line}": (label, names[label]) for line, label in zip(lines, labels)}
    return truth


def ucf101(root: Path) -> Truth:
    lists = root / "ucf101" / "ucfTrainTestlist"
    actions, names = ("ApplyEyeMakeup", "HandstandPushups", "YoYo"), ("Apply_Eye_Makeup", "Handstand_Pushups", "Yo_Yo")
    write_lines(lists / "classInd.txt", [f"{number} {action}" for number, action in enumerate(actions, start=1)])
    truth = {}
    for file, labels, first in (("trainlist01.txt", MIXED, 8), ("testlist01.txt", TEST, 1)):
        lines = []
        for number, label in enumerate(labels, start=first):
            video = f"v_{actions[label].replace('stand', 'Stand')}_g{number:02d}"  # the official lists mix cases
            lines.append(f"{actions[label]}/{video}.avi" + (f" {label + 1}" if file == "trainlist01.txt" else ""))
            truth[f"ucf101/UCF-101-midframes/{names[label]}/{video}.jpg"] = (label, names[label])
        write_lines(lists / file, lines)
    return truth


def fgvc_aircraft(root: Path) -> Truth:
    names = ("Model B200", "F/A-18", "707-320")  # labels are lines of variants.txt, in any order
    write_lines(root / "fgvc_aircraft" / "variants.txt", list(names))
    truth = {}
    for split, labels, first in (("train", MIXED, 1), ("val", MIXED, 101), ("test", TEST, 201)):
        rows = {f"{number:07d}": names[label] for number, label in enumerate(labels, start=first)}
        write_lines(root / "fgvc_aircraft" / f"images_variant_{split}.txt", [" ".join(row) for row in rows.items()])
        truth |= {f"fgvc_aircraft/images/{image}.jpg": (names.index(name), name) for image, name in rows.items()}
    return truth


# All that CoOp selects with seed 1: numbers of the files of train, val and test, in its order
COOP = {
    stanford_cars: ("22 18 13 8 1 10 3 6 5 17 19 23 2 11 4 20 12 16", "15 21 9 14 7", "1 2 3 4"),
    oxford_flowers: ("15 21 22 18 13 9 14 5 17 7 4", "8 1 19 23 20", "10 3 6 2 11 12 16"),
    sun397: ("21 17 12 7 0 9 2 5 4 16 18 22 1 10 3 19 11 15", "14 20 8 13 6", "50 51 52 53"),
    ucf101: ("29 25 20 15 8 17 10 13 12 24 26 30 9 18 11 27 19 23", "22 28 16 21 14", "1 2 3 4"),
    fgvc_aircraft: (" ".join(map(str, range(1, 24))), " ".join(map(str, range(101, 124))), "201 202 203 204"),
}


@pytest.mark.parametrize("tree", COOP)
def test_random_splits_equal_those_of_coop(tree, tmp_path):
    truth = tree(tmp_path)
    make(tmp_path, *truth)
    dataset = load_few_shot(tree.__name__, str(tmp_path), -1, 1)
    for items, numbers in zip(dataset.splits.values(), COOP[tree]):
        assert " ".join(re.search(r"0*(\d+)\.jpg$", item.path)[1] for item in items) == numbers
        assert {item.path: (item.label, item.classname) for item in items}.items() <= truth.items()
    assert list(dataset.classnames) == [name for _, name in sorted(set(truth.values()))]


def test_class_of_three_images_is_too_small():
    with pytest.raises(UserError, match="class 'ant' has 3 images, too few to split into train, val and test"):
        split_classes([(0, "ant", list("abc"))], random.Random(1))


@pytest.mark.parametrize(("name", "code", "words"), [
    ("absent", "folder.list", "/absent: No such file"), ("a\0b", "folder.list", "cannot list the folder"),
    ("", "folder.utf8", "udce9.jpg', a name that is not UTF-8"),
])  # fmt: skip
def test_unlistable_folders_are_refused(tmp_path, name, code, words, refused):
    write(tmp_path / "caf\udce9.jpg", "")
    with refused(code, words):
        list_names(tmp_path / name)


@pytest.mark.parametrize(("tree", "file", "content", "words"), [
    (stanford_cars, "devkit/cars_meta.mat", b"", r"/cars_meta\.mat is damaged or not a Matlab file"),
    (fgvc_aircraft, "variants.txt", b"707-320\n", "cannot split the images of .*: it lacks 'Model B200'"),
])  # fmt: skip
def test_damaged_lists_are_refused(tmp_path, tree, file, content, words):
    name = tree.__name__
    tree(tmp_path)
    (tmp_path / name / file).write_bytes(content)
    with pytest.raises(UserError, match=rf"^\w+: .*{words}.*; see python -m trainers.hegraph datasets check \w+ "):
        load_few_shot(name, str(tmp_path), 1, 1)
    assert not list((tmp_path / name).glob("split_zhou_*"))


# --- ImageNet in CoOp's layout, and with a flat validation folder

IDS = ("n01440764", "n01443537", "n01484850", "n01491361")
NAMES = ("tench", "goldfish", "great white shark", "tiger shark")
VAL_LABELS = (1, 0, 3, 2, 1, 0, 3, 2)  # of ILSVRC2012_val_00000001 to 8
STEMS = [f"ILSVRC2012_val_{number:08d}" for number in range(1, 9)]
KIT_NUMBERS = (3, 4, 2, 1)  # the development kit does not count in the order of the ids
# Selection of CoOp from folders: by class, then by name
EXPECTED_TEST = [(STEMS[image], label) for image, label in
                 ((1, 0), (5, 0), (0, 1), (4, 1), (3, 2), (7, 2), (2, 3), (6, 3))]  # fmt: skip


@pytest.fixture
def train_only(tmp_path: Path) -> Path:
    """ImageNet with three training images per class, a hidden file, and an unsorted classnames.txt."""
    folder = tmp_path / "imagenet"
    write(folder / "classnames.txt", "".join(f"{i} {name}\n" for i, name in zip(IDS[::-1], NAMES[::-1])))
    make(folder / "images" / "train", *(f"{i}/{i}_{number}.JPEG" for i in IDS for number in range(3)))
    return make(folder, f"images/train/{IDS[0]}/.DS_Store")


@pytest.fixture
def flat(train_only: Path) -> Path:
    return make(train_only, *(f"images/val/{stem}.JPEG" for stem in STEMS))


def load(folder: Path) -> Dataset:
    return load_dataset("ImageNet", str(folder.parent))


def refused(folder: Path, words: str) -> None:
    with pytest.raises(UserError, match=words):
        load(folder)


def write_kit(folder: Path) -> None:
    """Write the labels of ILSVRC's development kit, with its table of all synsets."""
    numbers = [KIT_NUMBERS[label] for label in VAL_LABELS]
    write(folder / "ILSVRC2012_validation_ground_truth.txt", "\n".join(map(str, numbers)))
    synsets = np.zeros((5, 1), dtype=[("ILSVRC2012_ID", object), ("WNID", object), ("words", object)])
    for number, wordnet_id, name in zip(KIT_NUMBERS, IDS, NAMES):
        synsets[number - 1, 0] = (np.uint16(number), wordnet_id, name)
    synsets[4, 0] = (np.uint16(1001), "n00001740", "entity")
    savemat(folder / "meta.mat", {"synsets": synsets})


# Files of labels for a folder without class folders, with lines of a stem and a label
TRUTHS = {
    "Kaggle's csv": ("LOC_val_solution.csv", lambda stem, y: f"{stem},{IDS[y]} 1 2 3 4 {IDS[y]} 5 6 7 8 "),
    "Caffe's val.txt": ("val.txt", lambda stem, y: f"{stem}.JPEG {y}"),
    "val.txt with ids": ("images/val.txt", lambda stem, y: f"{stem}.JPEG {IDS[y]}"),
    "TensorFlow's ids": ("data/imagenet_2012_validation_synset_labels.txt", lambda stem, y: IDS[y]),
}


def label(folder: Path, form: str) -> None:
    if form == "development kit":
        (folder / "devkit" / "data").mkdir(parents=True)
        write_kit(folder / "devkit" / "data")
        return
    file, line = TRUTHS[form]
    lines = [line(stem, y) for stem, y in zip(STEMS, VAL_LABELS)]
    if "csv" in file:
        lines = ["ImageId,PredictionString", *lines[::-1]]
    write(folder / file, "\n".join(lines))


@pytest.mark.parametrize("form", [*TRUTHS, "development kit"])
def test_flat_validation_folder_is_labelled_by_file(form, flat):
    label(flat, form)
    dataset = load(flat)
    assert dataset.test == [Item(f"imagenet/images/val/{stem}.JPEG", y, NAMES[y]) for stem, y in EXPECTED_TEST]
    assert dataset.val_is_test
    dataset.check_files()
    assert (list(dataset.classnames), list(dataset.class_ids)) == (list(NAMES), list(IDS))


def test_flat_folder_with_wrong_labels_is_refused(flat):
    refused(flat, "LOC_val_solution.csv, val.txt, imagenet_2012_validation_synset_labels.txt, .* there")
    label(flat, "development kit")
    (flat / "images" / "val" / f"{STEMS[0]}.JPEG").unlink()  # all others would be shifted by one
    refused(flat, r"does not label the 7 images \(8 lines\)")
    make(flat, f"images/val/{STEMS[0]}.JPEG")
    meta = flat / "devkit" / "data" / "meta.mat"
    meta.rename(flat / "devkit" / "meta.mat")
    assert [item.label for item in load(flat).test] == [label for _, label in EXPECTED_TEST]
    (flat / "devkit" / "meta.mat").unlink()
    refused(flat, r"put the kit's data/meta\.mat next to it")
    for lines, words in (
        ([f"{stem}.JPEG 0" for stem in STEMS[1:]], "does not label the 8 images"),
        ([f"{stem}.JPEG {y + 1}" for stem, y in zip(STEMS, VAL_LABELS)], "it lacks 4"),
    ):
        write(flat / "val.txt", "\n".join(lines))
        refused(flat, words)


def test_caffe_numbers_count_all_classes(flat):
    # number 1 is the second of all ids; were the training folders counted, it would become the third
    shutil.rmtree(flat / "images" / "train" / IDS[0])
    for stem, y in zip(STEMS, VAL_LABELS):
        if y == 0:
            (flat / "images" / "val" / f"{stem}.JPEG").unlink()
    label(flat, "Caffe's val.txt")
    assert [tuple(item)[1:] for item in load(flat).test] == [(y, NAMES[y + 1]) for y in (0, 0, 1, 1, 2, 2)]


def test_missing_classes_do_not_shift_labels(train_only):
    make(train_only, *(f"images/val/{IDS[y]}/{stem}.JPEG" for stem, y in zip(STEMS, VAL_LABELS) if y))
    assert [tuple(item)[1:] for item in load(train_only).test[::2]] == list(enumerate(NAMES))[1:]
    shutil.rmtree(train_only / "images" / "train" / IDS[3])
    refused(train_only, f"cannot split the images of .*: it lacks '{IDS[3]}'")
    for line in ("0: 'tench, Tinca tinca',", "n01440764", "n1440764 tench"):
        write(train_only / "classnames.txt", line)
        refused(train_only, rf"expected lines such as 'n01440764 tench', got ['\"]{line}")
