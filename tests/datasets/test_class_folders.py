"""Class folders directly in the root: CoOp's random split, and other folders that are skipped."""

import random
from pathlib import Path

import pytest
from dataset_files import counts, load, make, picture, refused, rows_of, write

from trainers.hegraph import load_few_shot
from trainers.hegraph.datasets.loading import load_own_images


def animals(root: Path, **numbers: int) -> Path:
    """Write the given number of distinct images for each class."""
    shades = iter(range(250))
    for name, number in (numbers or {"ant": 10, "bee": 5, "cow": 4}).items():
        for image in range(number):
            write(root / name / f"{image}.png", picture(next(shades), len(name)))
    return root


def test_class_folders_are_split_as_by_coop(tmp_path, caplog):
    dataset = load(animals(tmp_path))
    expected: dict[str, list[tuple]] = {"train": [], "val": [], "test": []}
    rng = random.Random(1)  # as in CoOp's OxfordPets.read_and_split_data
    for label, (name, number) in enumerate((("ant", 10), ("bee", 5), ("cow", 4))):
        images = [f"{name}/{image}.png" for image in range(number)]
        rng.shuffle(images)
        n_train, n_val = round(number * 0.5), round(number * 0.2)
        splits = images[:n_train], images[n_train : n_train + n_val], images[n_train + n_val :]
        for split, paths in zip(expected, splits):
            expected[split] += [(path, label, name) for path in paths]
    assert (rows_of(dataset), counts(dataset)) == (expected, [9, 4, 6])
    assert load_few_shot("ImageFolder", str(tmp_path), shots=2, seed=2).test == dataset.test  # for all seeds
    [warning] = [message for message in caplog.messages if "at random" in message]
    assert warning == (
        f"{tmp_path.name} has no folder train, so each class was split at random into "
        "50 % train, 20 % val, 30 % test images (9 train, 4 val, 6 test)"
    )


def test_other_folders_are_skipped(tmp_path, caplog):
    root = animals(tmp_path)
    before = rows_of(load(root))
    caplog.clear()
    make(root, ".hegraph/kept/1.png", "unlabelled/1.png", "none of these/2.png", "deep/more/3.png", "empty/a.txt")
    make(root, "out/result.json", "out/curve.png", "model/config.json", "model/0.png", "rows.csv", "loose.png")
    make(root, "ant/Thumbs.db", "ant/old/4.png")
    assert rows_of(load(root)) == before
    left_out, reserved, skipped = caplog.messages[:3]
    assert reserved.startswith(f"{root}: left out none of these and unlabelled, reserved names of folders that are no")
    assert left_out.startswith(f"{root}: left out deep, whose images are in folders below; if it is a class, move")
    assert skipped.startswith(f"{root}: skipped 10 files and folders that are not <class>/IMAGE")


@pytest.mark.parametrize(("table", "files", "expected"), [
    ("path,label\nant/0.png,ant\n", [], [1, 0, 0]),
    ("Label;file_name;split\nbee;ant/0.png;train\n", [], [1, 0, 0]),
    ('"path"\t label \tsplit\nant/0.png\tbee\ttrain\n', [], [1, 0, 0]),
    ("", ["train/ant/1.png", "train/bee/1.png", "test/bee/2.png"], [2, 0, 1]),
])  # fmt: skip
def test_tables_and_splits_have_priority_over_class_folders(tmp_path, table, files, expected):
    make(animals(tmp_path), *files)
    if table:
        write(tmp_path / "labels.csv", table)
    assert counts(load(tmp_path)) == expected


@pytest.mark.parametrize(("files", "classes", "message"), [
    (["test/1.png"], {}, "contains the folder of a split, test, next to class folders such as ant; .* rename it"),
    (["train/1.png", "Test/1.png"], {}, "contains the folder of a split, (train|Test), next .*/train/<class>/"),
    (["val/ant/1.png"], {}, "contains the folder of a split, val"),
    (["dog/1.png", "dog/2.png"], {}, "1 of 4 classes have fewer than 4 images, .* such as dog; .*/train"),
    ([], {"photos": 9}, "images in only one folder, photos; expected at least two class folders, or one CSV file"),
])  # fmt: skip
def test_unsplittable_folders_are_refused(tmp_path, files, classes, message):
    refused(make(animals(tmp_path, **classes), *files), message)


def test_split_folders_false_keeps_all_in_train(tmp_path):
    dataset = load_own_images(str(animals(tmp_path, ant=2)), split_folders=False)
    assert (counts(dataset), dataset.classnames) == ([2, 0, 0], ["ant"])
