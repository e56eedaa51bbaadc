"""ImageNet in CoOp's layout, and with a flat validation folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from own_images import make, write
from scipy.io import savemat

from trainers.hegraph.datasets import Dataset, Item, load_dataset
from trainers.hegraph.utils.errors import UserError

IDS = ("n01440764", "n01443537", "n01484850", "n01491361")
NAMES = ("tench", "goldfish", "great white shark", "tiger shark")
VAL_LABELS = (1, 0, 3, 2, 1, 0, 3, 2)  # of ILSVRC2012_val_00000001 to 8
STEMS = [f"ILSVRC2012_val_{number:08d}" for number in range(1, 9)]
KIT_NUMBERS = (3, 4, 2, 1)  # the development kit does not count in the order of the ids
# What CoOp selects from the tree with folders: by class, by name in it
EXPECTED_TEST = [(STEMS[image], label) for image, label in
                 ((1, 0), (5, 0), (0, 1), (4, 1), (3, 2), (7, 2), (2, 3), (6, 3))]  # fmt: skip


@pytest.fixture
def train_only(tmp_path: Path) -> Path:
    """ImageNet's folder with three training images of each class, and a hidden file; classnames.txt is unsorted."""
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
    """The labels as ILSVRC's development kit has them, with its table of all synsets, also inner ones."""
    numbers = [KIT_NUMBERS[label] for label in VAL_LABELS]
    write(folder / "ILSVRC2012_validation_ground_truth.txt", "\n".join(map(str, numbers)))
    synsets = np.zeros((5, 1), dtype=[("ILSVRC2012_ID", object), ("WNID", object), ("words", object)])
    for number, wordnet_id, name in zip(KIT_NUMBERS, IDS, NAMES):
        synsets[number - 1, 0] = (np.uint16(number), wordnet_id, name)
    synsets[4, 0] = (np.uint16(1001), "n00001740", "entity")
    savemat(folder / "meta.mat", {"synsets": synsets})


# What may label the images of a flat folder: the file, and its lines by stem and label
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
def test_a_flat_folder_with_a_file_that_labels_it_gives_the_same_in_the_same_order(form, flat):
    label(flat, form)
    dataset = load(flat)
    assert dataset.test == [Item(f"imagenet/images/val/{stem}.JPEG", y, NAMES[y]) for stem, y in EXPECTED_TEST]
    assert dataset.val_is_test
    dataset.check_files()
    assert (list(dataset.classnames), list(dataset.class_ids)) == (list(NAMES), list(IDS))


def test_a_flat_folder_without_labels_or_with_those_of_other_images_is_an_error(flat):
    refused(flat, "LOC_val_solution.csv, val.txt, imagenet_2012_validation_synset_labels.txt, .* there")
    label(flat, "development kit")
    (flat / "images" / "val" / f"{STEMS[0]}.JPEG").unlink()  # all others would be shifted by one
    refused(flat, r"does not label the 7 images \(8 lines\)")
    make(flat, f"images/val/{STEMS[0]}.JPEG")
    meta = flat / "devkit" / "data" / "meta.mat"
    meta.rename(flat / "devkit" / "meta.mat")
    assert [item.label for item in load(flat).test] == [label for _, label in EXPECTED_TEST]
    (flat / "devkit" / "meta.mat").unlink()
    refused(flat, r"put the kit's data/meta\.mat beside it")
    for lines, words in (
        ([f"{stem}.JPEG 0" for stem in STEMS[1:]], "does not label the 8 images"),
        ([f"{stem}.JPEG {y + 1}" for stem, y in zip(STEMS, VAL_LABELS)], "it lacks 4"),
    ):
        write(flat / "val.txt", "\n".join(lines))
        refused(flat, words)


def test_caffes_numbers_count_all_classes_also_where_only_some_have_training_images(flat):
    # number 1 is the second of all ids; were the training folders counted, it would become the third
    shutil.rmtree(flat / "images" / "train" / IDS[0])
    for stem, y in zip(STEMS, VAL_LABELS):
        if y == 0:
            (flat / "images" / "val" / f"{stem}.JPEG").unlink()
    label(flat, "Caffe's val.txt")
    assert [tuple(item)[1:] for item in load(flat).test] == [(y, NAMES[y + 1]) for y in (0, 0, 1, 1, 2, 2)]


def test_classes_without_validation_images_do_not_shift_labels_and_those_without_training_images_are_named(train_only):
    make(train_only, *(f"images/val/{IDS[y]}/{stem}.JPEG" for stem, y in zip(STEMS, VAL_LABELS) if y))
    assert [tuple(item)[1:] for item in load(train_only).test[::2]] == list(enumerate(NAMES))[1:]
    shutil.rmtree(train_only / "images" / "train" / IDS[3])
    refused(train_only, f"no split can be made of what is in .*: it lacks '{IDS[3]}'")
    for line in ("0: 'tench, Tinca tinca',", "n01440764", "n1440764 tench"):
        write(train_only / "classnames.txt", line)
        refused(train_only, rf"must hold lines such as 'n01440764 tench', got ['\"]{line}")
