"""Own images in tar shards, Parquet files and Hugging Face data sets."""

import json
import os
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
from dataset_files import counts, load, picture, refused, rows_of, serve, status, tar_with, write

from trainers.hegraph.datasets import packed
from trainers.hegraph.utils.errors import UserError

COLOURS = {"red": (200, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 200)}
RED = picture(*COLOURS["red"])


def write_tar(path: Path, members: list[tuple[str, bytes]] | dict[str, bytes], mode: str = "w") -> Path:
    return write(path, tar_with(*(members.items() if isinstance(members, dict) else members), mode=mode))


def samples(first: int, *names: str, label: str = "cls") -> dict[str, bytes]:
    """Members of samples, numbered from `first`, with names as labels."""
    members = {}
    for number, name in enumerate(names, first):
        members[f"{number:04d}.png"] = picture(*(value + number for value in COLOURS[name]))
        text = json.dumps({"label": name, "width": 12}) if label == "json" else f"{name}\n"
        members[f"{number:04d}.{label}"] = text.encode()
    return members


@pytest.fixture
def shards(tmp_path) -> Path:
    folder = tmp_path / "shards"
    write_tar(folder / "train" / "000.tar", samples(0, "red", "green"))
    write_tar(folder / "train" / "001.tar", samples(2, "blue", "red", label="json"))
    write_tar(folder / "test" / "000.tar", samples(0, "blue"))
    return folder


# --- below a folder


def test_shards_become_items(shards, caplog):
    dataset = load(shards)
    assert rows_of(dataset) == {
        "train": [
            ("train/000.tar/0000.png", 2, "red"), ("train/000.tar/0001.png", 1, "green"),
            ("train/001.tar/0002.png", 0, "blue"), ("train/001.tar/0003.png", 2, "red"),
        ],
        "val": [],
        "test": [("test/000.tar/0000.png", 0, "blue")],
    }  # fmt: skip
    assert list(dataset.classnames) == ["blue", "green", "red"]
    for number, item in enumerate(dataset.train):
        assert dataset.open(item.path).getpixel((3, 3)) == tuple(value + number for value in COLOURS[item.classname])
    path = dataset.train[0].path
    assert dataset.file_version(path) == (len(RED), (shards / "train" / "000.tar").stat().st_mtime_ns)
    write_tar(shards / "train" / "000.tar", {**samples(0, "red", "green"), "0000.png": RED + b"more"})
    write_tar(shards / "holdout" / "0.tar", samples(0, "red"))
    again = load(shards)
    assert (counts(again), again.file_version(path)[0]) == ([4, 0, 1], len(RED) + 4)
    assert again.files_hash() != dataset.files_hash()
    [warning] = caplog.messages
    assert warning.startswith(f"{shards}: skipped the .tar files in holdout; ")
    write(shards / "train" / "red" / "1.png", RED)  # class folders go before the archive that they came from
    assert [item.path for item in load(shards).train] == ["train/red/1.png"]


@pytest.mark.parametrize(("names", "expected"), [
    (["Train-000.tar", "VAL-000.tar", "Test-000.tar"], [2, 2, 2]),
    (["TRAINING/val-0.tar", "dev/0.tar", "evaluation/0.tar"], [2, 2, 2]),
    (["shard-000.tar", "data/shard-001.tar"], [4, 0, 0]), (["train-0.tar", "holdout-0.tar"], None),
    (["imagenet-train-0.tar", "imagenet-val-0.tar"], [2, 2, 0]), (["myTrain-val0.tar", "data/trainval-0.tar"], None),
])  # fmt: skip
def test_shard_names_define_splits(tmp_path, names, expected):
    for name in names:
        write_tar(tmp_path / name, samples(0, "red", "blue"))
    if expected:
        assert counts(load(tmp_path)) == expected
    else:
        refused(tmp_path, f": {names[1]} has no split, but others have one; rename it .*, such as train-0.tar,")


