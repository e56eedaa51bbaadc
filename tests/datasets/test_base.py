"""What a data set gives: its few-shot tasks, halves of its classes, and what it knows of its files; the digits."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from trainers.hegraph.datasets import Dataset, Item, Selection, load_dataset
from trainers.hegraph.datasets.base import class_names, some
from trainers.hegraph.utils.errors import UserError

CLASSES = ("ant", "bee", "cow", "dog", "elk")


def items_of(split: str, labels: list[int]) -> list[Item]:
    return [Item(f"{split}/{number}.jpg", label, CLASSES[label]) for number, label in enumerate(labels)]


@pytest.fixture
def dataset() -> Dataset:
    """Five classes that are no files; label 2 stands in the middle."""
    train, val, test = (items_of(split, [4, 3, 2, 1, 0, 2]) for split in ("train", "val", "test"))
    return Dataset("Farm", CLASSES, train, val, test, Image.open)


@pytest.fixture
def on_disk(dataset: Dataset, tmp_path: Path) -> Dataset:
    """The same, with a file of three bytes for each image."""
    for path in dataset.paths():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(b"abc")
    return replace(dataset, root=tmp_path)


def test_a_selection_takes_its_positions_of_train_and_val_and_leaves_test_whole(dataset):
    task = dataset.select(Selection(train=[5, 0], val=[3]))
    assert task.train == [dataset.train[5], dataset.train[0]]
    assert task.val == [dataset.val[3]]
    assert task.test == dataset.test
    rest = dataset.without({"train/0.jpg", "test/5.jpg"})
    assert (rest.train, rest.val, rest.test) == (dataset.train[1:], dataset.val, dataset.test[:5])


def test_where_val_is_test_the_selection_leaves_it_whole_as_coop_does_for_imagenet(dataset):
    imagenet = replace(dataset, val=list(dataset.test))
    assert imagenet.val_is_test and not dataset.val_is_test
    assert not replace(dataset, val=[], test=[]).val_is_test
    assert imagenet.select(Selection(train=[0], val=[3])).val == dataset.test
    assert imagenet.subsample("new").val_is_test


def test_base_classes_are_the_first_half_of_the_labels_with_the_middle_one_and_new_the_rest(dataset):
    base, new = dataset.subsample("base"), dataset.subsample("new")
    assert (list(base.classnames), list(new.classnames)) == (["ant", "bee", "cow"], ["dog", "elk"])
    assert dataset.subsample("all") is dataset
    for split in ("train", "val", "test"):
        expected = [(2, 2, "cow"), (3, 1, "bee"), (4, 0, "ant"), (5, 2, "cow")]
        assert base.splits[split] == [Item(f"{split}/{number}.jpg", label, name) for number, label, name in expected]
        assert new.splits[split] == [Item(f"{split}/0.jpg", 1, "elk"), Item(f"{split}/1.jpg", 0, "dog")]


def test_the_halves_are_those_of_the_labels_that_occur_in_training(dataset):
    # CoOp counts the labels of the few-shot training set: without label 0, the base classes are 1 and 2
    task = replace(dataset, train=[item for item in dataset.train if item.label != 0], class_ids=tuple("ABCDE"))
    assert list(task.subsample("base").classnames) == ["bee", "cow"]
    assert list(task.subsample("base").ids) == ["B", "C"]
    assert [item.label for item in task.subsample("base").test] == [1, 0, 1]


def test_missing_images_are_counted_once_and_some_are_named(on_disk):
    on_disk.check_files()
    (on_disk.root / "test/0.jpg").unlink()
    with pytest.raises(UserError) as error:
        replace(on_disk, val=on_disk.test, check_command="look DIR").check_files()
    said = f"Farm: 1 of 12 images are missing below {on_disk.root}: test/0.jpg; list all: look DIR"
    assert str(error.value) == said
    assert str(on_disk.unreadable("val/3.jpg", "is empty")) == "cannot read the image val/3.jpg of Farm: is empty"
    assert (some("abcd"), some("abc"), some("ab", 1), some("")) == ("a, b, c, ...", "a, b, c", "a, ...", "")


def test_a_file_has_another_version_when_its_content_or_time_of_change_differs(on_disk, dataset):
    path, file = "train/0.jpg", on_disk.root / "train/0.jpg"
    assert on_disk.file_version(path) == (3, file.stat().st_mtime_ns)
    os.utime(file, ns=(0, 10**18))
    assert on_disk.file_version(path) == (3, 10**18)
    sizes = on_disk.file_sizes()
    file.write_bytes(b"abcd")
    assert on_disk.file_version(path)[0] == 4
    assert on_disk.file_sizes() != sizes
    assert dataset.file_version(path) is dataset.file_sizes() is None
    file.unlink()
    with pytest.raises(UserError, match=r"cannot read the image train/0\.jpg of Farm: No such file"):
        on_disk.file_version(path)


@pytest.mark.parametrize(
    ("train", "test", "words"),
    [
        ([(0, "ant"), (1, "bee"), (0, "wasp")], [], r"label 0 is both 'ant' and 'wasp' \(train2\)"),
        ([(0, "ant"), (2, "cow")], [], "must run from 0 without a gap, but no item has label 1"),
        ([(1, "ant"), (2, "cow")], [], "no item has label 0"),
        ([(-1, "ant"), (0, "cow")], [], "no item has label 1"),
        ([(4, "ant")], [], "no item has label 0"),
        ([(0, "ant"), (1, "bee")], [(0, "ant"), (2, "cow")], r"test1 has label 2 \('cow'\), and no training image has"),
        ([(0, "ant"), (1, "bee")], [(1, "wasp")], r"label 1 is both 'bee' and 'wasp' \(test0\)"),
    ],
)
def test_labels_and_names_that_do_not_agree_are_an_error_that_names_the_image(train, test, words):
    pools = (
        [Item(f"{split}{number}", *row) for number, row in enumerate(rows)]
        for split, rows in (("train", train), ("test", test))
    )
    with pytest.raises(UserError, match=words):
        class_names(*pools)


# --- the digits


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset("Digits")


def test_the_splits_of_the_digits_are_by_position_and_large_enough(digits):
    # train_test_split(test_size=0.5, shuffle=False) of 1797 rows gives the last 899, as in scikit-learn's own example
    assert digits.test[0].path == "digits/0898"
    assert [item.label for item in digits.test] == load_digits().target[-899:].tolist()
    for split, least in (("train", 16), ("val", 4), ("test", 16)):  # no class has to be taken whole
        counts = Counter(item.label for item in digits.splits[split])
        assert sorted(counts) == list(range(10)) and min(counts.values()) >= least


def test_opening_an_item_gives_its_own_scan_as_8x8_rgb_with_white_ink(digits):
    scans, labels = load_digits().images, load_digits().target
    for item, row in ((digits.train[0], 0), (digits.val[0], 698), (digits.test[-1], 1796)):
        image = digits.open(item.path)
        assert (image.mode, image.size) == ("RGB", (8, 8))
        assert np.abs(np.asarray(image) - scans[row][..., None] * 255 / 16).max() <= 0.5
        assert item.label == labels[row]


def test_other_domains_change_the_test_images_alone(digits):
    scan = np.asarray(digits.open("digits/0898")).astype(int)
    for name, change in (
        ("DigitsInverted", lambda image: (image == 255 - scan).all()),
        ("DigitsRotated", lambda image: (image != scan).any() and abs(image.mean() - scan.mean()) < 12),
        ("DigitsNoisy", lambda image: 30 < (image - scan)[scan == 255].std() + (image - scan)[scan == 0].std() < 90),
        ("DigitsBlurred", lambda image: image.max() < scan.max() and abs(image.mean() - scan.mean()) < 12),
    ):
        domain = load_dataset(name)
        assert (domain.train, domain.val, domain.test) == ([], [], digits.test)
        assert change(np.asarray(domain.open("digits/0898")).astype(int)), name
    low, high = load_dataset("DigitsLow"), load_dataset("DigitsHigh")
    assert (low.classnames[-1], high.classnames[0], high.train[0].label) == ("four", "five", 0)
