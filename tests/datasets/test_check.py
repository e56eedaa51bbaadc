"""`datasets check`: what is ready, what is missing and how to get it; own images are all read, every bad one named."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
from own_images import make, picture, write

from trainers.hegraph.datasets import load_few_shot
from trainers.hegraph.datasets.__main__ import check_dataset, check_own_images, main
from trainers.hegraph.datasets.images import FORMATS
from trainers.hegraph.datasets.registry import ENTRIES, Sizes, stored_datasets

CLASSES = ("ant", "bee", "cow")
REMEDY = "get it: python -m trainers.hegraph datasets download {name} --root {root}"
COUNTED = "6 train, 3 val and 6 test images of 3 classes"
PUBLISHED = "published are 50500 train, 20200 val and 30300 test images of 101 classes"
SPLIT = "split_zhou_Food101.json"


def write_split_file(root: Path) -> None:
    """Food101's split file: of each class two training images, one for val and two for testing."""
    numbers = {"train": (0, 1), "val": (2,), "test": (3, 4)}
    rows = {s: [[f"{name}/{n}.jpg", y, name] for y, name in enumerate(CLASSES) for n in numbers[s]] for s in numbers}
    write(root / "food-101" / SPLIT, json.dumps(rows))


@pytest.fixture
def food(tmp_path) -> Path:
    """A root with a Food101 of three classes of five images, without a split file."""
    make(tmp_path / "food-101" / "images", *(f"{name}/{number}.jpg" for name in CLASSES for number in range(5)))
    return tmp_path


def test_of_a_data_set_that_is_absent_the_place_and_the_way_to_get_it_are_said(tmp_path):
    ready, (missing, download, by_hand) = check_dataset("ImageNet", str(tmp_path))
    assert (ready, missing) == (False, f"missing: the images, expected in {tmp_path}/imagenet/images")
    assert download == REMEDY.format(name="ImageNet", root=tmp_path)
    assert by_hand.startswith("by hand: ImageNet's images need a licence: register at https://image-net.org")


def test_a_data_set_is_ready_and_counted_and_whether_its_split_is_the_published_one_is_said(food, monkeypatch):
    remedy = REMEDY.format(name="Food101", root=food)

    def check() -> tuple[bool, list[str]]:
        return check_dataset("Food101", str(food))

    lacking = f"{food}/food-101/{SPLIT} is missing: runs draw one, which is not the split of published numbers"
    assert check() == (True, [COUNTED, PUBLISHED, lacking, remedy])
    assert os.listdir(food / "food-101") == ["images"]  # looking draws no split
    load_few_shot("Food101", str(food), 1, 3)
    drawn = f"{food}/food-101/{SPLIT} was drawn here with seed 3; delete it for another, which is not the split of"
    assert check() == (True, [COUNTED, PUBLISHED, f"{drawn} published numbers", remedy])
    write_split_file(food)  # the published one comes
    assert check() == (True, [COUNTED, PUBLISHED])
    for name in ("cow", "bee"):
        (food / "food-101" / "images" / name / "4.jpg").unlink()
    assert check() == (False, [f"missing: 2 of 15 images, {food}/food-101/images/bee/4.jpg", remedy])
    write(food / "food-101" / SPLIT, '{"train": [], "val": [], "test": []}')
    assert check() == (False, ["missing or damaged: there is no train image", remedy])
    (food / "food-101" / SPLIT).unlink()
    make(food / "food-101" / "images", "cow/4.jpg", "bee/4.jpg")
    monkeypatch.setitem(ENTRIES, "Food101", replace(ENTRIES["Food101"], sources=(), sizes=Sizes(6, 3, 6, 3)))
    assert check() == (True, [COUNTED])


def test_every_data_set_is_looked_at_where_none_is_named_and_the_exit_code_says_whether_all_are_ready(food, capsys):
    write_split_file(food)
    assert main(["check", "food101", "--root", str(food)]) == 0
    assert capsys.readouterr().out.splitlines()[0] == f"{'Food101':20} ready      {COUNTED}"
    assert main(["check", "--root", str(food)]) == 1
    lines = capsys.readouterr().out.splitlines()
    states = dict(re.fullmatch(r"(\S+) +(ready|not ready) +\S.*", line).groups() for line in lines if line[0] != " ")
    assert list(states.items()) == [(name, "ready" if name == "Food101" else "not ready") for name in stored_datasets()]