def test_copies_inside_shards_are_found(shards):
    write_tar(shards / "val.tar", {**samples(7, "red"), "0.png": picture(*COLOURS["blue"]), "0.cls": b"blue"})
    dataset = load(shards)
    assert dataset.copies() == [("val", "test", ["val.tar/0.png"])]
    with pytest.raises(UserError, match=r"1 of 2 val images are test images as well, such as val\.tar/0\.png; "):
        dataset.refuse_copies()


# --- labels


def test_shard_labels_are_names_or_positions(tmp_path):
    members = {"a/1.png": RED, "a/1.cls": b"01", "b/1.png": RED, "b/1.cls": b"0", "c.png": RED, "c.cls": b"yak"}
    write_tar(tmp_path / "train" / "0.tar", members)
    write(tmp_path / "classnames.txt", "zebra\nyak\nxerus\n")
    dataset = load(tmp_path)
    assert list(dataset.classnames) == ["zebra", "yak"]  # in the order of the list; xerus has no image
    assert [tuple(item)[1:] for item in dataset.train] == [(1, "yak"), (0, "zebra"), (1, "yak")]
    for label in ("3", "-1", "zebras"):
        write_tar(tmp_path / "train" / "0.tar", {"1.png": RED, "1.cls": label.encode()})
        refused(
            tmp_path, rf"unknown label '{label}' in .*0\.tar: 1\.cls; expected one of the 3 names in classnames\.txt"
        )
    write(tmp_path / "classnames.txt", "zebra\ncrane\n crane \n")
    refused(tmp_path, r"classnames\.txt repeats the name 'crane'")


X = ("1.png", b"x")


@pytest.mark.parametrize("members", [
    [X, ("1.CLS", b"\xef\xbb\xbfred\n")],
    [X, ("1.json", b'{"label": "red"}'), ("1.cls", b"red"), ("1.txt", b"a"), ("dir/2.mask.png", b"x")],
])  # fmt: skip
def test_sample_has_one_image_and_label(tmp_path, members):
    write_tar(tmp_path / "train" / "0.tar", members)
    assert rows_of(load(tmp_path))["train"] == [("train/0.tar/1.png", 0, "red")]


@pytest.mark.parametrize(("members", "words"), [
    ([X], r"train/0.tar/1\.png has no label"),
    ([("1.cls", b"red")], r"train/0\.tar: the sample 1 has 0 images"),
    ([X, ("1.jpg", b"x"), ("1.cls", b"red")], r"train/0\.tar: the sample 1 has 2 images"),
    ([X, ("1.cls", b"red"), ("1.json", b'{"label": "blue"}')], "has 1 images and the labels blue, red"),
    ([X, ("1.json", b"[1]")], r"cannot read the label b'\[1\]' in .*train/0\.tar: 1\.json"),
    ([X, ("1.json", b'{"label": [3]}')], r"1\.json: expected text or a number as label, got \[3\]"),
])  # fmt: skip
def test_incomplete_samples_are_refused(tmp_path, members, words):
    write_tar(tmp_path / "train" / "0.tar", members)
    refused(tmp_path, words)


# --- damaged shards


def test_damaged_shards_are_refused(tmp_path):
    path = write_tar(tmp_path / "train" / "0.tar", samples(0, "red"), "w:gz")
    compressed, content = path.read_bytes(), write_tar(path, samples(0, "red", "blue")).read_bytes()
    with tarfile.open(path) as tar:
        second = next(entry for entry in tar.getmembers() if entry.name == "0001.png")
        end = tar.offset
    block = tarfile.BLOCKSIZE
    huge = tarfile.TarInfo("1.cls")
    huge.size = 10**12
    for damaged, output in (
        (compressed, "header"), (content[: second.offset_data + 5], "unexpected end of data"),
        (content[:end], "it is truncated: expected the end of the archive at byte"),
        (content[: second.offset] + bytes(block) + content[second.offset + block :], "it is truncated"),
        (huge.tobuf(tarfile.GNU_FORMAT) + bytes(4096), "unexpected end of data|MemoryError"),
    ):  # fmt: skip
        path.write_bytes(damaged)
        refused(tmp_path, f"{path} is damaged or not a whole tar file that is not compressed: .*({output})")
    path.write_bytes(content[: end + block])  # some programs write no second block of zeros
    assert counts(load(tmp_path)) == [2, 0, 0]


