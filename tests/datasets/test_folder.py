"""Own images in class folders, CSV files and Hugging Face's metadata.csv; other names of splits; what is left out."""

from __future__ import annotations

import json
import logging
import os
import unicodedata
from collections import Counter
from pathlib import Path

import pytest
from own_images import counts, load, make, picture, refused, rows_of, write

from trainers.hegraph.__main__ import main
from trainers.hegraph.datasets import load_dataset, load_few_shot
from trainers.hegraph.datasets import own as module
from trainers.hegraph.datasets.own import HEAD, files_among
from trainers.hegraph.utils.errors import UserError


@pytest.fixture(autouse=True)
def warnings_are_kept(caplog) -> None:
    caplog.set_level(logging.WARNING)


def table(root: Path, text: str | bytes, *files: str, name: str = "labels.csv") -> Path:
    write(root / name, text)
    return make(root, *files)


# --- class folders


def test_folders_of_the_three_splits_become_items_in_sorted_order_under_any_name_of_a_split(tmp_path, caplog):
    files = "train/bee/2.jpg train/bee/1.jpg train/ant/1.jpg valid/ant/3.jpg Evaluation/bee/4.jpg Evaluation/ant/5.jpg"
    dataset = load(make(tmp_path, *files.split()))
    assert rows_of(dataset) == {
        "train": [("train/ant/1.jpg", 0, "ant"), ("train/bee/1.jpg", 1, "bee"), ("train/bee/2.jpg", 1, "bee")],
        "val": [("valid/ant/3.jpg", 0, "ant")],
        "test": [("Evaluation/ant/5.jpg", 0, "ant"), ("Evaluation/bee/4.jpg", 1, "bee")],
    }
    assert list(dataset.classnames) == ["ant", "bee"]
    dataset.check_files()
    assert caplog.messages == []


@pytest.mark.parametrize(("first", "second", "tables"), [("Training", "train", False), ("eval", "test", True)])
def test_two_folders_of_one_split_are_an_error(first, second, tables, tmp_path):
    make(tmp_path, "train/ant/1.jpg", f"{first}/ant/1.jpg", f"{second}/ant/2.jpg")
    for folder in {"train", first, second} if tables else ():
        write(tmp_path / folder / "metadata.csv", "file_name,label\nant/1.jpg,ant\n")
    refused(tmp_path, f"the folders {first} and {second} both mean t")


def test_classes_of_unequal_size_are_taken_whole_where_they_have_fewer_images_than_shots(tmp_path):
    sizes = {"ant": 1, "bee": 3, "cow": 9}
    for split in ("train", "val"):
        make(tmp_path, *(f"{split}/{name}/{number}.jpg" for name, size in sizes.items() for number in range(size)))
    task, again, other = (load_few_shot("ImageFolder", str(tmp_path), 4, seed) for seed in (1, 1, 2))
    for items in (task.train, task.val):
        assert Counter(item.classname for item in items) == {"ant": 1, "bee": 3, "cow": 4}
    assert rows_of(again) == rows_of(task) != rows_of(other)


@pytest.mark.parametrize(
    "names",
    [
        ["1", "02", "9", "10", "B", "b"],  # numbers by value, before all others
        ["7", "-1", "1.5", "m²", "²", "①"],  # what looks like a number and is none is a name
        ["a {} b", "käse", "red panda", "雲"],
    ],
)
def test_class_names_may_be_anything_and_are_sorted(names, tmp_path, caplog):
    dataset = load(make(tmp_path, *(f"train/{name}/a {number}.jpg" for name in names[::-1] for number in range(2))))
    assert list(dataset.classnames) == names
    dataset.check_files()
    assert caplog.messages == []


def test_a_class_name_is_the_same_in_both_of_its_unicode_forms(tmp_path):
    composed, decomposed = (unicodedata.normalize(form, "käse") for form in ("NFC", "NFD"))
    make(tmp_path, f"train/{decomposed}/1.jpg", f"train/{composed}/2.jpg", f"test/{composed}/3.jpg", "val/bee/4.jpg")
    dataset = load(make(tmp_path, "train/bee/5.jpg"))
    assert list(dataset.classnames) == ["bee", composed]
    assert counts(dataset) == [3, 1, 1]
    dataset.check_files()  # paths stay as the files are called


@pytest.mark.parametrize("names", [["0", "1", "2", "10"], ["0.0", "1.0"], ["-1", "+1"]])
def test_class_names_that_are_all_numbers_are_warned_of_once(names, tmp_path, caplog):
    load(make(tmp_path, *(f"train/{name}/1.jpg" for name in names)))
    [message] = caplog.messages
    assert "all class names are numbers" in message


