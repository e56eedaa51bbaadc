"""ImageNet in CoOp's layout and with a flat validation folder, and its four variants."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from trainers.hegraph.datasets import Dataset, Item, load_dataset, load_few_shot
from trainers.hegraph.datasets.layouts import GROUND_TRUTH_FOLDERS
from trainers.hegraph.utils.errors import UserError

IDS = ("n01440764", "n01443537", "n01484850", "n01491361")
NAMES = ("tench", "goldfish", "great white shark", "tiger shark")
VAL_LABELS = (1, 0, 3, 2, 1, 0, 3, 2)  # of ILSVRC2012_val_00000001 to 8
STEMS = [f"ILSVRC2012_val_{number:08d}" for number in range(1, 9)]
KIT_NUMBERS = (3, 4, 2, 1)  # the development kit does not count in the order of the ids


def write(path: Path, lines: list) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


@pytest.fixture
def train_only(tmp_path: Path) -> Path:
    """ImageNet's folder with three training images of each class, and a hidden file; classnames.txt is unsorted."""
    folder = tmp_path / "imagenet"
    write(folder / "classnames.txt", [f"{wordnet_id} {name}" for wordnet_id, name in zip(IDS, NAMES)][::-1])
    for wordnet_id in IDS:
        for number in range(3):
            write(folder / "images" / "train" / wordnet_id / f"{wordnet_id}_{number}.JPEG", [])
    write(folder / "images" / "train" / IDS[0] / ".DS_Store", [])
    return folder


@pytest.fixture
def in_folders(train_only: Path) -> Path:
    for stem, label in zip(STEMS, VAL_LABELS):
        write(train_only / "images" / "val" / IDS[label] / f"{stem}.JPEG", [])
    return train_only


@pytest.fixture
def flat(train_only: Path) -> Path:
    for stem in STEMS:
        write(train_only / "images" / "val" / f"{stem}.JPEG", [])
    return train_only


def load(folder: Path) -> Dataset:
    return load_dataset("ImageNet", str(folder.parent))


def refused(folder: Path, words: str) -> str:
    with pytest.raises(UserError, match=words) as error:
        load(folder)
    return str(error.value)


# What CoOp selects from the tree with folders: by class, by name in it
EXPECTED_TEST = [(STEMS[image], label) for image, label in
                 ((1, 0), (5, 0), (0, 1), (4, 1), (3, 2), (7, 2), (2, 3), (6, 3))]  # fmt: skip


def write_kit(folder: Path, beside: str = ".") -> None:
    """The labels as ILSVRC's development kit has them, with its table of all synsets, also inner ones."""
    write(folder / "ILSVRC2012_validation_ground_truth.txt", [KIT_NUMBERS[label] for label in VAL_LABELS])
    synsets = np.zeros((5, 1), dtype=[("ILSVRC2012_ID", object), ("WNID", object), ("words", object)])
    for number, wordnet_id, name in zip(KIT_NUMBERS, IDS, NAMES):
        synsets[number - 1, 0] = (np.uint16(number), wordnet_id, name)
    synsets[4, 0] = (np.uint16(1001), "n00001740", "entity")
    savemat(folder / beside / "meta.mat", {"synsets": synsets})


def write_kaggle(folder: Path) -> None:
    rows = [f"{stem},{IDS[label]} 1 2 3 4 {IDS[label]} 5 6 7 8 " for stem, label in zip(STEMS, VAL_LABELS)]
    write(folder / "LOC_val_solution.csv", ["ImageId,PredictionString", *rows[::-1]])


GROUND_TRUTHS = {
    "Kaggle's csv": write_kaggle,
    "Caffe's val.txt": lambda folder: write(
        folder / "val.txt", [f"{stem}.JPEG {label}" for stem, label in zip(STEMS, VAL_LABELS)]
    ),
    "val.txt with ids": lambda folder: write(
        folder / "val.txt", [f"{stem}.JPEG {IDS[label]}" for stem, label in zip(STEMS, VAL_LABELS)][::-1]
    ),
    "TensorFlow's ids": lambda folder: write(
        folder / "imagenet_2012_validation_synset_labels.txt", [IDS[label] for label in VAL_LABELS]
    ),
    "development kit": write_kit,
}


def test_folders_give_coops_items_and_val_is_test(in_folders):
    dataset = load(in_folders)
    assert list(dataset.classnames) == list(NAMES)
    assert dataset.train == [
        Item(f"imagenet/images/train/{wordnet_id}/{wordnet_id}_{number}.JPEG", label, NAMES[label])
        for label, wordnet_id in enumerate(IDS)
        for number in range(3)
    ]
    assert dataset.test == [
        Item(f"imagenet/images/val/{IDS[label]}/{stem}.JPEG", label, NAMES[label]) for stem, label in EXPECTED_TEST
    ]
    assert dataset.val_is_test


@pytest.mark.parametrize("form", GROUND_TRUTHS)
def test_a_flat_folder_with_a_file_that_labels_it_gives_the_same_in_the_same_order(form, flat):
    GROUND_TRUTHS[form](flat)
    dataset = load(flat)
    assert dataset.test == [
        Item(f"imagenet/images/val/{stem}.JPEG", label, NAMES[label]) for stem, label in EXPECTED_TEST
    ]
    assert dataset.val_is_test
    few = load_few_shot("ImageNet", str(flat.parent), 2, 1)  # the images are there
    rng = random.Random(1)  # one draw per class, none for val
    assert few.train == [dataset.train[i] for label in range(4) for i in rng.sample(range(3 * label, 3 * label + 3), 2)]
    assert few.val == few.test == dataset.test


