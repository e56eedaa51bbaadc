"""Folders of class folders as people have them: other names of splits, images too deep or too high, no split."""

from __future__ import annotations

import logging
import unicodedata
from pathlib import Path

import pytest
from own_images import counts, load, make
from PIL import Image

from trainers.hegraph.datasets import images, load_dataset
from trainers.hegraph.datasets.images import IMAGE_SUFFIXES
from trainers.hegraph.utils.errors import UserError


@pytest.fixture(autouse=True)
def warnings_are_kept(caplog) -> None:
    caplog.set_level(logging.WARNING)


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


# --- names of splits


@pytest.mark.parametrize("train", ["train", "Train", "TRAINING"])
@pytest.mark.parametrize(("folder", "expected"), [("valid", [1, 1, 0]), ("Dev", [1, 1, 0]), ("Evaluation", [1, 0, 1])])
def test_a_folder_of_a_split_may_have_any_name_of_it_in_any_case(train, folder, expected, tmp_path, caplog):
    dataset = load(make(tmp_path, f"{train}/ant/1.jpg", f"{folder}/ant/2.jpg"))
    assert counts(dataset) == expected
    assert [item.path for item in dataset.train] == [f"{train}/ant/1.jpg"]
    dataset.check_files()
    assert caplog.messages == []


@pytest.mark.parametrize(("first", "second", "split"), [("Training", "train", "train"), ("eval", "test", "test")])
@pytest.mark.parametrize("with_tables", [False, True])
def test_two_folders_of_one_split_are_an_error(first, second, split, with_tables, tmp_path):
    make(tmp_path, "train/ant/1.jpg", f"{first}/ant/1.jpg", f"{second}/ant/2.jpg")
    if with_tables:
        for folder in {"train", first, second}:
            write(tmp_path / folder / "metadata.csv", "file_name,label\nant/1.jpg,ant\n")
    with pytest.raises(UserError, match=f"the folders {first} and {second} all mean {split}; keep one of them"):
        load(tmp_path)


def test_a_table_may_call_a_split_by_any_of_its_names(tmp_path):
    rows = ["a.jpg,ant,Training", "b.jpg,ant,validation", "c.jpg,ant,EVAL", "d.jpg,ant,testing"]
    write(tmp_path / "labels.csv", "\n".join(["path,label,split", *rows]))
    assert counts(load(tmp_path)) == [1, 1, 2]


def test_folders_with_metadata_files_may_have_names_in_capitals(tmp_path):
    for folder in ("Train", "Testing"):
        write(tmp_path / folder / "metadata.csv", "file_name,label\n1.jpg,ant\n")
    assert counts(load(tmp_path)) == [1, 0, 1]


# --- tables beside folders


def test_a_table_beside_class_folders_that_are_read_is_named(tmp_path, caplog):
    write(make(tmp_path, "train/ant/1.jpg") / "labels.csv", "path,label\na.jpg,bee\n")
    assert list(load(tmp_path).classnames) == ["ant"]
    [message] = caplog.messages
    assert message.startswith(f"{tmp_path}: 1 CSV files are not read, since the folder train is; ")
    assert message.endswith(f"--root {tmp_path / 'labels.csv'}")


@pytest.mark.parametrize("folder", ["train", "Training/ant"])
def test_a_table_is_read_where_no_class_folders_lie_in_train(folder, tmp_path):
    make(tmp_path, f"{folder}/1.jpg", f"{folder}/2.jpg")
    write(tmp_path / "labels.csv", f"path,label,split\n{folder}/1.jpg,bee,train\n{folder}/2.jpg,bee,test\n")
    dataset = load(tmp_path)
    assert (list(dataset.classnames), counts(dataset)) == (["bee"], [1, 0, 1])


def test_a_table_of_something_else_does_not_hide_folders_of_another_name(tmp_path, caplog):
    write(make(tmp_path, "Training/ant/1.jpg") / "notes.csv", "author,year\nme,2020\n")
    assert counts(load(tmp_path)) == [1, 0, 0]
    assert "1 CSV files are not read, since the folder Training is" in caplog.messages[0]


# --- images too deep or too high


def test_folders_inside_class_folders_are_counted_and_not_read(tmp_path, caplog):
    make(tmp_path, "train/ant/1.jpg", "train/ant/more/2.jpg", "train/ant/old/3.jpg", "test/ant/x/4.jpg")
    assert counts(load(tmp_path)) == [1, 0, 0]
    expected = "3 folders inside class folders are not read, such as train/ant/more; move their images up"
    assert f"{tmp_path}: {expected}" in caplog.messages
    assert not any("no images and are left out" in message for message in caplog.messages)


