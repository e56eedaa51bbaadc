"""Own images in class folders, CSV files and Hugging Face's metadata.csv; and `datasets check`."""

import itertools
import json
import os
import re
import unicodedata
from dataclasses import replace
from pathlib import Path

import pytest
from dataset_files import counts, load, make, picture, refused, rows_of, write

from trainers.hegraph.__main__ import main
from trainers.hegraph.commands.datasets import check_dataset, check_own_images
from trainers.hegraph.datasets.images import IMAGE_FORMATS
from trainers.hegraph.datasets.loading import load_few_shot, load_unlabelled
from trainers.hegraph.datasets.registry import ENTRIES, Sizes, stored_datasets
from trainers.hegraph.utils.errors import UserError
from trainers.hegraph.utils.text import MAX_MESSAGE, one_line

# --- class folders


def test_split_folders_become_sorted_items(tmp_path, caplog):
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
    refused(make(tmp_path, "Training/ant/2.jpg"), "the folders Training and train both mean train")


@pytest.mark.parametrize(("names", "warned"), [
    (["1", "02", "9", "10", "B", "b"], False),  # numbers by value, then other names
    (["7", "-1", "1.5", "m²", "²", "①"], False),  # names that only look like numbers
    (["a {} b", unicodedata.normalize("NFC", "käse"), "red panda", "雲"], False),
    (["0", "1", "2", "10"], True), (["-1", "0.0"], True),
])  # fmt: skip
def test_class_names_are_normalised_and_sorted(tmp_path, caplog, names, warned):
    files = [f"train/{unicodedata.normalize(form, name)}/1.jpg" for form in ("NFD", "NFC") for name in names[::-1]]
    dataset = load(make(tmp_path, *files))  # a name is equal in both forms of Unicode
    assert list(dataset.classnames) == names
    dataset.check_files()
    assert ["all class names are numbers" in message for message in caplog.messages] == [True] * warned


# --- skipped files, and refusals


@pytest.mark.parametrize(("files", "message"), [
    (["train/ant/._1.JPG", "train/.cache/1.jpg", "val"], ""),
    (["train/ant/old/3.jpg", "test/ant/x.txt", "train/2.jpg"], "skipped 3 files and folders that are not train/"),
    (["train/ant/Thumbs.db"], "skipped 1 files and folders that are not train/<class>/IMAGE, such as "),
    (["holdout/ant/2.jpg"], "read the folders train, skipped holdout"),
    (["labels.csv"], "skipped 1 CSV files next to class folders; to read a CSV file: --root"),
])  # fmt: skip
def test_skipped_files_are_counted(tmp_path, caplog, files, message):
    assert counts(load(make(tmp_path, "train/ant/1.JPG", *files))) == [1, 0, 0]
    assert [line.startswith(f"{tmp_path}: {message}") for line in caplog.messages] == [True] * bool(message)


@pytest.mark.parametrize(("files", "root", "words"), [
    (["train/1.jpg"], "", "contains train, neither class folders nor one CSV"),
    (["a.csv", "b.csv"], "", "contains a.csv, b.csv, neither"),
    (["train/ant/readme.txt"], "", "has no training image; expected ROOT"),
    (["train/ant/1.jpg", "val/Ant/1.jpg", "val/wasp/1.jpg"], "", ": 2 classes of val or test have no .*: Ant, wasp$"),
    ([], "absent", "cannot list the folder .*/absent: No such file or directory"),
    ([], "pipe.csv", r"cannot read .*pipe\.csv: it is no regular file"),
    (["labels.txt"], "labels.txt", r"labels\.txt is one file; expected a folder with"),
    ([], "a\0b", "cannot list the folder .*: its name contains a NUL character"),
    ([], None, "ImageFolder needs --root, your folder or CSV file; expected ROOT"),
])  # fmt: skip
def test_unreadable_roots_are_refused(tmp_path, files, root, words):
    if root == "pipe.csv":
        os.mkfifo(tmp_path / root)
    refused("" if root is None else make(tmp_path, *files) / root, words)


# --- tables


