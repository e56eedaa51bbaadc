"""Layouts and splits of the data sets that come without a split, compared with CoOp's own loaders.

The expected files were written down from runs of CoOp's loaders (ff61507, with Dassl c61a1b5 and sorted `os.listdir`)
on the trees that are made here. The four data sets of the golden tree are in test_loading.py.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from own_images import write
from scipy.io import savemat

from trainers.hegraph.datasets import Dataset, load_few_shot
from trainers.hegraph.datasets.layouts import listing, read_mat, split_classes
from trainers.hegraph.datasets.registry import stored_datasets
from trainers.hegraph.utils.errors import UserError

STORED = stored_datasets()

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


def oxford_pets(root: Path) -> Truth:
    names, truth = ("Abyssinian", "Egyptian_Mau", "pug"), {}
    for file, labels, first in (("trainval.txt", MIXED, 1), ("test.txt", TEST, 51)):
        images = [(f"{names[label]}_{number}", label) for number, label in enumerate(labels, start=first)]
        lines = [f"{image} {label + 1} 1 {label + 1}" for image, label in images]
        write_lines(root / "oxford_pets" / "annotations" / file, lines)
        truth |= {f"oxford_pets/images/{image}.jpg": (label, names[label].lower()) for image, label in images}
    return truth


def oxford_flowers(root: Path) -> Truth:
    folder = root / "oxford_flowers"
    folder.mkdir(parents=True)
    savemat(folder / "imagelabels.mat", {"labels": np.array([MIXED], dtype=np.uint8) + 1})
    names = ("pink primrose", "hard-leaved pocket orchid", "canterbury bells")
    (folder / "cat_to_name.json").write_text(json.dumps({"2": names[1], "1": names[0], "3": names[2]}))
    return {
        f"oxford_flowers/jpg/image_{number:05d}.jpg": (label, names[label])
        for number, label in enumerate(MIXED, start=1)
    }


def food101(root: Path) -> Truth:
    names = ("apple_pie", "baby_back_ribs", "waffles")
    write(root / "food-101" / "images" / "waffles" / ".DS_Store", "")
    return {
        f"food-101/images/{names[label]}/{number + 7}.jpg": (label, names[label]) for number, label in enumerate(MIXED)
    }


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
            video = f"v_{actions[label].replace('stand', 'Stand')}_g{number:02d}_c01"  # the official lists mix cases
            lines.append(f"{actions[label]}/{video}.avi" + (f" {label + 1}" if file == "trainlist01.txt" else ""))
            truth[f"ucf101/UCF-101-midframes/{names[label]}/{video}.jpg"] = (label, names[label])
        write_lines(lists / file, lines)
    return truth


def fgvc_aircraft(root: Path) -> Truth:
    names = ("Model B200", "F/A-18", "707-320")  # labels are lines of variants.txt, whatever their order
    write_lines(root / "fgvc_aircraft" / "variants.txt", list(names))
    truth = {}
    for split, labels, first in (("train", MIXED, 1), ("val", MIXED, 101), ("test", TEST, 201)):
        rows = [(f"{number:07d}", label) for number, label in enumerate(labels, start=first)]
        write_lines(
            root / "fgvc_aircraft" / f"images_variant_{split}.txt", [f"{image} {names[y]}" for image, y in rows]
        )
        truth |= {f"fgvc_aircraft/images/{image}.jpg": (label, names[label]) for image, label in rows}
    return truth


TREES: dict[str, Callable[[Path], Truth]] = {
    "StanfordCars": stanford_cars,
    "OxfordPets": oxford_pets,
    "OxfordFlowers": oxford_flowers,
    "Food101": food101,
    "SUN397": sun397,
    "UCF101": ucf101,
    "FGVCAircraft": fgvc_aircraft,
}


def make_tree(name: str, root: Path) -> Truth:
    """Writes the small tree of a data set below `root`, with empty images."""
    truth = TREES[name](root)
    for path in truth:
        write(root / path, "")
    return truth


# What CoOp selects: numbers of the files, in its order. "again": with seed 2 where seed 1 has left its split.
COOP = {
    "StanfordCars": {
        "all of seed 1": ("22 18 13 8 1 10 3 6 5 17 19 23 2 11 4 20 12 16", "15 21 9 14 7", "1 2 3 4"),
        "2 shots of seed 2": ("6 8 9 5 20 16", "22 13 23 19 4", "1 2 3 4"),
        "again": ("22 6 5 19 20 12", "21 15 9 14 7", "1 2 3 4"),
    },
    "OxfordFlowers": {
        "all of seed 1": ("15 21 22 18 13 9 14 5 17 7 4", "8 1 19 23 20", "10 3 6 2 11 12 16"),
        "2 shots of seed 2": ("15 8 23 11 7 4", "6 18 17 5 16", "21 3 1 14 2 12 20"),
        "again": ("15 13 9 14 7 4", "1 8 19 23 20", "10 3 6 2 11 12 16"),
    },
    "Food101": {
        "all of seed 1": ("20 29 15 25 13 18 16 24 14 9 7", "8 11 10 21 19", "23 17 26 22 27 12 28"),
        "2 shots of seed 2": ("23 25 22 10 7 28", "29 17 26 19 24", "8 11 13 18 27 16 9"),
        "again": ("20 25 13 18 24 14", "11 8 10 21 19", "23 17 26 22 27 12 28"),
    },
    "SUN397": {
        "all of seed 1": ("21 17 12 7 0 9 2 5 4 16 18 22 1 10 3 19 11 15", "14 20 8 13 6", "50 51 52 53"),
        "2 shots of seed 2": ("5 7 8 4 19 15", "21 12 22 18 3", "50 51 52 53"),
        "again": ("21 5 4 18 19 11", "20 14 8 13 6", "50 51 52 53"),
    },
    "UCF101": {
        "all of seed 1": ("29 25 20 15 8 17 10 13 12 24 26 30 9 18 11 27 19 23", "22 28 16 21 14", "1 2 3 4"),
        "2 shots of seed 2": ("13 15 16 12 27 23", "29 20 30 26 11", "1 2 3 4"),
        "again": ("29 13 12 26 27 19", "28 22 16 21 14", "1 2 3 4"),
    },
    "FGVCAircraft": {
        "all of seed 1": (
            " ".join(map(str, range(1, 24))), " ".join(map(str, range(101, 124))), "201 202 203 204"
        ),
        "2 shots of seed 2": ("1 3 5 9 7 12", "110 108 102 114 107 116", "201 202 203 204"),
        "again": ("1 3 5 9 7 12", "110 108 102 114 107 116", "201 202 203 204"),
    },
}  # fmt: skip
# Also official lists of which only val is drawn, with the same labels in the same order
COOP["OxfordPets"] = {how: (*drawn, "51 52 53 54") for how, (*drawn, _) in COOP["StanfordCars"].items()}

# What the paths in CoOp's split file are relative to; FGVCAircraft has no such file
SPLIT_BASE = {
    "StanfordCars": "stanford_cars", "OxfordPets": "oxford_pets/images", "OxfordFlowers": "oxford_flowers/jpg",
    "Food101": "food-101/images", "SUN397": "sun397/SUN397", "UCF101": "ucf101/UCF-101-midframes",
}  # fmt: skip


def assert_is(dataset: Dataset, expected: tuple[str, str, str], truth: Truth) -> None:
    """Files and their order are as expected; label and class name of each are true."""
    for split, numbers in zip(("train", "val", "test"), expected):
        items = getattr(dataset, split)
        assert " ".join(re.search(r"0*(\d+)(_c01)?\.jpg$", item.path)[1] for item in items) == numbers
        assert {item.path: (item.label, item.classname) for item in items}.items() <= truth.items()
    assert list(dataset.classnames) == [name for _, name in sorted(set(truth.values()))]


@pytest.mark.parametrize("name", TREES)
def test_without_a_split_file_split_and_shots_are_those_that_coop_draws_and_so_is_the_file_that_it_writes(
    name, tmp_path
):
    truth = make_tree(name, tmp_path)
    for _ in range(2):  # the second time, there is a split file; shots are drawn from the generator after the split
        assert_is(load_few_shot(name, str(tmp_path), 2, 2), COOP[name]["2 shots of seed 2"], truth)
    for path in (tmp_path / STORED[name].folder).glob("split_zhou*"):
        path.unlink()
    dataset = load_few_shot(name, str(tmp_path), -1, 1)
    assert_is(dataset, COOP[name]["all of seed 1"], truth)
    if name in SPLIT_BASE:
        cut = len(SPLIT_BASE[name]) + 1
        listed = {
            split: [[item.path[cut:], item.label, item.classname] for item in items]
            for split, items in dataset.splits.items()
        }
        assert json.loads((tmp_path / STORED[name].folder / f"split_zhou_{name}.json").read_text()) == listed
    assert_is(load_few_shot(name, str(tmp_path), 2, 2), COOP[name]["again"], truth)


def test_a_class_of_three_images_is_too_small_to_be_split():
    with pytest.raises(UserError, match="class 'ant' has 3 images, too few to be split into train, val and test"):
        split_classes([(0, "ant", list("abc"))], random.Random(1))


def test_a_folder_cannot_be_listed_where_it_is_none_or_holds_a_name_that_is_not_utf8(tmp_path):
    with pytest.raises(UserError, match=f"cannot list the folder {tmp_path}/absent: No such file"):
        listing(tmp_path / "absent")
    write(tmp_path / "caf\udce9.jpg", "")
    with pytest.raises(UserError, match=r"holds 'caf.*udce9\.jpg', a name that is not UTF-8"):
        listing(tmp_path)


def test_a_matlab_file_that_cannot_be_read_is_an_error_that_names_it(tmp_path):
    savemat(tmp_path / "labels.mat", {"labels": np.ones((1, 50), dtype=np.uint8)})
    with pytest.raises(UserError, match=r"/labels\.mat is damaged or not a Matlab file"):
        read_mat(tmp_path / "labels.mat", "other")


@pytest.mark.parametrize(
    ("name", "file", "content"),
    [
        ("StanfordCars", "devkit/cars_meta.mat", b""),
        ("FGVCAircraft", "variants.txt", b"707-320\n"),
    ],
)
def test_a_damaged_list_is_one_line_of_error_and_no_split_is_written(name, file, content, tmp_path):
    make_tree(name, tmp_path)
    folder = tmp_path / STORED[name].folder
    (folder / file).write_bytes(content)
    with pytest.raises(UserError, match=rf"^{name}: .*; see python -m trainers.hegraph datasets check {name}") as error:
        load_few_shot(name, str(tmp_path), 1, 1)
    assert "\n" not in str(error.value)
    assert not list(folder.glob("split_zhou_*"))