def test_unusable_shards_are_refused(shards):
    odd = shards / "train" / "odd.tar"
    os.mkfifo(odd)
    refused(shards, r"cannot read .*odd\.tar: it is no regular file")
    odd.unlink()
    write_tar(odd, {"caf\udce9.png": RED, "caf\udce9.cls": b"red"})
    refused(shards, r"odd\.tar is damaged .*udce9'")
    odd.unlink()
    for split in ("test", "train"):
        link = shards / split / "002.tar"
        link.symlink_to(shards / "train" / "000.tar")
        refused(shards, rf"the shard .*\.tar is in {split} and in train; expected each shard once")
        link.unlink()


# --- paths and addresses


def test_remote_shards_are_downloaded_once(server, shards, tmp_path, monkeypatch):
    monkeypatch.setenv("WDS_CACHE", str(tmp_path / "cache"))
    url = server.url("/test/000.tar", serve((shards / "test" / "000.tar").read_bytes()))
    write(shards / "train" / "classnames.txt", "red\nblue\ngreen\n")
    dataset = load(f"train={shards}/train/000.tar::{shards}/train/001.tar; Test = {url};")
    assert [item.path for item in dataset.train][::2] == ["train/000.tar/0000.png", "train/001.tar/0002.png"]
    assert [item.path for item in dataset.test] == ["test/000.tar/0000.png"]
    assert dataset.classnames == ["red", "blue", "green"]  # of the list beside the first shard
    [cached] = (tmp_path / "cache").glob("*.tar")
    lock = cached.with_suffix(".lock")
    lock.unlink(missing_ok=True)
    lock.mkdir()  # cannot be written, as in the cache of another user
    again = load(f"train={shards}/train/001.tar;test={url}")
    assert (again.open(again.test[0].path).getpixel((0, 0)), len(server.asked)) == (COLOURS["blue"], 1)
    gone = server.url("/gone.tar", status(404))
    refused(gone, f"cannot download the shard {gone}: 404 Client Error")
    monkeypatch.setenv("WDS_CACHE", str(shards / "train" / "000.tar"))
    refused(gone, r"cannot write .*000\.tar")


SAFE = "expected paths of shards, or addresses that begin with http:// or https://"


@pytest.mark.parametrize(("root", "words"), [
    ("train=pipe:touch ran #.tar", SAFE), ("a.tar::pipe:touch ran #.tar", SAFE), ("file:///x.tar", SAFE),
    ("PIPE:x.tar", SAFE),
    ("train=a.tar;holdout=b.tar", "'holdout=b.tar', which is not SPLIT=URLS; expected train=URLS;.* valid, dev"),
    ("/nowhere/a;b=1.tar", "cannot read /nowhere/.*: No such file"),
    ("::".join(f"/nowhere/{number}.tar" for number in range(500)), "cannot read /nowhere/.*: No such file"),
])  # fmt: skip
def test_other_addresses_are_refused(tmp_path, monkeypatch, root, words):
    monkeypatch.chdir(tmp_path)
    refused(root, words)
    assert list(tmp_path.iterdir()) == []


def test_braces_expand_to_shards(shards, tmp_path, monkeypatch):
    pytest.importorskip("braceexpand", reason="the package braceexpand is not installed")
    assert counts(load(f"{shards}/train/{{000..001}}.tar")) == [4, 0, 0]
    dataset = load(f"train={shards}/train/000.tar;training={shards}/test/000.tar;val={shards}/train/001.tar")
    assert (counts(dataset), len(dataset.paths())) == ([3, 2, 0], 5)  # one name, one split
    refused(f"{{pipe:touch {tmp_path}/ran #,b}}.tar", SAFE)
    assert not (tmp_path / "ran").exists()
    refused("/nowhere/{0..3.tar", "braces need .* Unbalanced")
    for many in ("{000..100000}", "{9..-99999999..3}", "{{0..9999}-{0..9999}}", "{1,2,3}" * 11):
        refused(f"/nowhere/{many}.tar", "expected at most 100000 shards")
    monkeypatch.setitem(sys.modules, "braceexpand", None)
    refused("http://example.org/train-{000..009}.tar", "braces need `pip install braceexpand`")


