"""Images in WebDataset's tar shards become a data set whose images are read at their places."""

from __future__ import annotations

import io
import json
import os
import sys
import tarfile
from pathlib import Path

import pytest
from file_server import serve, status
from own_images import counts, load
from PIL import Image

from trainers.hegraph.utils.errors import UserError

COLOURS = {"red": (200, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 200)}


def picture(name: str, shade: int = 0) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (12, 12), tuple(value + shade for value in COLOURS[name])).save(content, "PNG")
    return content.getvalue()


def write_tar(path: Path, members: list[tuple[str, bytes]] | dict[str, bytes], mode: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:
        for name, content in members.items() if isinstance(members, dict) else members:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return path


def samples(first: int, *names: str, label: str = "cls") -> dict[str, bytes]:
    """Members of samples that are numbered from `first`; a label is a name."""
    members = {}
    for number, name in enumerate(names, first):
        members[f"{number:04d}.png"] = picture(name, number)
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


@pytest.fixture
def package() -> None:
    pytest.importorskip("webdataset", reason="the package webdataset is not installed")


# --- below a folder, which needs no package


def test_shards_in_folders_of_splits_become_items_with_names_of_shard_and_member(shards, monkeypatch):
    monkeypatch.setitem(sys.modules, "webdataset", None)
    monkeypatch.setitem(sys.modules, "braceexpand", None)
    dataset = load(shards)
    assert [tuple(item) for item in dataset.train] == [
        ("train/000.tar/0000.png", 2, "red"), ("train/000.tar/0001.png", 1, "green"),
        ("train/001.tar/0002.png", 0, "blue"), ("train/001.tar/0003.png", 2, "red"),
    ]  # fmt: skip
    assert [tuple(item) for item in dataset.test] == [("test/000.tar/0000.png", 0, "blue")]
    assert (list(dataset.classnames), dataset.val, dataset.name) == (["blue", "green", "red"], [], "ImageFolder")
    dataset.check_files()
    for number, item in enumerate(dataset.train):
        assert dataset.open(item.path).getpixel((3, 3)) == tuple(value + number for value in COLOURS[item.classname])


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        ("Train-000.tar", "VAL-000.tar", "Test-000.tar"),
        ("trainA.tar", "ValidB.tar", "testing-0.tar"),
        ("train2017.tar", "dev_0.tar", "eval-0.tar"),
        ("TRAINING/0.tar", "dev/0.tar", "evaluation/0.tar"),
    ],
)
def test_a_split_may_have_its_other_names_in_any_case(tmp_path, train, val, test):
    write_tar(tmp_path / train, samples(0, "red", "blue", "red"))
    write_tar(tmp_path / val, samples(0, "blue", "red"))
    write_tar(tmp_path / test, samples(0, "blue"))
    assert counts(load(tmp_path)) == [3, 2, 1]


@pytest.mark.parametrize("names", [["shard-000.tar", "shard-001.tar"], ["imagenet-train-0.tar", "0.tar"]])
def test_shards_whose_names_have_no_split_are_train(tmp_path, names):
    for name in names:
        write_tar(tmp_path / name, samples(0, "red", "blue"))
    assert counts(load(tmp_path)) == [4, 0, 0]


@pytest.mark.parametrize(
    ("names", "odd"),
    [
        (["train-0.tar", "holdout-0.tar"], "holdout-0.tar"),
        (["trainval-0.tar", "test-0.tar"], "trainval-0.tar"),
        (["train/0.tar", "shard-0.tar"], "shard-0.tar"),
        (["imagenet-train-0.tar", "imagenet-val-0.tar"], "imagenet-val-0.tar"),
        (["cifarTrain.tar", "cifarTest.tar"], "cifarTest.tar"),
    ],
)
def test_the_split_of_a_shard_is_not_guessed(tmp_path, names, odd):
    for name in names:
        write_tar(tmp_path / name, samples(0, "red", "blue"))
    with pytest.raises(UserError, match=f": {odd} must begin with its split, one of train, training, val, "):
        load(tmp_path)