def test_a_mistake_is_an_error_before_anything_is_looked_at(tmp_path, capsys):
    for arguments, said in (
        (["check", "dtd", "flowers17"], "'flowers17'; did you mean 'OxfordFlowers'?"),
        (["check", "folder", "dtd"], "your own images"),
        (["download", "folder"], "your own images"),
    ):
        assert main([*arguments, "--root", str(tmp_path)]) == 2
        captured = capsys.readouterr()
        assert captured.out == "" and said in captured.err


# --- own images

# split -> class -> how many images it has
SIZES = {"train": {"ant": 9, "bee": 3, "cow": 4}, "val": {"bee": 1}, "test": {"ant": 2, "bee": 2, "cow": 2}}
COUNTS = [
    "16 train, 1 val and 6 test images of 3 classes",
    "classes: ant, bee, cow",
    "train, images per class: 3 to 9",
    "val, images per class: 0 to 1",
    "test, images per class: 2 to 2",
    "--shots 4: 1 of 3 classes have fewer training images, and are taken whole: bee",
    "--shots 8: 2 of 3 classes have fewer training images, and are taken whole: bee, cow",
    "--shots 16: 3 of 3 classes have fewer training images, and are taken whole: ant, bee, cow",
]


@pytest.fixture
def own(tmp_path) -> Path:
    """Class folders, of which no two images are alike."""
    paths = [f"{s}/{name}/{n}.png" for s, of in SIZES.items() for name, count in of.items() for n in range(count)]
    for number, path in enumerate(paths):
        write(tmp_path / "own images" / path, picture(number))
    return tmp_path / "own images"


def test_all_images_are_read_and_every_bad_one_is_named_and_every_copy_that_training_would_refuse(own, capsys):
    train = f"train: python -m trainers.hegraph --dataset-config-file folder --root '{own}' --shots 16"
    assert check_own_images(str(own)) == (True, [*COUNTS, f"{train} --config-file vit_b16 --output-dir OUT"])
    write(own / "train/ant/0.png", (own / "train/ant/1.png").read_bytes())  # in one split, nothing is tested on it
    write(own / "train/bee/0.png", (own / "test/bee/1.png").read_bytes())
    write(own / "train/bee/1.png", (own / "test/cow/0.png").read_bytes())  # whatever its class
    write(own / "train/bee/2.png", (own / "train/bee/2.png").read_bytes()[:-20])
    write(own / "train/cow/0.png", b"")  # cannot be read, and is no copy of the next but one
    write(own / "val/bee/0.png", (own / "test/bee/1.png").read_bytes())
    write(own / "test/ant/0.png", b"")
    write(own / "test/cow/1.png", b"<html>404</html>")
    os.mkfifo(own / "train" / "cow" / "pipe.png")  # opening it would wait for ever
    write(own / "train" / "cow" / "a\nb  c.png", b"")
    assert main(["check", "folder", "--root", str(own)]) == 1
    lines = [line[32:] for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == "18 train, 1 val and 6 test images of 3 classes"
    first, second, *rest = lines[len(COUNTS) :]
    assert first == "6 of 25 images cannot be read:"
    assert re.fullmatch(r"  train/bee/2\.png: .*truncated.*", second)
    assert rest == [
        "  train/cow/0.png: is empty (0 bytes)",
        r"  train/cow/a\nb  c.png: is empty (0 bytes)",
        "  train/cow/pipe.png: is no regular file",
        "  test/ant/0.png: is empty (0 bytes)",
        f"  test/cow/1.png: is no image, or of a format that is not read ({', '.join(FORMATS)} are)",
        "2 of 18 train images are test images as well; take them out of train or out of test:",
        f"  {own}/train/bee/0.png",
        f"  {own}/train/bee/1.png",
        "1 of 1 val images are test images as well; take them out of val or out of test:",
        f"  {own}/val/bee/0.png",
        f"mend this, and look again: python -m trainers.hegraph datasets check folder --root '{own}'",
    ]


def test_one_class_and_a_layout_that_training_refuses_are_not_ready_and_why_is_said(tmp_path):
    make(tmp_path, "train/ant/1.png")
    for root, said in (("", "at least two classes"), ("train", "holds ant, and neither class folders in")):
        ready, [line] = check_own_images(str(tmp_path / root))
        assert not ready and said in line