def test_images_that_lie_only_deeper_down_are_in_the_error(tmp_path):
    deeper = "1 folders inside class folders are not read, such as train/ant/more; move their images up"
    with pytest.raises(UserError, match=f"has no training image; {deeper}"):
        load(make(tmp_path, "train/ant/more/1.jpg"))
    make(tmp_path, "train/bee/1.jpg", "test/ant/1.jpg")
    with pytest.raises(UserError, match=f"1 classes of test have no training image: ant; {deeper}"):
        load(tmp_path)


def test_images_in_no_class_folder_are_counted(tmp_path, caplog):
    make(tmp_path, "train/ant/1.jpg", "train/2.jpg", "test/3.JPG", "test/notes.txt")
    assert counts(load(tmp_path)) == [1, 0, 0]
    assert caplog.messages == [
        f"{tmp_path}: 2 images lie in no class folder, such as train/2.jpg; move them into one",
        f"{tmp_path}: 1 files are no images and are left out, such as test/notes.txt",
    ]


def test_images_instead_of_class_folders_are_in_the_error(tmp_path):
    with pytest.raises(
        UserError, match=r"has no training image; 2 images lie in no class folder, such as train/1\.jpg"
    ):
        load(make(tmp_path, "train/1.jpg", "train/2.jpg", "test/3.jpg"))


# --- no training folder


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (["ant/1.jpg", "bee/1.png"], r"holds folders of images \(ant, bee\): move them into {root}/train/$"),
        ([f"{name}/1.jpg" for name in "dabc"], r"holds folders of images \(a, b, c, \.\.\.\): move them into"),
        (["test/ant/1.jpg", "val/ant/1.jpg"], "holds test, val and no folder train; expected ROOT"),
        (
            ["train_images/1.jpg", "test_images/1.jpg"],
            "holds test_images, train_images; call folders of splits train, val and test; expected ROOT",
        ),
        (["1.jpg", "2.jpg"], r"2 images lie in no class folder, such as 1\.jpg; expected ROOT"),
        (["notes.txt"], "holds neither a folder train nor a CSV file; expected ROOT"),
    ],
)
def test_a_folder_of_another_layout_is_an_error_that_says_what_it_holds(files, words, tmp_path):
    with pytest.raises(UserError, match=words.format(root=tmp_path)):
        load(make(tmp_path, *files))


# --- names of classes


@pytest.mark.parametrize("names", [["0", "1", "2", "10"], ["0.0", "1.0"], ["-1", "+1"]])
def test_class_names_that_are_all_numbers_are_warned_of_once(names, tmp_path, caplog):
    load(make(tmp_path, *(f"train/{name}/1.jpg" for name in names)))
    [message] = caplog.messages
    assert "all class names are numbers" in message and message.endswith("give them names in words")


def test_one_name_in_words_and_the_digits_are_not_warned_of(tmp_path, caplog):
    load(make(tmp_path, "train/747/1.jpg", "train/A320/1.jpg"))
    load_dataset("Digits", "")
    assert caplog.messages == []


def test_a_class_name_is_the_same_in_both_of_its_unicode_forms(tmp_path):
    composed, decomposed = (unicodedata.normalize(form, "käse") for form in ("NFC", "NFD"))
    assert composed != decomposed
    make(tmp_path, f"train/{decomposed}/1.jpg", f"train/{composed}/2.jpg", f"test/{composed}/3.jpg", "val/bee/4.jpg")
    dataset = load(make(tmp_path, "train/bee/5.jpg"))
    assert list(dataset.classnames) == ["bee", composed]
    assert counts(dataset) == [3, 1, 1]
    dataset.check_files()  # paths stay as the files are called


# --- endings


@pytest.mark.parametrize("suffix", [".jfif", ".jpe", ".avif", ".jp2"])
def test_an_ending_is_known_where_pillow_opens_it(suffix, tmp_path):
    (tmp_path / "train" / "ant").mkdir(parents=True)
    path = tmp_path / "train" / "ant" / f"1{suffix}"
    try:
        Image.new("RGB", (16, 16)).save(path)
    except (ValueError, OSError):  # this Pillow was built without the format
        assert suffix not in IMAGE_SUFFIXES
        return
    dataset = load(tmp_path)
    assert dataset.open(dataset.train[0].path).size == (16, 16)


def test_a_pillow_that_does_not_know_a_format_does_not_open_it(monkeypatch):
    monkeypatch.delitem(images.features.modules, "avif", raising=False)
    monkeypatch.setitem(images.features.codecs, "jpg_2000", ("absent", "none"))
    assert not {"AVIF", "JPEG2000"} & set(images._suffixes_of_formats())


def test_the_page_names_every_ending_that_is_read():
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    assert [suffix for suffix in IMAGE_SUFFIXES if f"`{suffix}`" not in page] == []