def test_folders_of_no_split_that_hold_shards_are_named_as_left_out(shards, caplog):
    write_tar(shards / "holdout" / "0.tar", samples(0, "red"))
    (shards / "notes").mkdir()
    assert counts(load(shards)) == [4, 0, 1]
    [said] = caplog.messages
    assert said.startswith(f"{shards}: the shards in holdout are left out; ")


def test_class_folders_go_before_the_archive_that_they_came_from(shards):
    (shards / "train" / "red").mkdir()
    (shards / "train" / "red" / "1.png").write_bytes(picture("red"))
    assert [item.path for item in load(shards).train] == ["train/red/1.png"]


def test_an_image_that_changes_is_another_version(shards):
    before = load(shards)
    path = before.train[0].path
    assert before.file_version(path)[0] == len(picture("red"))
    sizes = before.file_sizes()
    changed = samples(0, "red", "green")
    changed["0000.png"] += b"more"
    write_tar(shards / "train" / "000.tar", changed)
    assert load(shards).file_version(path) != before.file_version(path)
    assert load(shards).file_sizes() != sizes


# --- labels


def test_labels_that_are_numbers_are_positions_in_the_list_of_names(tmp_path):
    members = {"a/1.png": picture("red"), "a/1.cls": b"1", "b/1.png": picture("blue"), "b/1.cls": b"0"}
    write_tar(tmp_path / "train" / "0.tar", members)
    (tmp_path / "classnames.txt").write_text("zebra\nyak\nxerus\n")
    dataset = load(tmp_path)
    assert list(dataset.classnames) == ["zebra", "yak"]  # in the order of the list; xerus has no image
    assert [tuple(item)[1:] for item in dataset.train] == [(1, "yak"), (0, "zebra")]


def test_beside_a_list_of_names_a_label_may_be_a_name(tmp_path):
    write_tar(tmp_path / "train" / "0.tar", samples(0, "red", "blue", "red"))
    (tmp_path / "classnames.txt").write_text("red\ngreen\nblue\n")
    assert [item.classname for item in load(tmp_path).train] == ["red", "blue", "red"]


@pytest.mark.parametrize("label", ["2", "-1", "0.0", "zebras", "9" * 2000])
def test_a_label_that_is_neither_a_name_nor_a_position_is_refused(tmp_path, label):
    write_tar(tmp_path / "train" / "0.tar", {"1.png": picture("red"), "1.cls": label.encode()})
    (tmp_path / "classnames.txt").write_text("zebra\nyak\n")
    said = rf"train/0\.tar: 1\.cls has the label '{label[:50]}.*neither a name in classnames\.txt nor a position from 0"
    with pytest.raises(UserError, match=said):
        load(tmp_path)


def test_a_name_that_is_twice_in_the_list_is_refused(tmp_path):
    write_tar(tmp_path / "train" / "0.tar", samples(0, "red"))
    (tmp_path / "classnames.txt").write_text("red\ncrane\n crane \n")
    with pytest.raises(UserError, match=r"classnames\.txt has the name 'crane' twice"):
        load(tmp_path)


@pytest.mark.parametrize(
    "members",
    [
        [("1.cls", b"\xef\xbb\xbfred\n")],
        [("1.json", b'\xef\xbb\xbf{"label": "red"}')],
        [("1.json", b"{}"), ("1.cls", b"red")],
        [("1.json", b'{"label": "red"}'), ("1.cls", b"red")],
    ],
)
def test_a_label_is_that_of_any_of_its_files(tmp_path, members):
    write_tar(tmp_path / "train" / "0.tar", [("1.png", picture("red")), *members])
    assert load(tmp_path).classnames == ["red"]


