"""Images in WebDataset's tar shards become a data set whose images are read at their places."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from own_images import counts, load
from PIL import Image

from trainers.hegraph.__main__ import main
from trainers.hegraph.utils.errors import UserError

COLOURS = {"red": (200, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 200)}
ROOT = Path(__file__).parents[2]


def picture(name: str, shade: int = 0) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (12, 12), tuple(value + shade for value in COLOURS[name])).save(content, "PNG")
    return content.getvalue()


def write_tar(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:
        for name, content in members.items():
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


def test_shards_in_folders_of_splits_become_items_with_names_of_shard_and_member(shards):
    dataset = load(shards)
    assert [tuple(item) for item in dataset.train] == [
        ("train/000.tar/0000.png", 2, "red"), ("train/000.tar/0001.png", 1, "green"),
        ("train/001.tar/0002.png", 0, "blue"), ("train/001.tar/0003.png", 2, "red"),
    ]  # fmt: skip
    assert [tuple(item) for item in dataset.test] == [("test/000.tar/0000.png", 0, "blue")]
    assert (list(dataset.classnames), dataset.val, dataset.name) == (["blue", "green", "red"], [], "ImageFolder")
    dataset.check_files()


def test_an_image_is_read_at_its_place(shards):
    dataset = load(shards)
    for number, item in enumerate(dataset.train):
        expected = tuple(value + number for value in COLOURS[item.classname])
        assert dataset.open(item.path).getpixel((3, 3)) == expected


def test_shards_whose_names_begin_with_their_split_may_lie_in_one_folder(tmp_path):
    write_tar(tmp_path / "train-0.tar", samples(0, "red", "blue"))
    write_tar(tmp_path / "validation-0.tar", samples(0, "red"))
    write_tar(tmp_path / "test-0.tar", samples(0, "blue"))
    dataset = load(tmp_path)
    assert [len(items) for items in (dataset.train, dataset.val, dataset.test)] == [2, 1, 1]
    assert dataset.val[0].path == "validation-0.tar/0000.png"


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        ("Train-000.tar", "VAL-000.tar", "Test-000.tar"),
        ("training-000.tar", "dev_000.tar", "testing-000.tar"),
        ("trainA.tar", "ValidB.tar", "testC.tar"),
        ("train2017.tar", "Validation.tar", "eval-0.tar"),
        ("Train/0.tar", "Valid/0.tar", "evaluation/0.tar"),
        ("TRAINING/0.tar", "dev/0.tar", "Test-0.tar"),
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
    allowed = "train, training, val, validation, valid, dev, test, testing, eval, evaluation"
    with pytest.raises(UserError, match=f": {odd} does not begin with its split; let it begin with one of {allowed}"):
        load(tmp_path)


def test_folders_of_no_split_that_hold_shards_are_named_as_left_out(shards, caplog):
    write_tar(shards / "holdout" / "0.tar", samples(0, "red"))
    (shards / "notes").mkdir()
    assert counts(load(shards)) == [4, 0, 1]
    assert [record.getMessage().partition(";")[0] for record in caplog.records] == [
        f"{shards}: the shards in holdout are left out"
    ]


def test_labels_that_are_numbers_are_positions_in_the_list_of_names(tmp_path):
    members = {"a/1.png": picture("red"), "a/1.cls": b"1", "b/1.png": picture("blue"), "b/1.cls": b"0"}
    write_tar(tmp_path / "train" / "0.tar", members)
    (tmp_path / "classnames.txt").write_text("zebra\nyak\nxerus\n")
    dataset = load(tmp_path)
    assert list(dataset.classnames) == ["zebra", "yak"]  # in the order of the list; xerus has no image
    assert [tuple(item)[1:] for item in dataset.train] == [(1, "yak"), (0, "zebra")]


def test_paths_and_urls_are_expanded_and_fetched_once(shards, tmp_path, monkeypatch):
    pytest.importorskip("webdataset", reason="the package webdataset is not installed")
    monkeypatch.setenv("WDS_CACHE", str(tmp_path / "cache"))
    train = f"{shards}/train/{{000..001}}.tar"
    dataset = load(f"train={train};test=pipe:cat {shards}/test/000.tar")
    assert [item.path for item in dataset.train][::2] == ["train/000.tar/0000.png", "train/001.tar/0002.png"]
    assert [item.path for item in dataset.test] == ["test/000.tar/0000.png"]
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".tar"]  # the pipe's; files stay where they are
    (shards / "test" / "000.tar").unlink()
    again = load(f"train={train};test=pipe:cat {shards}/test/000.tar")
    assert again.open(again.test[0].path).getpixel((0, 0)) == COLOURS["blue"]
    assert load(f"file://{shards}/train/000.tar").train[0].path == "train/000.tar/0000.png"


@pytest.mark.parametrize("root", ["train={train};valid={test}", "Training={train}; DEV = {test};"])
def test_a_split_before_urls_may_have_its_other_names(shards, root):
    pytest.importorskip("webdataset", reason="the package webdataset is not installed")
    train, test = f"{shards}/train/{{000..001}}.tar", f"{shards}/test/000.tar"
    assert counts(load(root.format(train=train, test=test))) == [4, 1, 0]


def test_a_split_that_is_named_twice_before_urls_has_all_of_them(shards):
    pytest.importorskip("webdataset", reason="the package webdataset is not installed")
    dataset = load(f"train={shards}/train/000.tar;training={shards}/test/000.tar;val={shards}/train/001.tar")
    assert counts(dataset) == [3, 2, 0]
    assert len({item.path for item in dataset.train}) == 3


@pytest.mark.parametrize(
    ("root", "rest"),
    [
        ("train=a.tar;holdout=b.tar", "holdout=b.tar"),
        ("holdout=a.tar;exam=b.tar", "holdout=a.tar"),
        ("train=a.tar;b.tar", "b.tar"),
        ("a.tar;test=b.tar", "a.tar"),
        ("train=a.tar;test=", "test="),
    ],
)
def test_what_is_no_split_before_urls_is_named(root, rest):
    pytest.importorskip("webdataset", reason="the package webdataset is not installed")
    with pytest.raises(UserError, match=f"--root has '{rest}', which is not SPLIT=URLS; give train=URLS;.* valid, dev"):
        load(root)


def test_a_semicolon_in_urls_without_a_split_is_part_of_them():
    pytest.importorskip("webdataset", reason="the package webdataset is not installed")
    with pytest.raises(UserError, match="there is no shard /nowhere/a;b=1.tar"):
        load("/nowhere/a;b=1.tar")


def test_a_url_that_cannot_be_fetched_is_named(tmp_path, monkeypatch):
    pytest.importorskip("webdataset", reason="the package webdataset is not installed")
    monkeypatch.setenv("WDS_CACHE", str(tmp_path / "cache"))
    for url in ("file:///nowhere/train.tar", "pipe:cat /nowhere/train.tar"):
        with pytest.raises(UserError, match=f"cannot fetch the shard {url}: ") as caught:
            load(url)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"there is no shard /nowhere/train\.tar"):
        load("/nowhere/train.tar")
    assert not list(tmp_path.glob("cache/*"))


def test_without_the_package_urls_say_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "webdataset.shardlists", None)
    with pytest.raises(UserError, match="needs the package webdataset: pip install"):
        load("http://example.org/train-{000..009}.tar")


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({"1.png": b"x"}, "the sample 1 has no label"),
        ({"1.png": b"x", "1.json": b'{"width": 3}'}, "the sample 1 has no label"),
        ({"1.cls": b"red"}, "the sample 1 has no image"),
        ({"1.png": b"x", "1.jpg": b"x", "1.cls": b"red"}, "the sample 1 has several images"),
        ({"1.png": b"x", "1.json": b"{"}, "cannot read the label in 1.json"),
        ({"1.png": b"x", "1.json": b'{"label": null}'}, "the sample 1 has no label"),
        ({"1.png": b"x", "1.json": b'{"label": " "}'}, "the sample 1 has no label"),
        ({"1.png": b"x", "1.json": b'{"label": [3]}'}, r"1\.json: the label must be a text or a number, got \[3\]"),
        ({"1.png": b"x", "1.json": b'{"label": {}}'}, r"1\.json: the label must be a text or a number, got {}"),
        ({"1.png": b"x", "1.cls": b"\xef\xbb\xbf"}, "the sample 1 has no label"),
    ],
)
def test_a_sample_that_lacks_something_is_named(tmp_path, members, words):
    write_tar(tmp_path / "train" / "0.tar", members)
    with pytest.raises(UserError, match=words) as caught:
        load(tmp_path)
    assert str(tmp_path / "train" / "0.tar") in str(caught.value)


def test_a_label_beyond_the_names_is_refused(tmp_path):
    write_tar(tmp_path / "train" / "0.tar", {"1.png": picture("red"), "1.cls": b"7"})
    (tmp_path / "classnames.txt").write_text("a\nb\n")
    with pytest.raises(UserError, match=r"train/0\.tar/1\.png has the label 7, but classnames\.txt names 2 classes"):
        load(tmp_path)


@pytest.mark.parametrize("label", ["-1", "0.0", "zebras"])
def test_a_label_that_is_neither_a_name_nor_a_position_is_refused(tmp_path, label):
    write_tar(tmp_path / "train" / "0.tar", {"1.png": picture("red"), "1.cls": label.encode()})
    (tmp_path / "classnames.txt").write_text("zebra\nyak\n")
    expected = rf"train/0\.tar/1\.png has the label '{label}', which is neither a name in classnames\.txt nor a "
    with pytest.raises(UserError, match=f"{expected}position from 0 to 1"):
        load(tmp_path)


def test_beside_a_list_of_names_a_label_may_be_a_name(tmp_path):
    write_tar(tmp_path / "train" / "0.tar", samples(0, "red", "blue", "red"))
    (tmp_path / "classnames.txt").write_text("red\ngreen\nblue\n")
    assert [item.classname for item in load(tmp_path).train] == ["red", "blue", "red"]


def test_a_name_that_is_twice_in_the_list_is_refused(tmp_path):
    write_tar(tmp_path / "train" / "0.tar", samples(0, "red"))
    (tmp_path / "classnames.txt").write_text("red\ncrane\n crane \n")
    with pytest.raises(UserError, match=r"classnames\.txt has the name 'crane' twice; two classes need two names"):
        load(tmp_path)


@pytest.mark.parametrize("content", [{"1.cls": "\ufeffred\n"}, {"1.json": '\ufeff{"label": "red"}'}])
def test_the_mark_that_windows_puts_before_a_text_is_no_part_of_a_label(tmp_path, content):
    members = {name: text.encode() for name, text in content.items()}
    write_tar(tmp_path / "train" / "0.tar", {"1.png": picture("red"), **members})
    assert load(tmp_path).classnames == ["red"]


def test_a_shard_in_two_splits_is_refused(shards):
    pytest.importorskip("webdataset", reason="the package webdataset is not installed")
    shard = shards / "train" / "000.tar"
    with pytest.raises(UserError, match=f"the shard {shard} is in train and in test; a shard has one split"):
        load(f"train={shard};test={shard}")
    (shards / "test" / "001.tar").symlink_to(shard)
    with pytest.raises(UserError, match=f"the shard {shard} is in test and in train; a shard has one split"):
        load(shards)


@pytest.mark.parametrize(
    ("root", "message"),
    [("/p/{0..3.tar", "Unbalanced braces"), ("/p/${NOT_SET}.tar", "missing environment variable")],
)
def test_urls_that_cannot_be_expanded_are_one_error(root, message):
    pytest.importorskip("webdataset", reason="the package webdataset is not installed")
    with pytest.raises(UserError, match=f"cannot read --root .*{message}"):
        load(root)


def test_a_range_of_more_names_than_there_can_be_shards_is_refused_before_it_is_expanded():
    pytest.importorskip("webdataset", reason="the package webdataset is not installed")
    for text in ("{000..999999999}", "{9..-99999999..3}", "{0..9999}-{0..9999}", "{0..1" + "0" * 2000 + "}"):
        with pytest.raises(UserError, match="which names more than 1000000 shards; give a shorter range"):
            load(f"/nowhere/{text}.tar")
    with pytest.raises(UserError, match=r"there is no shard /nowhere/0\.tar"):
        load("/nowhere/{0..999999999..999999}.tar")


def test_class_folders_go_before_the_archive_that_they_came_from(shards):
    (shards / "train" / "red").mkdir()
    (shards / "train" / "red" / "1.png").write_bytes(picture("red"))
    assert [item.path for item in load(shards).train] == ["train/red/1.png"]


def test_a_sample_may_have_a_json_without_a_label_beside_its_label(tmp_path):
    members = {"1.json": b"{}", "1.png": picture("red"), "1.cls": b"red"}
    write_tar(tmp_path / "train" / "0.tar", members)
    assert [item.classname for item in load(tmp_path).train] == ["red"]


def test_a_long_list_of_urls_is_no_path(tmp_path):
    pytest.importorskip("webdataset", reason="the package webdataset is not installed")
    with pytest.raises(UserError, match="there is no shard"):
        load("::".join(f"{tmp_path}/train-{number:06d}.tar" for number in range(500)))


@pytest.mark.parametrize("mode", ["w:gz", None])
def test_a_compressed_or_damaged_shard_is_refused(tmp_path, mode):
    path = tmp_path / "train" / "0.tar"
    if mode:
        write_tar(path, samples(0, "red"), mode)
    else:
        path.parent.mkdir()
        path.write_bytes(b"no tar" * 200)
    with pytest.raises(UserError, match="must be a tar that is not compressed"):
        load(tmp_path)


def test_a_shard_that_is_cut_off_between_two_samples_is_refused(tmp_path):
    path = write_tar(tmp_path / "train" / "0.tar", samples(0, "red", "blue"))
    content = path.read_bytes()
    with tarfile.open(path) as tar:
        second = next(entry.offset for entry in tar.getmembers() if entry.name == "0001.png")
        end = tar.offset
    for size in (second, end):
        path.write_bytes(content[:size])
        with pytest.raises(UserError, match=f"{path} is cut off or damaged: no end of archive is at byte {size}"):
            load(tmp_path)
    path.write_bytes(content[: end + tarfile.BLOCKSIZE])  # some programs write no second block of zeros
    assert counts(load(tmp_path)) == [2, 0, 0]


def test_a_shard_with_a_hole_is_refused(tmp_path):
    path = write_tar(tmp_path / "train" / "0.tar", samples(0, "red", "blue"))
    with tarfile.open(path) as tar:
        second = next(entry.offset for entry in tar if entry.name == "0001.png")
    content = path.read_bytes()
    path.write_bytes(content[:second] + bytes(tarfile.BLOCKSIZE) + content[second + tarfile.BLOCKSIZE :])
    with pytest.raises(UserError, match="is cut off or damaged"):
        load(tmp_path)


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


def test_a_run_trains_on_shards_and_keeps_the_names_of_its_images(shards, tmp_path):
    arguments = ["--dataset-config-file", "folder", "--config-file", "mini", "--root", str(shards), "--shots", "1"]
    options = ["OPTIM.MAX_EPOCH", "2", "OPTIM.WARMUP_EPOCH", "0", "TRAINER.HEGRAPHADAPTER.MIN_STEPS", "0"]
    options += ["DATALOADER.NUM_WORKERS", "2", "TRAINER.HEGRAPHADAPTER.FEATURES.DIR", str(tmp_path / "features")]
    assert main([*arguments, "--seed", "1", "--output-dir", str(tmp_path / "out"), *options]) == 0
    split = json.loads((tmp_path / "out" / "split.json").read_text())
    assert {row[0] for row in split["train"]} <= {item.path for item in load(shards).train}
    assert json.loads((tmp_path / "out" / "result.json").read_text())["num_test"] == 1


def test_local_shards_need_no_package(shards):
    code = """
import sys
sys.modules["webdataset"] = None
from trainers.hegraph import load_dataset
print(len(load_dataset("ImageFolder", sys.argv[1]).train))
"""
    done = subprocess.run([sys.executable, "-c", code, str(shards)], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "4\n", done.stderr