def test_table_becomes_items_in_its_order(tmp_path):
    text = "path,label,split\nb.jpg,bee,train\nsub/a.jpg,ant,Training\nc.jpg,ant,dev\nd.jpg,bee,EVAL\n"
    root = write(make(tmp_path, "b.jpg", "sub/a.jpg", "c.jpg", "d.jpg", "._x.csv") / "My Labels.CSV", text).parent
    for given in (root, root / "My Labels.CSV"):
        dataset = load(given)
        assert rows_of(dataset) == {
            "train": [("b.jpg", 1, "bee"), ("sub/a.jpg", 0, "ant")], "val": [("c.jpg", 0, "ant")],
            "test": [("d.jpg", 1, "bee")],
        }  # fmt: skip
        assert dataset.root == root
        dataset.check_files()
        make(root, "other.csv")


def test_table_variants_are_read_alike(tmp_path):
    for text in (
        "\ufeffpath,label\r\na.jpg,ant\r\nb.jpg,bee\r\n", " Label , PATH ,notes\n ant , ./a.jpg ,x\n\nbee,b.jpg\n",
        'path,label,split\na.jpg,"ant",\n"b.jpg",bee,""\n',
    ):  # fmt: skip
        root = write(tmp_path / "labels.csv", text).parent
        assert rows_of(load(root))["train"] == [("a.jpg", 0, "ant"), ("b.jpg", 1, "bee")]
    make(tmp_path / "elsewhere", "a.jpg", "b.jpg")
    text = f'path,label\n{tmp_path}/elsewhere/a.jpg,"panda, red"\n../elsewhere/b.jpg,"a ""bee"""\nc.jpg,10\nd.jpg,9\n'
    dataset = load(write(make(tmp_path / "mine", "c.jpg", "d.jpg") / "labels.csv", text).parent)
    assert list(dataset.classnames) == ["9", "10", 'a "bee"', "panda, red"]
    dataset.check_files()
    for image, name in ("train/1.jpg", "bee"), ("train/ant/1.jpg", "ant"):  # class folders in train go first
        write(make(tmp_path / name, image) / "labels.csv", f"path,label\n{image},bee\n")
        assert load(tmp_path / name).classnames == [name]


COLUMNS = r"expected the columns path,label\[,split\] in the first line, each once, separated by commas, .* got "


@pytest.mark.parametrize(("text", "words"), [
    ("", f"{COLUMNS}nothing"), ("path|label\na.jpg|ant\n", rf"{COLUMNS}path\|label"),
    ("path,label\n", "has no training image"),
    ("path,label\na.jpg,ant\n,ant\n", "line 3: path must not be empty"),
    ("path,label\na.jpg,panda, red\n", "line 2: more values than columns"),
    ("path,label,split\na.jpg,ant,holdout\n", "line 2: expected train, val or test as split, got 'holdout'"),
    ('path,label\na.jpg,"ant\nb.jpg,bee\n', r"labels\.csv is damaged or not a UTF-8 table"),
    ("path,label,split\na.jpg,ant,train\n{root}/x/../a.jpg,ant,test\n", r"a\.jpg is listed more than once"),
])  # fmt: skip
def test_invalid_tables_are_refused(tmp_path, text, words):
    write(tmp_path / "labels.csv", text.replace("{root}", str(tmp_path)))
    assert str(tmp_path) in refused(tmp_path, words)


@pytest.mark.parametrize("delimiter", [";", "\t", "; "])
def test_delimiter_is_detected(tmp_path, delimiter):
    lines = ["path,label,split", 'cat,1.jpg,"a ""cat""",train', "b.jpg,dog,test", "c.jpg,dog,train"]
    text = "\r\n".join(delimiter.join(line.rsplit(",", 2)) for line in lines)
    write(tmp_path / "labels.csv", f"\ufeff{text}\r\n")
    assert rows_of(load(tmp_path)) == {
        "train": [("cat,1.jpg", 0, 'a "cat"'), ("c.jpg", 1, "dog")], "val": [], "test": [("b.jpg", 1, "dog")],
    }  # fmt: skip