X = ("1.png", b"x")


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ([X], "the sample 1 has no label"),
        ([X, ("1.json", b'{"width": 3}')], "the sample 1 has no label"),
        ([X, ("1.json", b'{"label": null}')], "the sample 1 has no label"),
        ([X, ("1.cls", b"\xef\xbb\xbf")], "the sample 1 has no label"),
        ([("1.cls", b"red")], "the sample 1 has no image"),
        ([X, ("1.jpg", b"x"), ("1.cls", b"red")], "the sample 1 has several images"),
        ([X, ("1.cls", b"red"), ("1.cls", b"red")], r"the sample 1 has \.cls twice"),
        ([X, ("1.cls", b"red"), ("1.json", b'{"label": "blue"}')], "the sample 1 has the labels blue and red"),
        ([X, ("1.json", b"{")], r"cannot read the label in .*1\.json"),
        ([X, ("1.json", b"[1]")], r"cannot read the label in .*1\.json"),
        ([X, ("1.cls", b"\xff")], r"cannot read the label in .*1\.cls"),
        ([X, ("1.json", b'{"label": [3]}')], r"1\.json: the label must be a text or a number, got \[3\]"),
    ],
)
def test_a_sample_that_is_not_one_image_and_one_label_is_named(tmp_path, members, words):
    path = write_tar(tmp_path / "train" / "0.tar", members)
    with pytest.raises(UserError, match=words) as caught:
        load(tmp_path)
    assert str(path) in str(caught.value)


# --- damaged shards, and what is none


def test_a_compressed_or_damaged_shard_is_refused(tmp_path):
    path = write_tar(tmp_path / "train" / "0.tar", samples(0, "red"), "w:gz")
    for content in (path.read_bytes(), b"no tar" * 200):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"0\.tar is damaged or not a whole tar file that is not compressed"):
            load(tmp_path)


def test_a_shard_that_is_cut_off_or_has_a_hole_is_refused(tmp_path):
    path = write_tar(tmp_path / "train" / "0.tar", samples(0, "red", "blue"))
    content = path.read_bytes()
    with tarfile.open(path) as tar:
        second = next(entry for entry in tar.getmembers() if entry.name == "0001.png")
        end = tar.offset
    block = tarfile.BLOCKSIZE
    for damaged in (
        content[: second.offset],
        content[: second.offset_data + 5],
        content[:end],
        content[: second.offset] + bytes(block) + content[second.offset + block :],
    ):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=f"{path} is damaged .*(it is cut off: no end of archive is at|is cut off)"):
            load(tmp_path)
    path.write_bytes(content[: end + block])  # some programs write no second block of zeros
    assert counts(load(tmp_path)) == [2, 0, 0]


@pytest.mark.parametrize("name", ["1.png", "1.cls"])
def test_a_header_that_promises_more_than_there_is_is_refused_before_it_is_read(tmp_path, name):
    entry = tarfile.TarInfo(name)
    entry.size = 10**12
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "0.tar").write_bytes(entry.tobuf(tarfile.GNU_FORMAT) + bytes(4096))
    with pytest.raises(UserError, match=rf"0\.tar is damaged .*'{name}' is cut off"):
        load(tmp_path)


def test_a_member_whose_name_is_not_utf8_is_refused(tmp_path):
    write_tar(tmp_path / "train" / "0.tar", {"caf\udce9.png": picture("red"), "caf\udce9.cls": b"red"})
    with pytest.raises(UserError, match=r"0\.tar holds 'caf\\\\xe9\.png', a name that is not UTF-8"):
        load(tmp_path)


def test_pipes_and_links_to_themselves_among_shards_are_refused_at_once(shards):
    os.mkfifo(shards / "train" / "pipe.tar")
    with pytest.raises(UserError, match=r"cannot read .*pipe\.tar: it is no regular file"):
        load(shards)
    (shards / "train" / "pipe.tar").unlink()
    (shards / "train" / "loop.tar").symlink_to("loop.tar")
    with pytest.raises(UserError, match=r"cannot read .*loop\.tar: Too many levels of symbolic links"):
        load(shards)


def test_a_shard_in_two_splits_is_refused(shards):
    shard = shards / "train" / "000.tar"
    (shards / "test" / "001.tar").symlink_to(shard)
    with pytest.raises(UserError, match=f"the shard {shard} is in test and in train; a shard has one split"):
        load(shards)


# --- paths and addresses


