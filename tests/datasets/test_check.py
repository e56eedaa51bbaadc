"""`python -m trainers.hegraph.datasets check`: what is ready, what is missing, where it was expected, how to get it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from trainers.hegraph.datasets import load_dataset, load_few_shot
from trainers.hegraph.datasets.__main__ import main
from trainers.hegraph.datasets.check import check_dataset
from trainers.hegraph.datasets.registry import ENTRIES, stored_datasets
from trainers.hegraph.utils.errors import UserError

ROOT = Path(__file__).parents[2]
STORED = stored_datasets()
CLASSES = ("ant", "bee", "cow")


def images_of(name: str) -> Path:
    return Path(STORED[name].folder) / STORED[name].images


def class_folders(root: Path, name: str = "Food101", count: int = 5) -> None:
    """A data set of three class folders, without a split file."""
    for called in CLASSES:
        folder = root / images_of(name) / called
        folder.mkdir(parents=True)
        for number in range(count):
            (folder / f"{number}.jpg").touch()


def split_file(root: Path, name: str = "Food101") -> Path:
    """Its split file: of each class two training images, one for val and two for testing."""
    rows = {
        split: [[f"{called}/{number}.jpg", label, called] for label, called in enumerate(CLASSES) for number in numbers]
        for split, numbers in (("train", (0, 1)), ("val", (2,)), ("test", (3, 4)))
    }
    path = root / STORED[name].folder / STORED[name].split_file
    path.write_text(json.dumps(rows))
    return path


def everything_below(root: Path) -> list[tuple]:
    return sorted((str(path), path.stat().st_mtime_ns) for path in root.rglob("*"))


REMEDY = "get it: python -m trainers.hegraph.datasets download {name} --root {root}"


@pytest.mark.parametrize("name", STORED)
def test_of_a_data_set_that_is_absent_the_place_and_the_way_to_get_it_are_said(name, tmp_path):
    state = check_dataset(name, str(tmp_path))
    assert not state.ready
    assert state.lines[:2] == [
        f"missing: the images, expected in {tmp_path / images_of(name)}", REMEDY.format(name=name, root=tmp_path)
    ]  # fmt: skip
    assert (name == "ImageNet") == any("by hand: " in line and "https://image-net.org" in line for line in state.lines)
    assert not list(tmp_path.iterdir())


def test_a_whole_data_set_is_ready_and_counted_beside_the_published_sizes(tmp_path):
    class_folders(tmp_path)
    split_file(tmp_path)
    before = everything_below(tmp_path)
    state = check_dataset("Food101", str(tmp_path))
    assert state.ready
    assert state.lines == [
        "6 train, 3 val and 6 test images of 3 classes",
        "published are 50500 train, 20200 val and 30300 test images of 101 classes",
    ]
    assert everything_below(tmp_path) == before


def test_of_a_data_set_of_the_published_sizes_nothing_else_is_said(tmp_path, monkeypatch):
    monkeypatch.setitem(ENTRIES, "Food101", replace(STORED["Food101"], sizes=(6, 3, 6, 3)))
    class_folders(tmp_path)
    split_file(tmp_path)
    assert check_dataset("Food101", str(tmp_path)).lines == ["6 train, 3 val and 6 test images of 3 classes"]


def test_missing_images_are_counted_and_the_first_is_named(tmp_path):
    class_folders(tmp_path)
    split_file(tmp_path)
    for called in ("cow", "bee"):
        (tmp_path / images_of("Food101") / called / "4.jpg").unlink()
    state = check_dataset("Food101", str(tmp_path))
    assert not state.ready
    assert state.lines == [
        f"missing: 2 of 15 images, {tmp_path}/food-101/images/bee/4.jpg", REMEDY.format(name="Food101", root=tmp_path)
    ]  # fmt: skip


def test_without_a_split_file_it_is_ready_but_not_for_published_numbers(tmp_path):
    class_folders(tmp_path)
    before = everything_below(tmp_path)
    state = check_dataset("Food101", str(tmp_path))
    assert state.ready
    assert state.lines[0] == "6 train, 3 val and 6 test images of 3 classes"
    said = " ".join(state.lines)
    assert f"without {tmp_path}/food-101/split_zhou_Food101.json" in said
    assert "not the split of published numbers" in said
    assert REMEDY.format(name="Food101", root=tmp_path) in said
    assert everything_below(tmp_path) == before  # looking draws no split


def test_a_split_that_a_run_has_drawn_is_still_said_to_be_no_published_one(tmp_path):
    class_folders(tmp_path)
    load_few_shot("Food101", str(tmp_path), 1, 3)
    state = check_dataset("Food101", str(tmp_path))
    assert state.ready
    said = " ".join(state.lines)
    assert f"{tmp_path}/food-101/split_zhou_Food101.json was drawn here with seed 3" in said
    assert "not the split of published numbers" in said
    split_file(tmp_path)  # the published one comes
    assert "drawn" not in " ".join(check_dataset("Food101", str(tmp_path)).lines)


def test_of_a_data_set_that_nobody_publishes_no_download_is_spoken_of(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(ENTRIES, "Food101", replace(ENTRIES["Food101"], sources=()))
    class_folders(tmp_path)
    assert check_dataset("Food101", str(tmp_path / "elsewhere")).lines == [
        f"missing: the images, expected in {tmp_path}/elsewhere/food-101/images"
    ]
    for _ in range(2):  # without a split file, and with one that was drawn
        state = check_dataset("Food101", str(tmp_path))
        assert state.ready
        assert not [line for line in state.lines if "download" in line or "split of published" in line]
        load_few_shot("Food101", str(tmp_path), 1, 3)
    [message] = caplog.messages
    assert message.endswith("split_zhou_Food101.json was missing: drawn with seed 3 and written, as CoOp does")


@pytest.mark.parametrize("name", ["SUN397", "UCF101", "OxfordPets", "OxfordFlowers", "StanfordCars"])
def test_where_no_split_can_be_drawn_it_is_the_split_file_that_is_said_to_be_missing(name, tmp_path):
    (tmp_path / images_of(name)).mkdir(parents=True)
    state = check_dataset(name, str(tmp_path))
    assert not state.ready
    assert f"{tmp_path / STORED[name].folder / STORED[name].split_file} is missing" in state.lines[0]
    assert state.lines[1] == REMEDY.format(name=name, root=tmp_path)


@pytest.mark.parametrize("name", ["Caltech101", "DescribableTextures", "EuroSAT", "Food101"])
def test_an_empty_image_folder_is_not_ready(name, tmp_path):
    (tmp_path / images_of(name)).mkdir(parents=True)
    state = check_dataset(name, str(tmp_path))
    assert not state.ready
    assert f"{tmp_path / images_of(name)} holds no folder of a class" in state.lines[0]


def test_class_names_that_are_missing_are_named(tmp_path):
    (tmp_path / images_of("ImageNetR") / "n01440764").mkdir(parents=True)
    state = check_dataset("ImageNetR", str(tmp_path))
    assert not state.ready
    assert f"cannot read {tmp_path}/imagenet-rendition/classnames.txt: No such file or directory" in state.lines[0]


@pytest.mark.parametrize(
    "damage",
    [
        lambda rows: rows.pop("test"),
        lambda rows: rows["test"].clear(),
        lambda rows: rows["train"].clear(),
        lambda rows: [row.pop() for row in rows["train"]],
        lambda rows: [row.__setitem__(1, row[1] + 1) for split in rows.values() for row in split],
        lambda rows: [row.__setitem__(2, "x") for row in rows["test"]],
        lambda rows: rows["test"].append(["ant/4.jpg", 3, "dog"]),
        lambda rows: rows["val"].append(["ant/4.jpg", 3, "dog"]),
    ],
    ids=[
        "no test", "test is empty", "train is empty", "two columns", "labels from 1", "other names in test",
        "a class only in test", "a class only in val",
    ],
)  # fmt: skip
def test_what_a_run_would_refuse_is_not_ready(damage, tmp_path):
    class_folders(tmp_path)
    path = split_file(tmp_path)
    rows = json.loads(path.read_text())
    damage(rows)
    path.write_text(json.dumps(rows))
    with pytest.raises(UserError) as error:
        load_dataset("Food101", str(tmp_path))
    state = check_dataset("Food101", str(tmp_path))
    assert not state.ready
    reason = str(error.value).removeprefix("Food101: ").partition("; see python -m")[0]
    assert reason in state.lines[0]
    assert state.lines[1] == REMEDY.format(name="Food101", root=tmp_path)


def test_a_list_of_another_structure_is_damaged_and_no_traceback(tmp_path):
    folder = tmp_path / "fgvc_aircraft"
    (folder / "images").mkdir(parents=True)
    (folder / "variants.txt").write_text("<!DOCTYPE html>\n")
    for split in ("train", "val", "test"):
        (folder / f"images_variant_{split}.txt").write_text("0034309 707-320\n")
    state = check_dataset("FGVCAircraft", str(tmp_path))
    assert not state.ready
    assert state.lines[0].startswith(f"damaged: a file in {folder} has another structure")


def test_validation_folders_that_do_not_fit_the_training_folders_are_not_ready(tmp_path):
    folder = tmp_path / "imagenet"
    for path in ("train/n01440764", "val/n01440764", "val/n01443537"):
        (folder / "images" / path).mkdir(parents=True)
        (folder / "images" / path / "1.JPEG").touch()
    (folder / "classnames.txt").write_text("n01440764 tench\nn01443537 goldfish\n")
    state = check_dataset("ImageNet", str(tmp_path))
    assert not state.ready
    assert "n01443537" in state.lines[0]


# --- the command


def test_every_data_set_is_looked_at_where_none_is_named(tmp_path, capsys):
    class_folders(tmp_path)
    split_file(tmp_path)
    assert main(["check", "--root", str(tmp_path)]) == 1
    lines = capsys.readouterr().out.splitlines()
    states = dict(re.fullmatch(r"(\S+) +(ready|not ready) +\S.*", line).groups() for line in lines if line[0] != " ")
    assert list(states) == list(STORED)
    assert states == {name: "ready" if name == "Food101" else "not ready" for name in STORED}


def test_the_exit_code_is_0_where_all_that_was_asked_for_is_ready(tmp_path, capsys):
    class_folders(tmp_path)
    split_file(tmp_path)
    assert main(["check", "food101", "--root", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0] == f"{'Food101':20} ready      6 train, 3 val and 6 test images of 3 classes"
    assert main(["check", "Food101", "dtd", "--root", str(tmp_path)]) == 1
    assert re.findall(r"^\S+", capsys.readouterr().out, flags=re.MULTILINE) == ["Food101", "DescribableTextures"]


def test_names_may_come_after_the_root(tmp_path, capsys):
    assert main(["check", "--root", str(tmp_path), "SUN397"]) == 1
    assert capsys.readouterr().out.startswith("SUN397")


def test_a_root_that_is_not_there_is_no_traceback_but_said_of_each(tmp_path, capsys):
    assert main(["check", "Caltech101", "--root", str(tmp_path / "absent")]) == 1
    assert (
        f"missing: the images, expected in {tmp_path}/absent/caltech-101/101_ObjectCategories"
        in capsys.readouterr().out
    )


def test_a_name_that_is_none_is_one_line_of_error_with_the_nearest(tmp_path, capsys):
    assert main(["check", "dtd", "flowers17", "--root", str(tmp_path)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""  # nothing was looked at before
    assert captured.err == "error: unknown data set 'flowers17'; did you mean 'flowers'?\n"


@pytest.mark.parametrize("arguments", [["check"], ["look", "--root", "."], []], ids=["no root", "no such", "nothing"])
def test_a_command_that_is_incomplete_shows_the_usage(arguments, capsys):
    assert main(arguments) == 2
    assert "usage: python -m trainers.hegraph.datasets" in capsys.readouterr().err


def test_the_command_runs_as_a_module(tmp_path):
    class_folders(tmp_path)
    split_file(tmp_path)
    command = [
        sys.executable,
        "-m",
        "trainers.hegraph.datasets",
        "check",
        "food101",
        "eurosat",
        "--root",
        str(tmp_path),
    ]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert finished.returncode == 1
    assert finished.stderr == ""
    assert [line[:30].split() for line in finished.stdout.splitlines() if line[0] != " "] == [
        ["Food101", "ready"], ["EuroSAT", "not", "ready"]
    ]  # fmt: skip