# --- what is left out, and what is an error


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (["train/ant/._1.JPG", "train/.cache/1.jpg"], []),
        (["train/ant/Thumbs.db", "train/notes.txt"], ["2 files and folders hold no image"]),
        (["holdout/ant/2.jpg"], ["the folders holdout are not read"]),
        (["train/ant/old/3.jpg", "test/ant/x/4.jpg", "train/2.jpg"], ["3 files and folders hold no image"]),
        (["labels.csv"], ["1 CSV files are not read, since the folder train is; to use one, give it: --root "]),
    ],
)
def test_what_is_not_read_is_counted_and_named(files, said, tmp_path, caplog):
    assert counts(load(make(tmp_path, "train/ant/1.JPG", *files))) == [1, 0, 0]
    assert len(caplog.messages) == len(said)
    for message, expected in zip(caplog.messages, said):
        assert message.startswith(f"{tmp_path}: {expected}")


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (["train/readme.txt"], r"holds train, and neither images in a folder train nor one CSV file; expected ROOT"),
        (["train/1.jpg", "test/2.jpg"], "has no training image; expected ROOT"),
        (["train/ant/1.jpg", "val/Ant/1.jpg", "val/wasp/1.jpg"], "2 classes of val have no training image: Ant, wasp$"),
        (["d/1.jpg", "a/1.jpg", "b/1.jpg", "c/1.jpg"], r"holds a, b, c, \.\.\., and neither images"),
        (["test/ant/1.jpg", "val/ant/1.jpg"], "holds test, val, and neither images"),
        ([], "holds nothing, and neither images"),
        (["a.csv", "b.csv"], "holds a.csv, b.csv, and neither"),
    ],
)  # fmt: skip
def test_a_folder_of_another_layout_is_an_error_that_says_what_it_holds(files, words, tmp_path):
    assert refused(make(tmp_path, *files), words).startswith(str(tmp_path))


def test_a_root_that_cannot_be_read_is_an_error(tmp_path, monkeypatch):
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "pipe.csv")
    for root, words in (
        (tmp_path / "absent", "cannot read .*/absent: No such file or directory; expected ROOT"),
        (tmp_path / "loop", "cannot read .*/loop: Too many levels of symbolic links"),
        (tmp_path / "pipe.csv", r"cannot read .*pipe\.csv: it is no regular file"),
        (write(tmp_path / "labels.txt", "path,label\na.jpg,ant\n"), r"labels\.txt is no CSV file; expected"),
        ("a\0b", "cannot read .*: embedded null byte"),
        ("", "ImageFolder needs --root, your folder or CSV file; expected ROOT"),
    ):
        with pytest.raises(UserError, match=words):
            load(root)

    def refuse(path: object) -> os.stat_result:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os.path, "exists", lambda path: False)
    monkeypatch.setattr(os, "stat", refuse)  # root may read everything
    refused("/closed", "cannot read /closed: Permission denied")
    with pytest.raises(UserError, match="cannot read /closed/dtd: Permission denied"):
        load_dataset("DescribableTextures", "/closed")


def test_a_root_may_be_relative_or_begin_with_a_tilde(tmp_path, monkeypatch):
    make(tmp_path, "mine/train/ant/1.jpg")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for root in ("mine", "~/mine"):
        dataset = load(root)
        dataset.check_files()
        assert dataset.root == tmp_path / "mine"


# --- tables


def test_a_table_becomes_items_in_its_order(tmp_path):
    text = "path,label,split\nb.jpg,bee,train\nsub/a.jpg,ant,Training\nc.jpg,ant,dev\nd.jpg,bee,EVAL\n"
    dataset = load(table(tmp_path, text, "b.jpg", "sub/a.jpg", "c.jpg", "d.jpg"))
    assert rows_of(dataset) == {
        "train": [("b.jpg", 1, "bee"), ("sub/a.jpg", 0, "ant")],
        "val": [("c.jpg", 0, "ant")],
        "test": [("d.jpg", 1, "bee")],
    }
    dataset.check_files()


@pytest.mark.parametrize(
    ("name", "beside", "root"),
    [("LABELS.CSV", "x.txt", ""), ("labels.csv", "._labels.csv", ""), ("My Labels.CSV", "other.csv", "My Labels.CSV")],
)
def test_a_table_is_found_as_the_only_one_or_by_its_name(name, beside, root, tmp_path):
    table(tmp_path, "path,label\na.jpg,ant\n", "a.jpg", beside, name=name)
    dataset = load(tmp_path / root)
    assert (len(dataset.train), dataset.root) == (1, tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "path,label\r\na.jpg,ant\r\nb.jpg,bee",
        "\ufeffpath,label\na.jpg,ant\nb.jpg,bee\n",
        "Path, LABEL , Split\n a.jpg , ant , train \nb.jpg,bee,\n",
        "label,note,path\nant,,a.jpg\nbee,blurred,b.jpg\n",
        '"path","label"\n"a.jpg","ant"\n\n"b.jpg","bee"\n\n',
        "path,label,split\na.jpg,ant\n./b.jpg,bee,Train\n",
        "file_name,path,label\n1,a.jpg,ant\n2,b.jpg,bee\n",
    ],
    ids=["Windows", "byte order mark", "spaces, capitals", "more columns", "quotes", "no split", "both names"],
)
def test_a_table_is_read_however_a_program_left_it(text, tmp_path):
    assert rows_of(load(table(tmp_path, text)))["train"] == [("a.jpg", 0, "ant"), ("b.jpg", 1, "bee")]