# --- Parquet files and data sets of the Hub, without network

NAMES = ["tree", "house", "boat", "cloud"]


@pytest.fixture
def hf(monkeypatch, tmp_path) -> Any:
    """The package datasets, without its network."""
    # Not "datasets" alone: pytest puts tests/ on the path, where a folder has that name
    pytest.importorskip("datasets.config", reason="the package datasets is not installed")
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return datasets


def stored(shade: int) -> dict:
    return {"bytes": picture(shade), "path": f"{shade}.png"}


def table(hf: Any, labels: list, start: int = 0, label: str = "label") -> Any:
    rows = {"image": [stored(start + i) for i in range(len(labels))], label: labels, "id": list(range(len(labels)))}
    features = hf.Features({"image": hf.Image(), label: hf.ClassLabel(names=NAMES), "id": hf.Value("int64")})
    return hf.Dataset.from_dict(rows, features=features)


def write_columns(path: Path, images: list, labels: list) -> None:
    """Write a table without the types of Hugging Face's `datasets`."""
    from pyarrow import Table, parquet

    parquet.write_table(Table.from_pydict({"image": images, "label": labels}), path)


def test_versions_of_rows_read_no_image(hf, tmp_path, monkeypatch):
    """Images are in the table, or in files that it names."""
    data = tmp_path / "pictures"
    data.mkdir()
    file = write(tmp_path / "own.png", picture(7))
    rows = [{"bytes": picture(0), "path": None}, {"bytes": None, "path": str(file)}, {"bytes": b"12345", "path": "a"}]
    write_columns(data / "train-0.parquet", rows, ["ant", "bee", "bee"])
    monkeypatch.setattr(packed, "_stored_image", lambda *_: pytest.fail("an image was read"))
    dataset = load(data)
    monkeypatch.setattr(Path, "read_bytes", lambda *_: pytest.fail("an image was read"))
    sizes = [dataset.file_version(f"train/{row}")[0] for row in range(3)]
    assert sizes == [len(picture(0)), len(picture(7)), 5]


def test_parquet_rows_become_items(hf, tmp_path, caplog):
    data = tmp_path / "pictures" / "data"
    data.mkdir(parents=True)
    table(hf, [1, 0, 1, 2]).to_parquet(data / "train-00000-of-00001.parquet")
    table(hf, [2], 50).to_parquet(data / "validation-00000-of-00001.parquet")
    table(hf, [0, 1], 60).to_parquet(data / "test-00000-of-00001.parquet")
    dataset = load(f"hf:{data.parent}")
    assert rows_of(dataset) == {
        "train": [("train/0", 1, "house"), ("train/1", 0, "tree"), ("train/2", 1, "house"), ("train/3", 2, "boat")],
        "val": [("val/0", 2, "boat")],
        "test": [("test/0", 0, "tree"), ("test/1", 1, "house")],
    }
    assert list(dataset.classnames) == ["tree", "house", "boat"]  # in the order of the labels; cloud has no image
    assert dataset.open("train/3").getpixel((2, 2)) == (3, 60, 60)
    assert dataset.open("test/1").getpixel((2, 2)) == (61, 60, 60)
    again = load(f"hf:{data.parent}")
    assert rows_of(load(data.parent)) == rows_of(dataset)
    assert dataset.file_version("train/0") == again.file_version("train/0")
    assert (dataset.file_version("train/0")[0], dataset.files_hash()) == (len(picture(0)), again.files_hash())
    table(hf, [1, 0, 1, 2], start=9).to_parquet(data / "train-00000-of-00001.parquet")
    assert load(f"hf:{data.parent}").file_version("train/0") != dataset.file_version("train/0")
    assert not [record for record in caplog.records if record.name.startswith("trainers")]
    table(hf, [1], 61).to_parquet(data / "validation-00000-of-00001.parquet")
    assert load(data.parent).copies() == [("val", "test", ["val/0"])]
    os.mkfifo(data / "train-1.parquet")
    refused(data.parent, r"train-1\.parquet: it is no regular file")


