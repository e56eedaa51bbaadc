"""What a data set gives: its few-shot tasks, halves of its classes, and what it knows of its files; the digits."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter
from sklearn.datasets import load_digits

from trainers.hegraph.datasets import Dataset, Item, load_dataset
from trainers.hegraph.datasets.base import check_classes, class_names, files_among, some
from trainers.hegraph.utils.errors import UserError

CLASSES = ("ant", "bee", "cow", "dog", "elk")


@pytest.fixture
def dataset() -> Dataset:
    """Five classes that are no files; label 2 stands in the middle."""
    train, val, test = (
        [Item(f"{split}/{number}.jpg", label, CLASSES[label]) for number, label in enumerate([4, 3, 2, 1, 0, 2])]
        for split in ("train", "val", "test")
    )
    return Dataset("Farm", CLASSES, train, val, test, Image.open)


@pytest.fixture
def on_disk(dataset: Dataset, tmp_path: Path) -> Dataset:
    """The same, with a file of three bytes for each image."""
    for path in dataset.paths():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(b"abc")
    return replace(dataset, root=tmp_path)


def test_halves_of_the_classes_are_counted_by_the_labels_of_training_images_as_coop_does(dataset):
    assert dataset.subsample("all") is dataset
    task = replace(dataset, train=[item for item in dataset.train if item.label != 0], class_ids=tuple("ABCDE"))
    base = task.subsample("base")
    assert (list(base.classnames), list(base.ids)) == (["bee", "cow"], ["B", "C"])
    assert base.test == [Item("test/2.jpg", 1, "cow"), Item("test/3.jpg", 0, "bee"), Item("test/5.jpg", 1, "cow")]
    assert [item.label for item in replace(dataset, train=[]).subsample("new").test] == [1, 0]
    assert not replace(dataset, val=[], test=[]).val_is_test


def test_missing_images_are_counted_once_and_some_are_named(on_disk):
    on_disk.check_files()
    (on_disk.root / "test/0.jpg").unlink()
    with pytest.raises(UserError, match=r"1 of 12 images are missing below .*: test/0\.jpg; list all: look DIR"):
        replace(on_disk, val=on_disk.test, check_command="look DIR").check_files()
    assert str(on_disk.unreadable("val/3.jpg", "is empty")) == "cannot read the image val/3.jpg of Farm: is empty"
    assert (some("abcd"), some("abc"), some("ab", 1), some("")) == ("a, b, c, ...", "a, b, c", "a, ...", "")


def test_a_file_has_another_version_when_its_content_or_time_of_change_differs(on_disk, dataset):
    path, file = "train/0.jpg", on_disk.root / "train/0.jpg"
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


def test_files_are_alike_in_every_byte_or_not_at_all(tmp_path):
    for name, content in {"a": b"xa", "b": b"xb", "c": b"x", "d": b"ya", "e": b"", "twin": b"xa"}.items():
        (tmp_path / name).write_bytes(content)
    others = [tmp_path / name for name in "bcd"]
    assert files_among([tmp_path / "a", tmp_path / "e"], others) == []
    assert files_among([tmp_path / "a", tmp_path / "e"], [*others, tmp_path / "twin"]) == [tmp_path / "a"]


def test_labels_and_names_that_do_not_agree_are_an_error_that_names_the_image():
    good, odd = [Item("1", 0, "ant"), Item("2", 1, "bee")], Item("3", 2, "cow")
    for pools, words in (
        ([[*good, Item("3", 0, "wasp")]], "^3 has label 0 for 'wasp', which stands for ant"),
        ([[good[0], odd]], "no item has label 1"),
        ([good, [good[0], odd]], "^3 has label 2 for 'cow', which stands for no class"),
    ):
        with pytest.raises(UserError, match=words):
            class_names(*pools)
    check_classes(2)
    with pytest.raises(UserError, match="^Farm: there must be at least two classes to tell apart, got 1"):
        check_classes(1, "Farm")


# --- the digits


def test_the_splits_of_the_digits_are_by_position_and_an_item_opens_its_own_scan_with_white_ink():
    digits, (scans, labels) = load_dataset("Digits"), (load_digits().images, load_digits().target)
    numbers = [range(698), range(698, 898), range(898, 1797)]  # test is that of scikit-learn's own example
    for items, rows in zip(digits.splits.values(), numbers):
        assert [item.path for item in items] == [f"digits/{row:04d}" for row in rows]
        assert [item.label for item in items] == labels[rows].tolist()
        assert min(Counter(item.label for item in items).values()) >= 16  # no class has to be taken whole
        image = digits.open(items[-1].path)
        assert (image.mode, image.size) == ("RGB", (8, 8))
        assert np.abs(np.asarray(image) - scans[rows[-1]][..., None] * 255 / 16).max() <= 0.5


@pytest.mark.parametrize("row", [898, 899])
def test_other_domains_change_the_test_images_alone(row):
    digits = load_dataset("Digits")
    scan = digits.open(f"digits/{row:04d}").convert("L")
    noisy = np.asarray(scan) + np.random.default_rng(row).normal(0, 60, (8, 8))
    for name, expected in {
        "DigitsInverted": 255 - np.asarray(scan),
        "DigitsRotated": scan.rotate(25 if row == 899 else -25, Image.Resampling.BILINEAR),
        "DigitsNoisy": noisy.clip(0, 255).round(),
        "DigitsBlurred": scan.filter(ImageFilter.GaussianBlur(0.8)),
    }.items():
        domain = load_dataset(name)
        assert (domain.train, domain.val, domain.test) == ([], [], digits.test)
        assert (np.asarray(domain.open(f"digits/{row:04d}")) == np.asarray(expected)[..., None]).all(), name
    low, high = load_dataset("DigitsLow"), load_dataset("DigitsHigh")
    assert (low.classnames[-1], high.classnames[0], high.train[0].label) == ("four", "five", 0)
