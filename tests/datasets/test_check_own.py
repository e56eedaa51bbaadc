"""`python -m trainers.hegraph.datasets check folder`: own images are all read, and every damaged one is named."""

from __future__ import annotations

import csv
import importlib
import io
import os
import re
import shlex
import struct
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from trainers.hegraph.__main__ import main as start
from trainers.hegraph.datasets.__main__ import main
from trainers.hegraph.datasets.check import check_own_images
from trainers.hegraph.datasets.images import FORMATS
from trainers.hegraph.utils.commands import command

CHECK = "python -m trainers.hegraph.datasets check folder --root "
TRAIN = "train: python -m trainers.hegraph --dataset-config-file folder --root "
FLAGS = " --shots 16 --config-file vit_b16 --output-dir OUT"
# split -> class -> how many images it has
SIZES = {"train": {"ant": 9, "bee": 3, "cow": 4}, "val": {"bee": 1}, "test": {"ant": 2, "bee": 2, "cow": 2}}
COUNTS = [
    "16 train, 1 val and 6 test images of 3 classes",
    "classes: ant, bee, cow",
    "train, images per class: 3 to 9, median 4; fewest: bee, most: ant",
    "val, images per class: 0 to 1, median 0; fewest: ant, most: bee",
    "test, images per class: 2",
    "--shots 4: 1 of 3 classes have fewer training images, and are taken whole: bee",
    "--shots 8: 2 of 3 classes have fewer training images, and are taken whole: bee, cow",
    "--shots 16: 3 of 3 classes have fewer training images, and are taken whole: ant, bee, cow",
]
Pictures = dict[tuple[str, str, int], bytes]  # split, class, number -> the file


def encoded(seed: int, kind: str = "JPEG", mode: str = "RGB") -> bytes:
    blocks = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(blocks).resize((60, 50)).convert(mode).save(content, kind)
    return content.getvalue()


