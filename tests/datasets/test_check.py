"""`datasets check`: what is ready, what is missing and how to get it; own images are all read, every bad one named."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
from own_images import picture, write

from trainers.hegraph.datasets import load_few_shot
from trainers.hegraph.datasets.__main__ import check_dataset, check_own_images, main
from trainers.hegraph.datasets.images import FORMATS
from trainers.hegraph.datasets.registry import ENTRIES, Sizes, stored_datasets

STORED = stored_datasets()
CLASSES = ("ant", "bee", "cow")
REMEDY = "get it: python -m trainers.hegraph datasets download {name} --root {root}"
COUNTED = "6 train, 3 val and 6 test images of 3 classes"


def images_of(name: str) -> Path:
    return Path(STORED[name].folder) / STORED[name].images


def split_file(root: Path) -> Path:
    """Food101's split file: of each class two training images, one for val and two for testing."""
    rows = {
        split: [[f"{called}/{number}.jpg", label, called] for label, called in enumerate(CLASSES) for number in numbers]
        for split, numbers in (("train", (0, 1)), ("val", (2,)), ("test", (3, 4)))
    }
    path = root / "food-101" / STORED["Food101"].split_file
    path.write_text(json.dumps(rows))
    return path


@pytest.fixture
def food(tmp_path) -> Path:
    """A root with a Food101 of three classes of five images, without a split file."""
    for called in CLASSES:
        for number in range(5):
            write(tmp_path / images_of("Food101") / called / f"{number}.jpg", b"")
    return tmp_path


def test_of_a_data_set_that_is_absent_the_place_and_the_way_to_get_it_are_said(tmp_path):
    ready, (missing, download, by_hand) = check_dataset("ImageNet", str(tmp_path))
    assert not ready
    assert missing == f"missing: the images, expected in {tmp_path / images_of('ImageNet')}"
    assert download == REMEDY.format(name="ImageNet", root=tmp_path)
    assert by_hand.startswith("by hand: ImageNet's images need a licence: register at https://image-net.org")


def test_a_whole_data_set_is_ready_and_counted_beside_the_published_sizes(food, monkeypatch):
    split_file(food)
    published = "published are 50500 train, 20200 val and 30300 test images of 101 classes"
    assert check_dataset("Food101", str(food)) == (True, [COUNTED, published])
    monkeypatch.setitem(ENTRIES, "Food101", replace(STORED["Food101"], sizes=Sizes(6, 3, 6, 3)))
    assert check_dataset("Food101", str(food)) == (True, [COUNTED])
    for called in ("cow", "bee"):
        (food / images_of("Food101") / called / "4.jpg").unlink()
    missing = f"missing: 2 of 15 images, {food}/food-101/images/bee/4.jpg"
    assert check_dataset("Food101", str(food)) == (False, [missing, REMEDY.format(name="Food101", root=food)])


def test_without_a_published_split_it_is_ready_but_not_for_published_numbers(food, monkeypatch):
    remedy = REMEDY.format(name="Food101", root=food)
    ready, (counted, _, said, last) = check_dataset("Food101", str(food))
    assert (ready, counted, last) == (True, COUNTED, remedy)
    assert f"without {food}/food-101/split_zhou_Food101.json" in said and "not the split of published numbers" in said
    assert [path.name for path in (food / "food-101").iterdir()] == ["images"]  # looking draws no split
    load_few_shot("Food101", str(food), 1, 3)
    ready, (*_, said, last) = check_dataset("Food101", str(food))
    assert ready and f"{food}/food-101/split_zhou_Food101.json was drawn here with seed 3; " in said and last == remedy
    path = split_file(food)  # the published one comes
    assert "drawn" not in " ".join(check_dataset("Food101", str(food))[1])
    path.write_text('{"train": [], "val": [], "test": []}')
    assert check_dataset("Food101", str(food)) == (False, ["missing or damaged: there is no train image", remedy])
    path.unlink()
    monkeypatch.setitem(ENTRIES, "Food101", replace(ENTRIES["Food101"], sources=()))
    assert "split of published" not in " ".join(check_dataset("Food101", str(food))[1])