def test_labels_may_hold_commas_and_quotes_and_be_numbers_and_an_image_lie_anywhere(tmp_path):
    elsewhere = make(tmp_path / "elsewhere", "a.jpg", "b.jpg")
    text = f'path,label\n{elsewhere}/a.jpg,"panda, red"\n../elsewhere/b.jpg,"a ""bee"""\nc.jpg,10\nd.jpg,9\n'
    dataset = load(table(tmp_path / "mine", text, "c.jpg", "d.jpg"))
    assert list(dataset.classnames) == ["9", "10", 'a "bee"', "panda, red"]
    dataset.check_files()


@pytest.mark.parametrize(
    ("image", "text", "classes"),
    [
        ("train/1.jpg", "path,label\ntrain/1.jpg,bee\n", ["bee"]),
        ("Training/ant/1.jpg", "file_name,label\nTraining/ant/1.jpg,bee\n", ["bee"]),
        ("Training/ant/1.jpg", "author,year\nme,2020\n", ["ant"]),
        ("train/ant/1.jpg", "path,label\ntrain/ant/1.jpg,bee\n", ["ant"]),
    ],
)
def test_a_table_of_labels_is_read_where_no_class_folders_lie_in_train(image, text, classes, tmp_path, caplog):
    dataset = load(write(make(tmp_path, image) / "labels.csv", text).parent)
    assert list(dataset.classnames) == classes
    assert bool(caplog.messages) == (classes == ["ant"])  # that it is not read


COLUMNS = r"must have the columns path,label\[,split\], with commas between them, in its first line; got "


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", f"{COLUMNS}nothing"),
        ("path;label\na.jpg;ant\n", f"{COLUMNS}path;label"),
        ("path,label,Label\na.jpg,ant,bee\n", "has the column 'label' twice"),
        ("path,label\n", "has no training image"),
        ("path,label\na.jpg,ant\n,ant\n", "line 3: path and label must not be empty"),
        ("path,label\na.jpg,  \n", "line 2: path and label must not be empty"),
        ("path,label\na.jpg,panda, red\n", "line 2: more values than columns"),
        ("path,label,split\na.jpg,ant,holdout\n", "line 2: split must be train, val or test, got 'holdout'"),
        ('path,label\na.jpg,"ant\nb.jpg,bee\n', r"labels\.csv is damaged or not a table in UTF-8"),
        ("path,label,split\na.jpg,ant,train\n{root}/x/../a.jpg,ant,test\n", r"a\.jpg is listed more than once"),
        ("path,label\na.jpg,café\n".encode("latin-1"), r"labels\.csv is damaged or not a table in UTF-8"),
        (b"path,label\na.jpg," + b"x" * 200_000 + b"\n", r"labels\.csv is damaged .*field larger"),
    ],
)  # fmt: skip
def test_a_table_that_cannot_be_right_is_an_error_that_says_where(text, words, tmp_path):
    table(tmp_path, text.replace("{root}", str(tmp_path)) if isinstance(text, str) else text)
    assert str(tmp_path) in refused(tmp_path, words)


# --- Hugging Face's metadata.csv


def test_a_metadata_file_in_each_split_names_its_images(tmp_path, caplog):
    make(tmp_path, "Train/1.jpg", "Train/more/2.jpg", "validation/3.jpg", "test/4.jpg")
    write(tmp_path / "Train" / "metadata.csv", "file_name,label,notes\n1.jpg,bee,x\nmore/2.jpg,ant,y\n")
    write(tmp_path / "validation" / "metadata.csv", "file_name,label\n3.jpg,bee\n")
    assert rows_of(load(tmp_path)) == {
        "train": [("Train/1.jpg", 1, "bee"), ("Train/more/2.jpg", 0, "ant")],
        "val": [("validation/3.jpg", 1, "bee")],
        "test": [],
    }
    [said] = caplog.messages
    assert said.startswith(f"{tmp_path}: the folders test are not read")
    write(tmp_path / "test" / "metadata.csv", "label,file_name\nant,4.jpg\n")
    dataset = load(tmp_path)
    assert rows_of(dataset)["test"] == [("test/4.jpg", 0, "ant")]
    dataset.check_files()
    write(tmp_path / "test" / "metadata.csv", "label,file_name\nant,../Train/1.jpg\n")
    refused(tmp_path, r"Train/1\.jpg is listed more than once")
    write(tmp_path / "test" / "metadata.csv", "file_name,text\n1.jpg,a bee\n")
    refused(tmp_path, rf"test/metadata\.csv {COLUMNS}file_name,text")