@pytest.mark.parametrize("where", GROUND_TRUTH_FOLDERS)
def test_the_labels_are_found_where_people_unpack_them(where, flat):
    (flat / where).mkdir(parents=True, exist_ok=True)
    write_kit(flat / where)
    assert [item.label for item in load(flat).test] == [label for _, label in EXPECTED_TEST]


def test_a_flat_folder_without_labels_is_an_error_that_names_the_files_that_would_do(flat):
    message = refused(flat, "holds no class folders")
    assert "LOC_val_solution.csv, val.txt, imagenet_2012_validation_synset_labels.txt" in message
    assert f"into {flat}" in message
    shutil.rmtree(flat / "images" / "val")
    (flat / "images" / "val").mkdir()
    refused(flat, "images/val holds no image")


@pytest.mark.parametrize("form", ["TensorFlow's ids", "development kit"])
def test_labels_by_position_must_be_as_many_as_images(form, flat):
    GROUND_TRUTHS[form](flat)
    (flat / "images" / "val" / f"{STEMS[0]}.JPEG").unlink()  # all others would be shifted by one
    refused(flat, r"does not label the 7 images \(8 lines\)")


@pytest.mark.parametrize(
    ("name", "lines", "words"),
    [
        ("val.txt", [f"{stem}.JPEG 0" for stem in STEMS[1:]], "does not label the 8 images"),
        ("val.txt", [f"{stem} {number}" for number, stem in enumerate(STEMS)], "does not label the 8 images"),
        ("LOC_val_solution.csv", ["<!DOCTYPE html>"], "does not label the 8 images"),
        ("LOC_val_solution.csv", [], "does not label the 8 images"),
        ("imagenet_2012_validation_synset_labels.txt", [], "does not label the 8 images"),
        ("val.txt", [f"{s}.JPEG {y + 1}" for s, y in zip(STEMS, VAL_LABELS)], "class number 4, which is none of 4"),
        ("imagenet_2012_validation_synset_labels.txt", [*(IDS[label] for label in VAL_LABELS[:7]), "n99999999"],
         r"class 'n99999999' of .*/ILSVRC2012_val_00000008\.JPEG has no folder in .*train"),
    ],
)  # fmt: skip
def test_a_file_that_does_not_label_the_images_is_an_error(name, lines, words, flat):
    write(flat / name, lines)
    refused(flat, words)


def test_numbers_of_the_kit_without_its_table_are_an_error_that_asks_for_it(flat):
    write_kit(flat)
    (flat / "meta.mat").unlink()
    refused(flat, r"put the kit's data/meta\.mat beside it")


def test_caffes_numbers_count_all_classes_also_where_only_some_have_training_images(flat):
    # number 1 is the second of all ids; were the training folders counted, it would become the third
    shutil.rmtree(flat / "images" / "train" / IDS[0])
    for stem, label in zip(STEMS, VAL_LABELS):
        if label == 0:
            (flat / "images" / "val" / f"{stem}.JPEG").unlink()
    GROUND_TRUTHS["Caffe's val.txt"](flat)
    assert [(item.label, item.classname) for item in load(flat).test] == [
        (label, NAMES[label + 1]) for label in (0, 0, 1, 1, 2, 2)
    ]


def test_a_class_without_validation_images_does_not_shift_the_labels_of_the_others(in_folders):
    shutil.rmtree(in_folders / "images" / "val" / IDS[0])
    dataset = load(in_folders)
    assert [(item.label, item.classname) for item in dataset.test[::2]] == list(enumerate(NAMES))[1:]


@pytest.mark.parametrize("absent", [0, 3], ids=["first", "last"])
def test_validation_images_of_a_class_without_a_training_folder_are_an_error_that_names_it(absent, in_folders):
    shutil.rmtree(in_folders / "images" / "train" / IDS[absent])
    refused(in_folders, rf"{IDS[absent]}.* has no folder in .*imagenet/images/train")


def test_a_folder_that_classnames_does_not_name_is_an_error_that_names_it(in_folders):
    (in_folders / "images" / "train" / "n02119789").mkdir()
    refused(in_folders, r"has a folder 'n02119789' that .*classnames\.txt does not name")


@pytest.mark.parametrize("line", ["0: 'tench, Tinca tinca',", "n01440764", "n1440764 tench"])
def test_a_file_of_class_names_in_another_form_is_an_error_that_shows_the_line(line, in_folders):
    write(in_folders / "classnames.txt", [line])
    assert repr(line) in refused(in_folders, r"must hold lines such as 'n01440764 tench', got ")


def test_imagenet_v2_folders_are_positions_in_classnames(tmp_path):
    folder = tmp_path / "imagenetv2"
    write(folder / "classnames.txt", [f"n{number:08d} thing {number}" for number in range(12)])
    for number in range(12):  # "10" sorts before "2" as text
        write(folder / "imagenetv2-matched-frequency-format-val" / str(number) / f"{number}_b.jpeg", [])
        write(folder / "imagenetv2-matched-frequency-format-val" / str(number) / f"{number}_a.jpeg", [])
    dataset = load_dataset("ImageNetV2", str(tmp_path))
    base = "imagenetv2/imagenetv2-matched-frequency-format-val"
    assert dataset.test == [
        Item(f"{base}/{number}/{number}_{image}.jpeg", number, f"thing {number}")
        for number in range(12)
        for image in "ab"
    ]
    assert list(dataset.classnames) == [f"thing {number}" for number in range(12)]
    assert dataset.train == dataset.val == []
    assert dataset.class_ids == [f"n{number:08d}" for number in range(12)]
    write(folder / "imagenetv2-matched-frequency-format-val" / "12" / "a.jpeg", [])
    with pytest.raises(UserError, match=r"classnames\.txt names 12 classes, and there is a folder 12"):
        load_dataset("ImageNetV2", str(tmp_path))