def test_paths_and_addresses_are_expanded_and_fetched_once(package, server, shards, tmp_path, monkeypatch):
    monkeypatch.setenv("WDS_CACHE", str(tmp_path / "cache"))
    body = (shards / "test" / "000.tar").read_bytes()
    url = server.url("/test/000.tar", serve(body, stop_at=len(body) // 2), serve(body))
    train = f"{shards}/train/{{000..001}}.tar"
    dataset = load(f"train={train};test={url}")
    assert [item.path for item in dataset.train][::2] == ["train/000.tar/0000.png", "train/001.tar/0002.png"]
    assert [item.path for item in dataset.test] == ["test/000.tar/0000.png"]
    assert len(server.asked) == 2  # the second time for the rest
    again = load(f"train={train};test={url}")
    assert again.open(again.test[0].path).getpixel((0, 0)) == COLOURS["blue"]
    assert len(server.asked) == 2
    assert [path.suffix for path in (tmp_path / "cache").glob("*.tar*")] == [".tar"]
    gone = server.url("/gone.tar", status(404))
    with pytest.raises(UserError, match=f"cannot fetch the shard {gone}: HTTP 404"):
        load(gone)


@pytest.mark.parametrize(
    "root", ["pipe:touch {}/ran #.tar", "train=pipe:touch {}/ran #.tar", "a.tar::pipe:touch {}/ran #.tar", "file:///x.tar",
             "{{pipe:touch {}/ran #,b}}.tar", "s3://bucket/x.tar", "PIPE:x.tar"],
)  # fmt: skip
def test_no_other_address_is_given_to_a_program(package, tmp_path, root):
    with pytest.raises(UserError, match="a shard is a path, or an address that begins with http:// or https://"):
        load(root.format(tmp_path))
    assert not (tmp_path / "ran").exists()


def test_variables_of_the_environment_are_not_put_into_addresses(package, monkeypatch):
    monkeypatch.setenv("SECRET", "abc")
    with pytest.raises(UserError) as caught:
        load("/nowhere/${SECRET}.tar")
    assert "abc" not in str(caught.value)


@pytest.mark.parametrize(
    ("root", "expected"),
    [
        ("train={train};valid={test}", [4, 1, 0]),
        ("Training={train}; DEV = {test};", [4, 1, 0]),
        ("train={shards}/train/000.tar;training={test};val={shards}/train/001.tar", [3, 2, 0]),
        ("{shards}/train/000.tar::{test}", [3, 0, 0]),
    ],
)
def test_a_split_before_paths_may_have_its_other_names(package, shards, root, expected):
    train, test = f"{shards}/train/{{000..001}}.tar", f"{shards}/test/000.tar"
    dataset = load(root.format(train=train, test=test, shards=shards))
    assert counts(dataset) == expected
    assert len(dataset.paths()) == sum(expected)  # shards of one name in one split are told apart


@pytest.mark.parametrize(
    ("root", "rest"),
    [("train=a.tar;holdout=b.tar", "holdout=b.tar"), ("holdout=a.tar;exam=b.tar", "holdout=a.tar"),
     ("train=a.tar;b.tar", "b.tar"), ("train=a.tar;test=", "test=")],
)  # fmt: skip
def test_what_is_no_split_before_paths_is_named(package, root, rest):
    with pytest.raises(UserError, match=f"--root has '{rest}', which is not SPLIT=URLS; give train=URLS;.* valid, dev"):
        load(root)


@pytest.mark.parametrize(
    "text", ["{000..999999999}", "{9..-99999999..3}", "{0..9999}-{0..9999}", "{0..9%s}" % ("0" * 2000)]
)
def test_a_range_of_more_names_than_there_can_be_shards_is_refused_before_it_is_expanded(package, text):
    with pytest.raises(UserError, match="which names more than 1000000 shards; give a shorter range"):
        load(f"/nowhere/{text}.tar")


@pytest.mark.parametrize(
    "root", ["/nowhere/a;b=1.tar", "/nowhere/{0..3.tar", "/nowhere/{0..999999999..999999}.tar",
             "::".join(f"/nowhere/train-{number:06d}.tar" for number in range(500))],
)  # fmt: skip
def test_paths_that_lead_nowhere_are_one_error(package, root):
    with pytest.raises(UserError, match=r"cannot read /nowhere/.*: No such file|cannot be read: Unbalanced"):
        load(root)


def test_without_the_package_they_say_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "braceexpand", None)
    with pytest.raises(UserError, match="needs the package webdataset: pip install"):
        load("http://example.org/train-{000..009}.tar")