def test_skipped_splits_are_logged_once(hf, monkeypatch, caplog):
    splits = {"Train": [1, 0, 1], "exam": [0], "Dev": [1, 0]}
    loaded = hf.DatasetDict({name: table(hf, labels) for name, labels in splits.items()})
    monkeypatch.setattr(hf, "load_dataset", lambda *names: {("me/pictures", "small"): loaded}[names])
    assert counts(load("hf:me/pictures#small")) == [3, 2, 0]
    [message] = caplog.messages
    assert message.startswith("hf:me/pictures#small: read the splits Train, Dev, skipped exam; ")
    del loaded["Train"], loaded["Dev"]
    refused("hf:me/pictures#small", "hf:me/pictures#small has no training image")


def test_package_that_runs_scripts_of_data_sets_is_refused(hf, monkeypatch):
    monkeypatch.setattr(hf, "__version__", "3.6.0")
    refused("hf:me/pictures", "needs the package datasets: pip install 'datasets>=4'")


def test_folder_with_a_script_is_refused(hf, monkeypatch, tmp_path):
    script = f'import pathlib\nimport datasets\npathlib.Path("{tmp_path}/ran").touch()\n'
    write(tmp_path / "pictures" / "pictures.py", f"{script}class Pictures(datasets.GeneratorBasedBuilder): ...\n")
    monkeypatch.setattr(hf.config, "HF_DATASETS_TRUST_REMOTE_CODE", True, raising=False)
    refused(f"hf:{tmp_path}/pictures", "cannot load .* with the package datasets")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(("labels", "words"), [
    (["a", "  "], "train/1 has no label"), ([0.5, float("nan")], "train/1 has no label"),
    ([[3], [4]], r"train/0: expected text or a number as label, got \[3\]"),
])  # fmt: skip
def test_parquet_rows_need_labels(hf, tmp_path, labels, words):
    write_columns(tmp_path / "train.parquet", [stored(0), stored(1)], labels)
    refused(tmp_path, f"{tmp_path}: {words}")


def test_parquet_rows_need_images(hf, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    write(tmp_path / "1.png", picture(7))
    rows = [{"bytes": None, "path": str(tmp_path / name)} for name in ("pipe", "1.png")]
    write_columns(tmp_path / "all.parquet", [*rows, None, {"bytes": None, "path": None}], list("bacd"))
    dataset = load(tmp_path / "all.parquet")
    assert [tuple(item)[1:] for item in dataset.train] == [(1, "b"), (0, "a"), (2, "c"), (3, "d")]
    assert dataset.open("train/1").getpixel((0, 0)) == (7, 60, 60)
    assert dataset.file_version("train/1")[0] == len(picture(7))
    with pytest.raises(UserError, match="cannot read the image train/0 of ImageFolder: .*/pipe: it is no regular"):
        dataset.read("train/0")
    for row in (2, 3):
        for ask in (dataset.read, dataset.file_version):
            with pytest.raises(UserError, match=f"row {row} of train has no .*; list all: .* check folder --root"):
                ask(f"train/{row}")


def test_unloadable_tables_are_refused(hf, tmp_path, monkeypatch):
    clear = "^cannot load {} with the package datasets as columns image and label: [^\n]*{}[^\n]*$"
    refused("hf:", r"expected the name of a data set of the Hub, such as hf:cifar10, got 'hf:'")
    refused("hf:somebody/nothing", clear.format("hf:somebody/nothing", "somebody/nothing"))
    write(tmp_path / "train.parquet", "nothing of the kind")
    refused(tmp_path, clear.format(tmp_path, ""))
    table(hf, [1, 0], label="fine_label").to_parquet(tmp_path / "train.parquet")
    refused(tmp_path, clear.format(tmp_path, "fine_label"))
    monkeypatch.setitem(sys.modules, "datasets", None)
    refused(tmp_path, "needs the package datasets: pip install 'datasets>=4'")