def header_of_bomb() -> bytes:
    """A PNG that says that it has 100000 x 100000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


@pytest.fixture
def pictures() -> Pictures:
    names = [
        (split, name, number)
        for split, classes in SIZES.items()
        for name, count in classes.items()
        for number in range(count)
    ]
    return {name: encoded(seed) for seed, name in enumerate(names)}


def write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


# --- The layouts. Each function writes the pictures below a folder, and returns --root and a function that gives the
# path of a picture in messages


Layout = tuple[str, Callable[[tuple[str, str, int]], str]]


def class_folders(folder: Path, pictures: Pictures) -> Layout:
    for (split, name, number), content in pictures.items():
        write(folder / split / name / f"{number}.jpg", content)
    return str(folder), lambda key: "{}/{}/{}.jpg".format(*key)


def table(folder: Path, pictures: Pictures) -> Layout:
    for (split, name, number), content in pictures.items():
        write(folder / f"{split}-{name}-{number}.jpg", content)
    rows = [[f"{split}-{name}-{number}.jpg", name, split] for split, name, number in pictures]
    with (folder / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["path", "label", "split"], *rows])
    return str(folder / "labels.csv"), lambda key: "{}-{}-{}.jpg".format(*key)


def metadata(folder: Path, pictures: Pictures) -> Layout:
    rows: dict[str, list[list[str]]] = {}
    for (split, name, number), content in pictures.items():
        write(folder / split / f"{name}{number}.jpg", content)
        rows.setdefault(split, [["file_name", "label"]]).append([f"{name}{number}.jpg", name])
    for split, of_split in rows.items():
        with (folder / split / "metadata.csv").open("w", newline="") as file:
            csv.writer(file).writerows(of_split)
    return str(folder), lambda key: "{}/{}{}.jpg".format(*key)


def shards(folder: Path, pictures: Pictures) -> Layout:
    folder.mkdir()
    for split in SIZES:
        with tarfile.open(folder / f"{split}-0.tar", "w") as tar:
            for (of, name, number), content in pictures.items():
                for suffix, data in (("jpg", content), ("cls", name.encode())) if of == split else ():
                    entry = tarfile.TarInfo(f"{name}{number}.{suffix}")
                    entry.size = len(data)
                    tar.addfile(entry, io.BytesIO(data))
    return str(folder), lambda key: "{}-0.tar/{}{}.jpg".format(*key)


def named_shards(folder: Path, pictures: Pictures) -> Layout:
    pytest.importorskip("webdataset", reason="the package webdataset is not installed")
    shards(folder, pictures)
    root = ";".join(f"{split}={folder / split}-0.tar" for split in SIZES)
    return root, lambda key: "{0}/{0}-0.tar/{1}{2}.jpg".format(*key)


def hugging_face_package() -> ModuleType:
    """The package `datasets`. Its import alone proves nothing: tests/ is on the path, and has such a folder."""
    pytest.importorskip("datasets.config", reason="the package datasets is not installed")
    return importlib.import_module("datasets")


def parquet(folder: Path, pictures: Pictures) -> Layout:
    hf = hugging_face_package()
    folder.mkdir()
    rows = {split: [key for key in pictures if key[0] == split] for split in SIZES}
    for split, keys in rows.items():
        images = [{"bytes": pictures[key], "path": None} for key in keys]
        columns = {"image": images, "label": [name for _, name, _ in keys]}
        features = hf.Features({"image": hf.Image(), "label": hf.Value("string")})
        hf.Dataset.from_dict(columns, features=features).to_parquet(folder / f"{split}-0.parquet")
    return str(folder), lambda key: f"{key[0]}/{rows[key[0]].index(key)}"


def hugging_face(folder: Path, pictures: Pictures) -> Layout:
    root, path_of = parquet(folder, pictures)
    return f"hf:{root}", path_of


LAYOUTS = [class_folders, table, metadata, shards, named_shards, parquet, hugging_face]


@pytest.fixture(autouse=True)
def no_network(monkeypatch, tmp_path):
    try:
        from datasets import config
    except ImportError:
        return
    monkeypatch.setattr(config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path / "cache")


def shown(out: str) -> tuple[str, list[str]]:
    """The state that the command shows, and its lines."""
    [state] = re.findall(r"^ImageFolder +(ready|not ready) ", out)
    return state, [line[32:] for line in out.splitlines()]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_whole_images_of_every_layout_are_ready_and_the_last_line_trains_on_them(tmp_path, pictures, capsys, layout):
    root, _ = layout(tmp_path / "own", pictures)
    assert main(["check", "folder", "--root", root]) == 0
    assert shown(capsys.readouterr().out) == ("ready", [*COUNTS, f"{TRAIN}{shlex.quote(root)}{FLAGS}"])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_all_images_of_every_layout_that_cannot_be_read_are_named_with_their_reasons(
    tmp_path, pictures, capsys, layout
):
    cut, empty, text = ("train", "bee", 2), ("val", "bee", 0), ("test", "cow", 1)
    pictures |= {cut: pictures[cut][:-100], empty: b"", text: b"<html>404</html>"}
    root, path_of = layout(tmp_path / "own", pictures)
    assert main(["check", "folder", "--root", root]) == 1
    state, lines = shown(capsys.readouterr().out)
    assert (state, lines[: len(COUNTS)]) == ("not ready", COUNTS)
    first, *rest = lines[len(COUNTS) :]
    assert first == "3 of 23 images cannot be read:"
    assert re.fullmatch(rf"  {path_of(cut)}: image file is truncated \(\d+ bytes not processed\)", rest[0])
    assert rest[1:] == [
        f"  {path_of(empty)}: is empty (0 bytes)",
        f"  {path_of(text)}: is no image, or of a format that is not read ({', '.join(FORMATS)} are)",
        f"mend this, and look again: {CHECK}{shlex.quote(root)}",
    ]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_training_that_meets_such_an_image_says_how_to_find_all_of_them(tmp_path, pictures, capsys, layout):
    cut = ("train", "bee", 2)
    root, path_of = layout(tmp_path / "own", pictures | {cut: pictures[cut][:-100]})
    flags = ["--dataset-config-file", "folder", "--config-file", "mini", "--shots", "16", "--root", root]
    opts = ["DATALOADER.NUM_WORKERS", "0", "TRAINER.HEGRAPHADAPTER.FEATURES.DIR", str(tmp_path / "features")]
    assert start([*flags, "--trainer", "ZeroShot", "--output-dir", str(tmp_path / "out"), *opts]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: cannot read the image {path_of(cut)} of ImageFolder: image file is truncated (")
    assert "; list all: python -m " in error
    assert error.endswith(f"datasets check folder --root {shlex.quote(root)}"[-60:])  # of a long line, the end is shown


def test_an_extraction_says_it_too(tmp_path, pictures, capsys):
    root, _ = class_folders(tmp_path / "own", pictures | {("val", "bee", 0): b""})
    flags = ["--dataset-config-file", "folder", "--config-file", "mini", "--root", root]
    opts = ["DATALOADER.NUM_WORKERS", "2", "TRAINER.HEGRAPHADAPTER.FEATURES.DIR", str(tmp_path / "features")]
    assert start(["features", "extract", *flags, "--out", str(tmp_path / "bank.safetensors"), *opts]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert (
        error
        == f"error: cannot read the image val/bee/0.jpg of ImageFolder: is empty (0 bytes); list all: {CHECK}{root}"
    )


# --- What a file may be


def problems_of(root: Path) -> dict[str, str]:
    """Path -> reason, as the lines of a check say them."""
    lines = check_own_images(str(root)).lines
    return dict(line[2:].split(": ", 1) for line in lines if line.startswith("  "))


def test_every_kind_of_file_that_is_none_is_told_from_the_others(tmp_path, pictures):
    class_folders(tmp_path, pictures)
    folder = tmp_path / "train" / "bee"
    (folder / "link.jpg").symlink_to(tmp_path / "gone.jpg")
    (folder / "folder.jpg").mkdir()
    os.mkfifo(folder / "pipe.jpg")  # opening it would wait for ever
    (folder / "huge.png").write_bytes(header_of_bomb())
    found = problems_of(tmp_path)
    assert "exceeds limit of 178956970 pixels" in found.pop("train/bee/huge.png")
    assert found == {
        "train/bee/link.jpg": f"is a link to {tmp_path / 'gone.jpg'}, which is not there",
        "train/bee/folder.jpg": "is a folder",
        "train/bee/pipe.jpg": "is no regular file",
    }


def test_a_file_that_may_not_be_read_is_named(tmp_path, pictures, monkeypatch):
    class_folders(tmp_path, pictures)
    closed = tmp_path / "test" / "cow" / "0.jpg"
    opened = Image.open

    def refusing(source: object, formats: object) -> Image.Image:
        if source == closed:
            raise PermissionError(13, "Permission denied", str(closed))
        return opened(source, formats=formats)

    monkeypatch.setattr(Image, "open", refusing)  # root may read everything
    assert problems_of(tmp_path) == {"test/cow/0.jpg": "Permission denied"}


def test_a_row_of_a_table_without_a_file_is_named(tmp_path, pictures):
    root, path_of = table(tmp_path, pictures)
    (tmp_path / path_of(("train", "cow", 3))).unlink()
    assert problems_of(Path(root)) == {"train-cow-3.jpg": "No such file or directory"}


def test_a_row_of_parquet_without_an_image_is_named(tmp_path):
    hf = hugging_face_package()
    columns = {"image": [{"bytes": encoded(0), "path": None}, None], "label": ["ant", "bee"]}
    features = hf.Features({"image": hf.Image(), "label": hf.Value("string")})
    hf.Dataset.from_dict(columns, features=features).to_parquet(tmp_path / "train.parquet")
    reason = "row 1 of train has no image in the column image; give it one, or leave the row out"
    assert problems_of(tmp_path) == {"train/1": reason}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("cmyk.jpg", encoded(90, mode="CMYK")),
        ("grey.png", encoded(91, "PNG", "L")),
        ("clear.png", encoded(92, "PNG", "RGBA")),
        ("two_bytes.png", encoded(93, "PNG", "I;16")),
        ("float.tif", encoded(94, "TIFF", "F")),
    ],
)
def test_images_of_unusual_modes_are_whole(tmp_path, pictures, name, content):
    class_folders(tmp_path, pictures)
    write(tmp_path / "train" / "bee" / name, content)
    assert check_own_images(str(tmp_path)).ready


def test_a_name_that_no_line_can_hold_is_shown_in_one(tmp_path, pictures):
    class_folders(tmp_path, pictures)
    write(tmp_path / "train" / "bee" / "a\nb  c.jpg", b"")
    assert problems_of(tmp_path) == {r"train/bee/a\nb  c.jpg": "is empty (0 bytes)"}


# --- Copies, classes and layouts


def test_every_copy_of_a_test_image_that_training_would_refuse_is_named(tmp_path, pictures):
    pictures[("train", "bee", 0)] = pictures[("test", "bee", 1)]
    pictures[("train", "bee", 1)] = pictures[("test", "cow", 0)]  # whatever its class
    pictures[("val", "bee", 0)] = pictures[("test", "bee", 1)]
    pictures[("train", "ant", 0)] = pictures[("train", "ant", 1)]  # in one split, nothing is tested on it
    class_folders(tmp_path, pictures)
    state = check_own_images(str(tmp_path))
    assert not state.ready
    assert state.lines[len(COUNTS) : -1] == [
        "2 of 16 train images are test images as well; take them out of train or out of test:",
        f"  {tmp_path}/train/bee/0.jpg",
        f"  {tmp_path}/train/bee/1.jpg",
        "1 of 1 val images are test images as well; take them out of val or out of test:",
        f"  {tmp_path}/val/bee/0.jpg",
    ]


def test_files_that_cannot_be_read_are_no_copies_of_each_other(tmp_path, pictures):
    class_folders(tmp_path, pictures | {("train", "bee", 0): b"", ("test", "bee", 0): b""})
    assert set(problems_of(tmp_path)) == {"train/bee/0.jpg", "test/bee/0.jpg"}


def test_one_class_is_not_ready(tmp_path, pictures):
    class_folders(tmp_path, {key: content for key, content in pictures.items() if key[1] == "ant"})
    state = check_own_images(str(tmp_path))
    assert not state.ready
    assert state.lines[-2] == "there must be at least two classes to tell apart, got 1"


def test_of_many_classes_the_first_are_named_and_16_images_of_each_are_enough_for_all_shots(tmp_path):
    write(tmp_path / "one.png", encoded(0, "PNG"))
    for number in range(12):
        for image in range(16):
            path = tmp_path / "train" / f"class {number:02d}" / f"{image}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to(tmp_path / "one.png")  # a link to an image is one
    assert check_own_images(str(tmp_path)).lines == [
        "192 train, 0 val and 0 test images of 12 classes",
        f"classes: {', '.join(f'class {number:02d}' for number in range(10))}, ...",
        "train, images per class: 16",
        "val, images per class: 0",
        "test, images per class: 0",
        f"{TRAIN}{tmp_path}{FLAGS}",
    ]


def test_a_layout_that_training_refuses_is_not_ready_and_why_is_said(tmp_path, capsys):
    write(tmp_path / "ant" / "1.jpg", encoded(0))
    assert main(["check", "ImageFolder", "--root", str(tmp_path)]) == 1
    said = f"{tmp_path} holds folders of images (ant): move them into {tmp_path}/train/"
    assert shown(capsys.readouterr().out) == ("not ready", [said])


def test_what_the_layout_leaves_out_is_said_as_in_training(tmp_path, pictures, caplog):
    class_folders(tmp_path, pictures)
    write(tmp_path / "train" / "bee" / "photo.heic", b"x")
    assert check_own_images(str(tmp_path)).ready
    assert f"{tmp_path}: 1 files are no images and are left out, such as train/bee/photo.heic" in caplog.messages


def test_nothing_is_written(tmp_path, pictures):
    class_folders(tmp_path, pictures)
    before = sorted((str(path), path.stat().st_mtime_ns) for path in tmp_path.rglob("*"))
    check_own_images(str(tmp_path))
    assert sorted((str(path), path.stat().st_mtime_ns) for path in tmp_path.rglob("*")) == before


@pytest.mark.parametrize("arguments", [["check", "folder", "dtd"], ["download", "folder"]])
def test_own_images_are_neither_downloaded_nor_checked_with_others(tmp_path, capsys, arguments):
    assert main([*arguments, "--root", str(tmp_path)]) == 2
    said = "ImageFolder is your own images: they are not downloaded, and are checked without other data sets"
    assert capsys.readouterr().err == f"error: {said}\n"


def test_the_command_that_is_shown_for_training_is_one(tmp_path, pictures):
    root, _ = class_folders(tmp_path / "my images", pictures)
    last = check_own_images(root).lines[-1].removeprefix(f"train: {command()} ")
    arguments = shlex.split(last)
    arguments[arguments.index("vit_b16")] = "mini"  # whose weights are here
    arguments[arguments.index("OUT")] = str(tmp_path / "out")
    features = ["TRAINER.HEGRAPHADAPTER.FEATURES.DIR", str(tmp_path / "features")]
    assert start([*arguments, "--no-train", "DATALOADER.NUM_WORKERS", "0", *features]) == 0
