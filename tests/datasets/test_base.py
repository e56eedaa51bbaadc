"""What a data set gives: its few-shot tasks, halves of its classes, and what it knows of its files."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from trainers.hegraph.datasets import Dataset, Item, Selection
from trainers.hegraph.datasets.base import class_names
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
    for item in (*dataset.train, *dataset.val, *dataset.test):
        path = tmp_path / item.path
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"abc")
    return replace(dataset, root=tmp_path)


def test_a_selection_takes_its_positions_of_train_and_val_and_leaves_test_whole(dataset):
    task = dataset.select(Selection(train=[5, 0], val=[3]))
    assert task.train == [dataset.train[5], dataset.train[0]]
    assert task.val == [dataset.val[3]]
    assert task.test == dataset.test


def test_where_val_is_test_the_selection_leaves_it_whole_as_coop_does_for_imagenet(dataset):
    imagenet = replace(dataset, val=list(dataset.test))
    assert imagenet.val_is_test
    assert imagenet.select(Selection(train=[0], val=[3])).val == dataset.test
    assert imagenet.subsample("new").val_is_test


def test_base_classes_are_the_first_half_of_the_labels_with_the_middle_one(dataset):
    base = dataset.subsample("base")
    assert list(base.classnames) == ["ant", "bee", "cow"]
    for split in ("train", "val", "test"):
        items = getattr(base, split)
        assert items == [Item(f"{split}/{number}.jpg", label, CLASSES[label]) for number, label in
                         ((2, 2), (3, 1), (4, 0), (5, 2))]  # fmt: skip


def test_new_classes_are_the_rest_with_labels_from_0(dataset):
    new = dataset.subsample("new")
    assert list(new.classnames) == ["dog", "elk"]
    for split in ("train", "val", "test"):
        assert getattr(new, split) == [Item(f"{split}/0.jpg", 1, "elk"), Item(f"{split}/1.jpg", 0, "dog")]


def test_the_halves_are_those_of_the_labels_that_occur_in_training(dataset):
    # CoOp counts the labels of the few-shot training set: without label 0, the base classes are 1 and 2
    task = replace(dataset, train=[item for item in dataset.train if item.label != 0])
    assert list(task.subsample("base").classnames) == ["bee", "cow"]
    assert [item.label for item in task.subsample("base").test] == [1, 0, 1]


def test_one_missing_image_is_counted_and_named(on_disk):
    (on_disk.root / "val/2.jpg").unlink()
    with pytest.raises(UserError) as error:
        on_disk.check_files()
    assert str(error.value) == f"Farm: 1 of 18 images are missing below {on_disk.root}: val/2.jpg"


def test_where_a_command_lists_all_such_images_every_message_ends_with_it(on_disk):
    own = replace(on_disk, check_command="look DIR")
    (on_disk.root / "val/2.jpg").unlink()
    with pytest.raises(UserError, match=r"1 of 18 images are missing below .*: val/2\.jpg; list all: look DIR$"):
        own.check_files()
    assert str(own.unreadable("val/3.jpg", "is empty")).endswith("val/3.jpg of Farm: is empty; list all: look DIR")
    assert str(on_disk.unreadable("val/3.jpg", "is empty")) == "cannot read the image val/3.jpg of Farm: is empty"


def test_items_may_be_left_out_by_their_paths(dataset):
    rest = dataset.without({"train/0.jpg", "test/5.jpg"})
    assert (rest.train, rest.val, rest.test) == (dataset.train[1:], dataset.val, dataset.test[:5])


def test_an_image_that_two_splits_name_is_one_image(on_disk):
    both = replace(on_disk, val=on_disk.test)
    (on_disk.root / "test/0.jpg").unlink()
    with pytest.raises(UserError, match="1 of 12 images"):
        both.check_files()


def test_a_file_has_another_version_when_its_content_or_time_of_change_differs(on_disk):
    path, file = "train/0.jpg", on_disk.root / "train/0.jpg"
    versions = [on_disk.file_version(path)]
    assert on_disk.file_version(path) == versions[0]
    os.utime(file, ns=(0, 10**18))
    versions.append(on_disk.file_version(path))
    file.write_bytes(b"abcd")
    versions.append(on_disk.file_version(path))
    os.utime(file, ns=(0, 10**18))
    versions.append(on_disk.file_version(path))
    assert len(set(versions)) == 4


def test_the_hash_of_the_sizes_outlives_a_touch_and_not_a_change(on_disk):
    before = on_disk.file_sizes()
    os.utime(on_disk.root / "test/5.jpg", ns=(0, 10**18))
    assert on_disk.file_sizes() == before
    (on_disk.root / "test/5.jpg").write_bytes(b"abcd")
    assert on_disk.file_sizes() != before


def test_a_label_with_two_names_is_an_error_that_names_the_image():
    items = [Item("1.jpg", 0, "ant"), Item("2.jpg", 1, "bee"), Item("3.jpg", 0, "wasp")]
    with pytest.raises(UserError, match=r"label 0 is both 'ant' and 'wasp' \(3\.jpg\)"):
        class_names(items)


@pytest.mark.parametrize(
    ("labels", "absent"), [([0, 2], 1), ([1, 2], 0), ([-1, 0], 1), ([4], 0)], ids=["gap", "from 1", "below 0", "one"]
)
def test_labels_that_do_not_run_from_0_without_a_gap_are_an_error(labels, absent):
    items = [Item(f"{label}.jpg", label, CLASSES[label]) for label in labels]
    with pytest.raises(UserError, match=f"must run from 0 without a gap, but no item has label {absent}"):
        class_names(items)


def test_a_test_image_whose_label_no_training_image_has_is_an_error_that_names_it():
    train, test = items_of("train", [0, 1]), items_of("test", [1, 0, 2])
    with pytest.raises(UserError, match=r"test/2\.jpg has label 2 \('cow'\), and no training image has"):
        class_names(train, [], test)


def test_a_test_image_whose_label_has_another_name_in_training_is_an_error_that_names_both():
    train, test = items_of("train", [0, 1]), [Item("test/0.jpg", 1, "wasp")]
    with pytest.raises(UserError, match=r"label 1 is 'bee' in training and 'wasp' for test/0\.jpg"):
        class_names(train, [], test)