def test_windows_paths_are_read(tmp_path):
    make(tmp_path, "cat/1.jpg", "a\\b.jpg")
    write(tmp_path / "labels.csv", "path,label\ncat\\1.jpg,cat\na\\b.jpg,dog\n.\\cat\\..\\cat\\2.jpg,dog\n")
    assert [item.path for item in load(tmp_path).train] == ["cat/1.jpg", "a\\b.jpg", "cat/2.jpg"]
    write(tmp_path / "train" / "metadata.csv", "file_name;label\nsub\\3.jpg;cat\n")
    assert [item.path for item in load(tmp_path).train] == ["train/sub/3.jpg"]


@pytest.mark.parametrize(("text", "paths"), [
    ("path\na.jpg\nsub/b.jpg\n", ["a.jpg", "sub/b.jpg"]),
    ("Label;PATH\ncat;a.jpg\n;sub\\b.jpg\n", ["a.jpg", "sub/b.jpg"]),
    ("file_name\ta\na.jpg\n", ["a.jpg"]),
])  # fmt: skip
def test_unlabelled_table_is_read(tmp_path, text, paths):
    make(tmp_path, "a.jpg", "sub/b.jpg")
    assert [item.path for item in load_unlabelled(write(tmp_path / "u.csv", text)).test] == paths


def test_hidden_images_are_not_unlabelled_images(tmp_path):
    make(tmp_path, "a.jpg", "b/._c.jpg", ".hegraph/removed/d.jpg", "b/c.JPG", "b/notes.txt", "e.jpg/f.txt")
    (tmp_path / "b" / "loop").symlink_to(tmp_path)
    assert [item.path for item in load_unlabelled(tmp_path).test] == ["a.jpg", "b/c.JPG"]
    make(tmp_path, "b/caf\udce9.jpg")
    with pytest.raises(UserError, match=r"/b contains 'caf\\udce9.jpg', a name that is not UTF-8; rename it"):
        load_unlabelled(tmp_path)


