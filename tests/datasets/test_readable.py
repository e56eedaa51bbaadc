"""Own images that cannot be read are left out before anything is encoded, or refused."""

import logging
from pathlib import Path

import pytest
from dataset_files import picture, write

from trainers.hegraph import UserError, load_few_shot
from trainers.hegraph.datasets.loading import load_test_images
from trainers.hegraph.datasets.readable import counting_left_out


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """Three images in each split and class, two of which cannot be read."""
    shades = iter(range(200))
    for split in ("train", "val", "test"):
        for name in ("ant", "bee"):
            for number in range(3):
                write(tmp_path / split / name / f"{number}.png", picture(next(shades)))
    write(tmp_path / "train" / "ant" / "0.png", picture(0)[:-20])
    write(tmp_path / "test" / "bee" / "1.png", b"")
    return tmp_path


def test_unreadable_images_are_left_out_and_named(own, caplog):
    caplog.set_level(logging.WARNING)
    with counting_left_out() as left_out:
        task = load_few_shot("ImageFolder", str(own), 3, 1, unreadable="leave out")
    assert left_out == {"train/ant/0.png", "test/bee/1.png"}
    assert {split: len(items) for split, items in task.splits.items()} == {"train": 5, "val": 6, "test": 5}
    assert not left_out & {*task.paths()}
    [message] = [line for line in caplog.messages if "cannot be read" in line]
    assert message.startswith("2 of 18 images cannot be read and are left out: train/ant/0.png (")
    assert message.endswith("; test/bee/1.png (is empty (0 bytes))")
    assert len(load_test_images("ImageFolder", str(own), 1, unreadable="leave out").test) == 5


def test_unreadable_images_are_refused(own):
    with pytest.raises(
        UserError, match=r"2 of 18 images cannot be read, such as train/ant/0\.png .*; list all: .* check"
    ):
        load_few_shot("ImageFolder", str(own), 3, 1, unreadable="refuse")
    assert len(load_few_shot("ImageFolder", str(own), 3, 1).train) == 6  # without a word, no image is opened


def test_class_without_readable_training_images_is_refused(own):
    for number in range(3):
        write(own / "train" / "bee" / f"{number}.png", b"no image")
    with pytest.raises(UserError, match="no training image of bee can be read, such as train/ant/0.png"):
        load_few_shot("ImageFolder", str(own), 3, 1, unreadable="leave out")