@pytest.mark.parametrize("test", ["./test/2.jpg", "train/../Test/2.jpg", "{root}/test/2.jpg", "EVAL//2.jpg"])
def test_the_folder_of_a_file_name_is_its_first_one_below_the_table_in_any_case_and_spelling(test, tmp_path):
    text = f"file_name,label\n./train/1.jpg,bee\n{test.format(root=tmp_path)},bee\n"
    dataset = load(write(tmp_path / "metadata.csv", text).parent)
    assert [item.path for item in dataset.train] == ["train/1.jpg"]
    assert len(dataset.test) == 1


def test_a_split_of_a_column_goes_before_the_folder(tmp_path):
    write(tmp_path / "metadata.csv", "file_name,label,split\ntrain/1.jpg,bee,test\n3.jpg,bee,train\ntest/4.jpg,bee,\n")
    paths = [[item.path for item in items] for items in load(tmp_path).splits.values()]
    assert paths == [["3.jpg"], [], ["train/1.jpg", "test/4.jpg"]]
    write(tmp_path / "metadata.csv", "file_name,label\n1.jpg,bee\nmore/2.jpg,ant\n")  # none has a split: all are train
    assert [item.path for item in load(tmp_path).train] == ["1.jpg", "more/2.jpg"]


@pytest.mark.parametrize("image", ["holdout/3.jpg", "../test/3.jpg", "test.jpg"])
def test_a_file_name_without_a_folder_of_a_split_among_others_is_named(image, tmp_path):
    write(tmp_path / "metadata.csv", f"file_name,label\ntrain/1.jpg,bee\n{image},bee\n")
    refused(tmp_path, rf"metadata\.csv: {image} has no split, .* move it to a folder train")


# --- the whole way


@pytest.fixture
def own(tmp_path) -> Path:
    """Two classes of two training, one val and one test image, all of them different."""
    greys = iter(range(0, 200, 10))
    for name in ("ant", "käse"):
        for image in ("train/{}/0.png", "train/{}/1.png", "val/{}/0.png", "test/{}/0.png"):
            write(tmp_path / "own" / image.format(name), picture(next(greys)))
    return tmp_path / "own"


def start(own: Path, tmp_path: Path) -> int:
    flags = ["--dataset-config-file", "folder", "--root", str(own), "--config-file", "mini", "--trainer", "ZeroShot"]
    features = ["TRAINER.HEGRAPHADAPTER.FEATURES.DIR", str(tmp_path / "features"), "DATALOADER.NUM_WORKERS", "0"]
    return main([*flags, "--shots", "1", "--output-dir", str(tmp_path / "out"), *features])


def test_a_folder_of_images_is_run(own, tmp_path):
    assert start(own, tmp_path) == 0
    record = json.loads((tmp_path / "out" / "result.json").read_text())
    assert (record["dataset"], record["num_train"], record["num_test"]) == ("ImageFolder", 2, 2)
    assert {row[2] for row in json.loads((tmp_path / "out" / "split.json").read_text())["train"]} == {"ant", "käse"}


@pytest.mark.parametrize("split", ["train", "val"])
def test_copies_of_test_images_are_refused(own, tmp_path, capsys, split, monkeypatch):
    for image in (own / split / "ant").iterdir():
        image.write_bytes((own / "test" / "käse" / "0.png").read_bytes())  # whatever its class
    assert start(own, tmp_path) == 2
    assert f"1 of 2 {split} images are test images as well, such as {own}/{split}/ant/" in capsys.readouterr().err

    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(module, "_size", refuse)  # root may read everything
    with pytest.raises(UserError, match=f"cannot read the image {own}/.*Permission denied; list all: python -m"):
        module.refuse_copies(load(own))


def test_files_are_alike_in_every_byte_or_not_at_all(tmp_path):
    contents = {"a": b"x" * HEAD + b"a", "b": b"x" * HEAD + b"b", "c": b"x" * HEAD, "d": b"y" * HEAD + b"a", "e": b""}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "twin").write_bytes(contents["a"])
    others = [tmp_path / name for name in "bcd"]
    assert files_among([tmp_path / "a", tmp_path / "e"], others) == []
    assert files_among([tmp_path / "a", tmp_path / "e"], [*others, tmp_path / "twin"]) == [tmp_path / "a"]