@pytest.mark.parametrize(("text", "message"), [
    ("label,path\ncat\n", r"u\.csv, line 2: path must not be empty"),
    ("path\na.jpg\n ,\n", r"u\.csv, line 3: "),
    ("image,label\na.jpg,cat\n", r"u\.csv: expected the columns path in the first line, .* got image,label"),
    ("", "got nothing"), ("path\n", "contains no image"),
])  # fmt: skip
def test_unlabelled_table_without_paths_is_refused(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        load_unlabelled(write(tmp_path / "u.csv", text))


# --- Hugging Face's metadata.csv


def test_metadata_files_of_splits_are_read(tmp_path, caplog):
    make(tmp_path, "Train/1.jpg", "Train/more/2.jpg", "validation/3.jpg", "test/4.jpg")
    write(tmp_path / "Train" / "metadata.csv", "file_name,label,notes\n1.jpg,bee,x\nmore/2.jpg,ant,y\n")
    write(tmp_path / "validation" / "metadata.csv", "file_name,label\n3.jpg,bee\n")
    assert rows_of(load(tmp_path)) == {
        "train": [("Train/1.jpg", 1, "bee"), ("Train/more/2.jpg", 0, "ant")], "val": [("validation/3.jpg", 1, "bee")],
        "test": [],
    }  # fmt: skip
    [warning] = caplog.messages
    assert warning.startswith(f"{tmp_path}: read the folders Train, validation, skipped test")
    write(tmp_path / "test" / "metadata.csv", "label,file_name\nant,../Train/1.jpg\n")
    refused(tmp_path, r"Train/1\.jpg is listed more than once")


def test_column_split_precedes_the_folder_of_metadata(tmp_path):
    make(tmp_path, "train/1.jpg", "train/2.jpg", "train/3.jpg")
    rows = "1.jpg,bee,\n2.jpg,ant,\n3.jpg,bee,test\n"
    write(tmp_path / "train" / "metadata.csv", f"file_name,label,split\n{rows}")
    assert rows_of(load(tmp_path))["test"] == [("train/3.jpg", 1, "bee")]


@pytest.mark.parametrize(("rows", "expected"), [
    ("./train/1.jpg,bee,\n./test/2.jpg,bee,", ["train/1.jpg", "", "test/2.jpg"]),
    ("train/1.jpg,bee,test\nDEV//4.jpg,bee,\n3.jpg,bee,train", ["3.jpg", "DEV/4.jpg", "train/1.jpg"]),
    ("1.jpg,bee,\nmore/2.jpg,ant,", ["1.jpg more/2.jpg", "", ""]),  # without any split: all are train
])  # fmt: skip
def test_metadata_split_is_column_or_first_folder(tmp_path, rows, expected):
    write(tmp_path / "metadata.csv", f"File_Name,label,split\n{rows}\n")
    assert [" ".join(item.path for item in items) for items in load(tmp_path).splits.values()] == expected


def test_metadata_with_an_unclear_split_is_refused(tmp_path):
    write(tmp_path / "metadata.csv", "file_name,label\ntrain/1.jpg,bee\nholdout/3.jpg,bee\n")
    refused(tmp_path, r"metadata\.csv: holdout/3\.jpg has no split, .* move it to a folder train")


@pytest.mark.parametrize(("files", "root", "message"), [
    (["1.jpg", "2.png", "notes.txt"], "", "contains 2 images without a class; put the images of each class into a"),
    (["a/b/ant/1.jpg", "a/b/bee/2.jpg", "x/notes.txt"], "", "has no class folders, but {root}/a/b has; name this"),
    (["a/train/ant/1.jpg", "a/train/bee/2.jpg"], "", "has no class folders, but {root}/a has; name this"),
    (["1.jpg"], "1.jpg", "1.jpg is one file; expected a folder with a folder of images for each class, or a CSV file"),
])  # fmt: skip
def test_photos_in_another_place_are_explained(tmp_path, files, root, message):
    with pytest.raises(UserError) as caught:
        load(make(tmp_path, *files) / root)
    assert message.format(root=tmp_path) in str(caught.value) and len(one_line(str(caught.value))) < MAX_MESSAGE


def test_folder_behind_a_link_is_listed_once(tmp_path):
    make(tmp_path, "train/ant/1.jpg", "train/bee/2.jpg", "test/ant/3.jpg", "test/bee/4.jpg")
    write(tmp_path / "labels.csv", "path,label,split\ntrain/ant/1.jpg,ant,train\nlink/../train/ant/1.jpg,ant,test\n")
    (tmp_path / "link").symlink_to("test")
    refused(tmp_path / "labels.csv", r"1\.jpg is listed more than once")
    (tmp_path / "test" / "cow").symlink_to(tmp_path / "train" / "bee")
    refused(tmp_path, r"train/bee/2\.jpg is listed more than once; expected one row for each image")


# --- runs


def test_run_refuses_copies_of_test_images(tmp_path, cli_error):
    own, greys = tmp_path / "own", iter(range(0, 200, 10))
    for name, split in itertools.product(("ant", "käse"), ("train", "val", "test")):
        write(own / split / name / "0.png", picture(next(greys)))
    copy = write(own / "val" / "ant" / "0.png", (own / "test" / "käse" / "0.png").read_bytes())
    flags = ["--dataset-config-file", "folder", "--root", own, "--config-file", "mini", "--trainer", "ZeroShot"]
    error = cli_error(*flags, "--shots", 1, "--output-dir", tmp_path / "out")
    assert f"1 of 2 val images are test images as well, such as {copy}" in error


# --- `datasets check`: data sets in the data root


NAMES = ("ant", "bee", "cow")
REMEDY = "to download it: python -m trainers.hegraph datasets download {name} --root {root}"
COUNTED = "6 train, 3 val and 6 test images of 3 classes"
PUBLISHED = "published sizes: 50500 train, 20200 val and 30300 test images of 101 classes"
SPLIT = "split_zhou_Food101.json"


def write_split_file(root: Path) -> None:
    """Write Food101's split file, with two training, one val and two test images per class."""
    numbers = {"train": (0, 1), "val": (2,), "test": (3, 4)}
    rows = {s: [[f"{name}/{n}.jpg", y, name] for y, name in enumerate(NAMES) for n in numbers[s]] for s in numbers}
    write(root / "food-101" / SPLIT, json.dumps(rows))


@pytest.fixture
def food(tmp_path) -> Path:
    """A root with Food101 of three classes with five images each, without a split file."""
    numbered = (f"food-101/images/{name}/{number}.jpg" for name in NAMES for number in range(5))
    return make(tmp_path / "my data", *numbered)


def test_check_explains_an_absent_data_set(tmp_path):
    ready, (missing, download, by_hand) = check_dataset("ImageNet", str(tmp_path))
    assert (ready, missing) == (False, f"missing images: expected in {tmp_path}/imagenet/images")
    assert download == REMEDY.format(name="ImageNet", root=tmp_path)
    assert by_hand.startswith("by hand: ImageNet's images need a licence: register at https://image-net.org")


def test_check_compares_sizes_and_split_with_published(food, monkeypatch):
    remedy = REMEDY.format(name="Food101", root=f"'{food}'")

    def check() -> tuple[bool, list[str]]:
        return check_dataset("Food101", str(food))

    lacking = f"{food}/food-101/{SPLIT} is missing: runs generate a random split, not the split of published results"
    assert check() == (True, [COUNTED, PUBLISHED, lacking, remedy])
    assert os.listdir(food / "food-101") == ["images"]  # checking writes no split
    load_few_shot("Food101", str(food), 1, 3)
    generated = f"{food}/food-101/{SPLIT} is a random split with seed 3, not the split of published results"
    assert check() == (True, [COUNTED, PUBLISHED, generated, remedy])
    write_split_file(food)  # the published one comes
    assert check() == (True, [COUNTED, PUBLISHED])
    for name in ("cow", "bee"):
        (food / "food-101" / "images" / name / "4.jpg").unlink()
    assert check() == (False, [f"missing images: 2 of 15, such as {food}/food-101/images/bee/4.jpg", remedy])
    write(food / "food-101" / SPLIT, '{"train": [], "val": [], "test": []}')
    assert check() == (False, ["missing or damaged: there is no train image", remedy])
    (food / "food-101" / SPLIT).unlink()
    make(food / "food-101" / "images", "cow/4.jpg", "bee/4.jpg")
    monkeypatch.setitem(ENTRIES, "Food101", replace(ENTRIES["Food101"], sources=(), sizes=Sizes(6, 3, 6, 3)))
    assert check() == (True, [COUNTED])


def test_check_covers_all_data_sets_by_default(food, capsys):
    write_split_file(food)
    assert main(["datasets", "check", "food101", "--root", str(food)]) == 0
    assert capsys.readouterr().out.splitlines()[0] == f"{'Food101':20} ready      {COUNTED}"
    assert main(["datasets", "check", "--root", str(food)]) == 1
    lines = capsys.readouterr().out.splitlines()
    states = dict(re.fullmatch(r"(\S+) +(ready|not ready) +\S.*", line).groups() for line in lines if line[0] != " ")
    assert list(states.items()) == [(name, "ready" if name == "Food101" else "not ready") for name in stored_datasets()]


@pytest.mark.parametrize(("files", "message"), [
    (["train/ant/1.png", "train/bee/1.png"], "2 train, 0 val and 0 test images of 2 classes"),
    ([f"{name}/{n}.png" for name in ("ant", "bee") for n in range(4)], "4 train, 2 val and 2 test images of"),
    (["train/ant/1.png"], "at least two classes"), (["ant/1.png"], "has images in only one folder, ant"),
    (["a.csv"], "is damaged or not a UTF-8 table"),
    ([], "contains nothing, neither class folders nor"),
    (["a.png", "b.png"], "contains 2 images without a class; put the images"),
    (["dtd/images/ant/1.png", "ant/1.png"], None),  # a folder of data sets
])  # fmt: skip
def test_check_recognises_a_folder_of_own_images(tmp_path, capsys, files, message):
    for number, file in enumerate(files):
        write(tmp_path / file, picture(number))
    code = main(["datasets", "check", "--root", str(tmp_path)])
    text = capsys.readouterr().out
    lines = [line for line in text.splitlines() if line[0] != " "]
    advice = f"name it, as in: python -m trainers.hegraph datasets check caltech101 --root {tmp_path}\n"
    assert text.endswith(advice) == (
        message is not None and ("neither class" in message or "without a class" in message)
    )
    if message is None:
        assert (code, len(lines)) == (1, len(stored_datasets()))
    else:
        assert lines[0].startswith("ImageFolder ") and message in lines[0]
        assert (code == 0) == ("images of" in message)


@pytest.mark.parametrize(("words", "problem"), [
    (["folder", "--root", "/nowhere"], "cannot list the folder /nowhere: No such file"),
    (["--root", "::".join(f"/nowhere/{n}.tar" for n in range(500))], "cannot read /nowhere/0.tar: No such file"),
], ids=["absent folder", "longer than a path"])  # fmt: skip
def test_check_explains_absent_own_images(capsys, words, problem):
    assert main(["datasets", "check", *words]) == 1
    assert re.match(f"ImageFolder +not ready +{problem}", capsys.readouterr().out)


@pytest.mark.parametrize(("words", "message"), [
    ("check dtd flowers17", "'flowers17'; did you mean 'OxfordFlowers'?"),
    ("check folder dtd", "your own images"), ("download folder", "your own images"),
    ("check digits", "Digits is embedded in this package and needs no files"),
])  # fmt: skip
def test_invalid_arguments_are_refused_first(cli_error, words, message):
    assert message in cli_error("datasets", *words.split(), "--root", "absent")


# --- own images

# split -> class -> number of images
SIZES = {"train": {"ant": 9, "bee": 3, "cow": 4}, "val": {"bee": 1}, "test": {"ant": 2, "bee": 2, "cow": 2}}
COUNTS = [
    "16 train, 1 val and 6 test images of 3 classes",
    "classes: ant, bee, cow",
    "train images per class: 3 to 9",
    "val images per class: 0 to 1",
    "test images per class: 2 to 2",
    "--shots 4: 1 of 3 classes have fewer training images, all of which are used: bee",
    "--shots 8: 2 of 3 classes have fewer training images, all of which are used: bee, cow",
    "--shots 16: 3 of 3 classes have fewer training images, all of which are used: ant, bee, cow",
]


def test_check_lists_unreadable_images_and_copies(tmp_path, capsys):
    own = tmp_path / "own images"
    paths = [f"{s}/{name}/{n}.png" for s, of in SIZES.items() for name, count in of.items() for n in range(count)]
    for number, path in enumerate(paths):  # distinct images
        write(own / path, picture(number))
    train = f"train: python -m trainers.hegraph train '{own}'"
    assert check_own_images(str(own)) == (True, [*COUNTS, train])
    write(own / "train/ant/0.png", (own / "train/ant/1.png").read_bytes())  # in one split, nothing is tested on it
    write(own / "train/bee/0.png", (own / "test/bee/1.png").read_bytes())
    write(own / "train/bee/1.png", (own / "test/cow/0.png").read_bytes())  # of any class
    write(own / "train/bee/2.png", (own / "train/bee/2.png").read_bytes()[:-20])
    write(own / "train/cow/0.png", b"")  # cannot be read, and is no copy of the next but one
    write(own / "val/bee/0.png", (own / "test/bee/1.png").read_bytes())
    write(own / "test/ant/0.png", b"")
    write(own / "test/cow/1.png", b"<html>404</html>")
    os.mkfifo(own / "train" / "cow" / "pipe.png")  # opening it would wait for ever
    write(own / "train" / "cow" / "a\nb  c.png", b"")
    assert main(["datasets", "check", "folder", "--root", str(own)]) == 1
    lines = [line[32:] for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == "18 train, 1 val and 6 test images of 3 classes"
    first, second, *rest = lines[len(COUNTS) :]
    assert first == "6 of 25 images cannot be read:"
    assert re.fullmatch(r"  train/bee/2\.png: .*truncated.*", second)
    assert rest == [
        "  train/cow/0.png: is empty (0 bytes)",
        r"  train/cow/a\nb  c.png: is empty (0 bytes)",
        "  train/cow/pipe.png: is not a regular file",
        "  test/ant/0.png: is empty (0 bytes)",
        f"  test/cow/1.png: is not an image in a supported format ({', '.join(IMAGE_FORMATS)})",
        "2 of 18 train images are test images as well; keep one copy of each, in train or in test:",
        f"  {own}/train/bee/0.png",
        f"  {own}/train/bee/1.png",
        "1 of 1 val images are test images as well; keep one copy of each, in val or in test:",
        f"  {own}/val/bee/0.png",
        f"after correcting this, check again: python -m trainers.hegraph datasets check folder --root '{own}'",
    ]