def test_every_data_set_is_looked_at_where_none_is_named_and_the_exit_code_says_whether_all_are_ready(food, capsys):
    split_file(food)
    assert main(["check", "food101", "--root", str(food)]) == 0
    assert capsys.readouterr().out.splitlines()[0] == f"{'Food101':20} ready      {COUNTED}"
    assert main(["check", "--root", str(food)]) == 1
    lines = capsys.readouterr().out.splitlines()
    states = dict(re.fullmatch(r"(\S+) +(ready|not ready) +\S.*", line).groups() for line in lines if line[0] != " ")
    assert list(states.items()) == [(name, "ready" if name == "Food101" else "not ready") for name in STORED]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["check", "dtd", "flowers17"], "'flowers17'; did you mean 'OxfordFlowers'?"),
        (["check", "folder", "dtd"], "your own images"),
        (["download", "folder"], "your own images"),
    ],
)
def test_a_mistake_is_an_error_before_anything_is_looked_at(tmp_path, capsys, arguments, said):
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
Pictures = dict[str, bytes]  # split/class/number -> the file


@pytest.fixture
def pictures() -> Pictures:
    keys = [f"{split}/{name}/{n}" for split, of in SIZES.items() for name, count in of.items() for n in range(count)]
    return {key: picture(number) for number, key in enumerate(keys)}


def class_folders(folder: Path, pictures: Pictures) -> str:
    for key, content in pictures.items():
        write(folder / f"{key}.png", content)
    return str(folder)


def test_all_images_are_read_and_those_that_cannot_be_are_named_with_their_reasons(tmp_path, pictures, capsys):
    root = class_folders(tmp_path / "whole", pictures)
    train = "train: python -m trainers.hegraph --dataset-config-file folder --root "
    last = f"{train}{root} --shots 16 --config-file vit_b16 --output-dir OUT"
    assert check_own_images(root) == (True, [*COUNTS, last])
    pictures |= {"train/bee/2": pictures["train/bee/2"][:-20], "val/bee/0": b"", "test/cow/1": b"<html>404</html>"}
    root = class_folders(tmp_path / "own images", pictures)
    assert main(["check", "folder", "--root", root]) == 1
    lines = [line[32:] for line in capsys.readouterr().out.splitlines()]
    assert lines[: len(COUNTS)] == COUNTS
    first, second, *rest = lines[len(COUNTS) :]
    assert first == "3 of 23 images cannot be read:"
    assert re.fullmatch(r"  train/bee/2\.png: .*truncated.*", second)
    assert rest == [
        "  val/bee/0.png: is empty (0 bytes)",
        f"  test/cow/1.png: is no image, or of a format that is not read ({', '.join(FORMATS)} are)",
        f"mend this, and look again: python -m trainers.hegraph datasets check folder --root '{root}'",
    ]


def test_what_is_no_file_and_every_copy_of_a_test_image_that_training_would_refuse_is_named(tmp_path, pictures, capsys):
    pictures["train/bee/0"] = pictures["val/bee/0"] = pictures["test/bee/1"]
    pictures["train/bee/1"] = pictures["test/cow/0"]  # whatever its class
    pictures["train/ant/0"] = pictures["train/ant/1"]  # in one split, nothing is tested on it
    pictures |= {"train/cow/0": b"", "test/ant/0": b""}  # cannot be read, and are no copies
    class_folders(tmp_path, pictures)
    os.mkfifo(tmp_path / "train" / "cow" / "pipe.png")  # opening it would wait for ever
    write(tmp_path / "train" / "cow" / "a\nb  c.png", b"")
    assert main(["check", "folder", "--root", str(tmp_path)]) == 1
    lines = [line[32:] for line in capsys.readouterr().out.splitlines()]
    assert lines[-10:-1] == [
        "  train/cow/0.png: is empty (0 bytes)",
        r"  train/cow/a\nb  c.png: is empty (0 bytes)",
        "  train/cow/pipe.png: is no regular file",
        "  test/ant/0.png: is empty (0 bytes)",
        "2 of 18 train images are test images as well; take them out of train or out of test:",
        f"  {tmp_path}/train/bee/0.png",
        f"  {tmp_path}/train/bee/1.png",
        "1 of 1 val images are test images as well; take them out of val or out of test:",
        f"  {tmp_path}/val/bee/0.png",
    ]


def test_one_class_and_a_layout_that_training_refuses_are_not_ready_and_why_is_said(tmp_path, pictures):
    class_folders(tmp_path / "one", {key: content for key, content in pictures.items() if "ant" in key})
    for root, said in (("one", "at least two classes"), ("one/train", "holds ant, and neither class folders in")):
        ready, [line] = check_own_images(str(tmp_path / root))
        assert not ready and said in line
