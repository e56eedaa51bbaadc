"""Anybody's images: folders and tables as people have them, and images of any mode turned upright."""

from __future__ import annotations

import io
import json
import logging
import struct
import sys
import warnings
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from own_images import load, make
from PIL import Image

from trainers.hegraph.__main__ import main
from trainers.hegraph.datasets import Dataset, load_few_shot
from trainers.hegraph.datasets.images import open_image
from trainers.hegraph.utils.errors import UserError

ROOT = Path(__file__).parents[2]


def rows_of(dataset: Dataset) -> dict[str, list[tuple]]:
    return {split: [tuple(item) for item in getattr(dataset, split)] for split in ("train", "val", "test")}


# --- folders


def test_folders_of_the_three_splits_become_items_in_sorted_order(tmp_path):
    make(
        tmp_path, "train/bee/2.jpg", "train/bee/1.jpg", "train/ant/1.jpg", "val/ant/3.jpg", "test/bee/4.jpg",
        "test/ant/5.jpg",
    )  # fmt: skip
    dataset = load(tmp_path)
    assert rows_of(dataset) == {
        "train": [("train/ant/1.jpg", 0, "ant"), ("train/bee/1.jpg", 1, "bee"), ("train/bee/2.jpg", 1, "bee")],
        "val": [("val/ant/3.jpg", 0, "ant")],
        "test": [("test/ant/5.jpg", 0, "ant"), ("test/bee/4.jpg", 1, "bee")],
    }
    assert list(dataset.classnames) == ["ant", "bee"]
    dataset.check_files()


def test_only_training_images_are_needed(tmp_path):
    dataset = load(make(tmp_path, "train/ant/1.jpg", "train/bee/1.jpg"))
    assert (len(dataset.train), dataset.val, dataset.test) == (2, [], [])


def test_classes_of_unequal_size_are_taken_whole_where_they_have_fewer_images_than_shots(tmp_path):
    sizes = {"ant": 1, "bee": 3, "cow": 9}
    make(tmp_path, *(f"train/{name}/{number}.jpg" for name, size in sizes.items() for number in range(size)))
    make(tmp_path, *(f"val/{name}/{number}.jpg" for name, size in sizes.items() for number in range(size)))
    task = load_few_shot("ImageFolder", str(tmp_path), 4, 1)
    assert Counter(item.classname for item in task.train) == {"ant": 1, "bee": 3, "cow": 4}
    assert Counter(item.classname for item in task.val) == {"ant": 1, "bee": 3, "cow": 4}
    assert len({item.path for item in task.train}) == 8
    assert rows_of(load_few_shot("ImageFolder", str(tmp_path), 4, 1)) == rows_of(task)
    assert rows_of(load_few_shot("ImageFolder", str(tmp_path), 4, 2)) != rows_of(task)


def test_classes_that_are_numbers_are_ordered_by_value_before_all_others(tmp_path):
    make(tmp_path, *(f"train/{name}/1.jpg" for name in ("10", "9", "b", "1", "02", "B")))
    assert list(load(tmp_path).classnames) == ["1", "02", "9", "10", "B", "b"]


def test_a_class_whose_name_looks_like_a_number_and_is_none_is_a_name(tmp_path):
    make(tmp_path, *(f"train/{name}/1.jpg" for name in ("m²", "²", "①", "-1", "1.5", "7")))
    assert list(load(tmp_path).classnames) == ["7", "-1", "1.5", "m²", "²", "①"]


def test_class_names_may_hold_spaces_umlauts_and_braces(tmp_path):
    names = ["a {} b", "käse", "red panda", "雲"]
    make(tmp_path, *(f"train/{name}/a {number}.jpg" for name in names for number in range(2)))
    dataset = load(tmp_path)
    assert list(dataset.classnames) == names
    dataset.check_files()


def test_hidden_files_are_left_out_and_files_that_are_no_images_are_too_with_a_word(tmp_path, caplog):
    make(
        tmp_path, "train/ant/1.JPG", "train/ant/2.Png", "train/ant/._1.JPG", "train/.cache/1.jpg",
        "train/ant/Thumbs.db", "train/notes.txt",
    )  # fmt: skip
    with caplog.at_level(logging.WARNING):
        dataset = load(tmp_path)
    assert [item.path for item in dataset.train] == ["train/ant/1.JPG", "train/ant/2.Png"]
    assert caplog.messages == [f"{tmp_path}: 2 files are no images and are left out, such as train/ant/Thumbs.db"]


@pytest.mark.parametrize("suffix", ["jpg", "jpeg", "png", "bmp", "gif", "webp", "tif", "tiff", "ppm", "pgm", "pbm"])
def test_images_of_every_common_kind_are_found(suffix, tmp_path):
    assert len(load(make(tmp_path, f"train/ant/1.{suffix}")).train) == 1


@pytest.mark.parametrize("folder", ["holdout", "test2", "testset", "train_old"])
def test_a_folder_that_is_no_split_is_not_read_and_this_is_said(folder, tmp_path, caplog):
    make(tmp_path, "train/ant/1.jpg", f"{folder}/ant/2.jpg")
    with caplog.at_level(logging.WARNING):
        dataset = load(tmp_path)
    assert dataset.val == dataset.test == []
    assert folder in " ".join(caplog.messages)


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_class_without_a_training_image_is_an_error_that_names_it(split, tmp_path):
    make(tmp_path, "train/ant/1.jpg", f"{split}/ant/1.jpg", f"{split}/Ant/1.jpg", f"{split}/wasp/1.jpg")
    (tmp_path / "train" / "wasp").mkdir()  # empty
    with pytest.raises(UserError, match=f"2 classes of {split} have no training image: Ant, wasp"):
        load(tmp_path)


@pytest.mark.parametrize(
    "files",
    [[], ["train/readme.txt"], ["train/.ant/1.jpg"], ["Training/ant/notes.txt"]],
    ids=["empty", "no image", "hidden", "another name"],
)
def test_a_training_folder_without_images_of_a_class_is_an_error_that_shows_the_layout(files, tmp_path):
    if not any(file.startswith("Training") for file in files):
        (tmp_path / "train").mkdir()
    with pytest.raises(UserError, match=r"has no training image; expected ROOT/train/<class>/\*\.jpg .* or a CSV file"):
        load(make(tmp_path, *files))


def test_a_root_that_is_missing_or_not_given_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"there is no .*/absent; expected ROOT"):
        load(tmp_path / "absent")
    with pytest.raises(UserError, match="ImageFolder needs --root, your folder or CSV file; expected ROOT"):
        load("")


def test_a_root_may_be_relative_or_begin_with_a_tilde(tmp_path, monkeypatch):
    make(tmp_path, "mine/train/ant/1.jpg")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for root in ("mine", "./mine/", "~/mine"):
        dataset = load(root)
        dataset.check_files()
        assert dataset.root == tmp_path / "mine"


# --- tables


def table(root: Path, text: str | bytes, *files: str, name: str = "labels.csv") -> Path:
    root.mkdir(exist_ok=True)
    (root / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return make(root, *files)


def test_a_table_becomes_items_in_its_order(tmp_path):
    table(
        tmp_path, "path,label,split\nb.jpg,bee,train\nsub/a.jpg,ant,train\nc.jpg,ant,val\nd.jpg,bee,test\n",
        "b.jpg", "sub/a.jpg", "c.jpg", "d.jpg",
    )  # fmt: skip
    dataset = load(tmp_path)
    assert rows_of(dataset) == {
        "train": [("b.jpg", 1, "bee"), ("sub/a.jpg", 0, "ant")],
        "val": [("c.jpg", 0, "ant")],
        "test": [("d.jpg", 1, "bee")],
    }
    dataset.check_files()


def test_the_table_itself_can_be_the_root_whatever_its_name(tmp_path):
    table(tmp_path, "path,label\na.jpg,ant\n", "a.jpg", "other.csv", name="My Labels.CSV")
    dataset = load(tmp_path / "My Labels.CSV")
    assert dataset.root == tmp_path
    dataset.check_files()


@pytest.mark.parametrize(
    ("name", "beside"), [("LABELS.CSV", "x.txt"), ("labels.csv", "._labels.csv"), ("labels.csv", ".labels.csv.swp")]
)
def test_the_only_table_of_a_folder_is_found_also_in_capitals_or_beside_hidden_files(name, beside, tmp_path):
    table(tmp_path, "path,label\na.jpg,ant\n", "a.jpg", beside, name=name)
    assert len(load(tmp_path).train) == 1


def test_two_tables_are_an_error_that_counts_them(tmp_path):
    with pytest.raises(UserError, match="holds 2 CSV files; expected"):
        load(table(tmp_path, "path,label\na.jpg,ant\n", "a.jpg", "other.csv"))


@pytest.mark.parametrize(
    "text",
    [
        "path,label\na.jpg,ant\nb.jpg,bee\n",
        "path,label\r\na.jpg,ant\r\nb.jpg,bee",
        "\ufeffpath,label\na.jpg,ant\nb.jpg,bee\n",
        "Path, LABEL , Split\n a.jpg , ant , train \nb.jpg,bee,\n",
        "label,note,path\nant,,a.jpg\nbee,blurred,b.jpg\n",
        '"path","label"\n"a.jpg","ant"\n\n"b.jpg","bee"\n\n',
        "path,label,split\na.jpg,ant,TRAIN\n./b.jpg,bee,Train\n",
        "path,label,split\na.jpg,ant\nb.jpg,bee,\n",
    ],
    ids=["plain", "Windows", "byte order mark", "spaces, capitals", "more columns", "quotes", "capitals", "no split"],
)
def test_a_table_is_read_however_a_program_left_it(text, tmp_path):
    assert rows_of(load(table(tmp_path, text)))["train"] == [("a.jpg", 0, "ant"), ("b.jpg", 1, "bee")]


def test_labels_may_hold_commas_and_quotes_and_be_numbers(tmp_path):
    table(tmp_path, 'path,label\na.jpg,"panda, red"\nb.jpg,"a ""bee"""\nc.jpg,10\nd.jpg,9\n')
    assert list(load(tmp_path).classnames) == ["9", "10", 'a "bee"', "panda, red"]


def test_an_image_may_lie_anywhere(tmp_path):
    elsewhere = make(tmp_path / "elsewhere", "a.jpg")
    load(table(tmp_path / "mine", f"path,label\n{elsewhere / 'a.jpg'},ant\n../elsewhere/a.jpg,ant\n")).check_files()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", r"must have the columns path,label\[,split\], got nothing"),
        ("a.jpg,ant\n", r"must have the columns path,label\[,split\], got a\.jpg,ant"),
        ("path;label\na.jpg;ant\n", r"with commas between them, got path;label with semicolons; save it with commas"),
        ("path\tlabel\na.jpg\tant\n", r"with commas between them, got path\tlabel with tabs; save it with commas"),
        ("image,label\na.jpg,ant\n", r"must have the columns .*, got image,label"),
        ("path,label\n", "has no training image"),
        ("path,label,split\na.jpg,ant,test\n", "has no training image"),
        ("path,label\na.jpg,ant\nb.jpg\n", "line 3: path and label must not be empty"),
        ("path,label\na.jpg,ant\n,ant\n", "line 3: path and label must not be empty"),
        ("path,label\na.jpg,  \n", "line 2: path and label must not be empty"),
        ("path,label\na.jpg,panda, red\n", "line 2: more values than columns"),
        ("path,label,split\na.jpg,panda, red,train\n", "line 2: more values than columns"),
        ("path,label,split\na.jpg,ant,holdout\n", "line 2: split must be train, val or test, got 'holdout'"),
        ('path,label\na.jpg,"ant\nb.jpg,bee\n', "cannot read the table"),
        ("path,label\na.jpg,ant\na.jpg,bee\n", r"a\.jpg is listed more than once; an image has one label"),
        ("path,label,split\na.jpg,ant,train\n./a.jpg,ant,test\n", r"a\.jpg is listed more than once"),
        ("path,label,split\na.jpg,ant,train\nx/../a.jpg,ant,test\n", r"a\.jpg is listed more than once"),
        ("path,label,split\na.jpg,ant,train\nb.jpg,bee,val\n", "1 classes of val have no training image: bee"),
        ("path,label\na.jpg,café\n".encode("latin-1"), "cannot read the table .* not in UTF-8; save it as UTF-8"),
        ("path,label\na.jpg,ant\n".encode("utf-16"), "cannot read the table .* not in UTF-8; save it as UTF-8"),
        ("path,label\na.jpg,ant\n".encode("utf-16-le"), "cannot read the table .* not in UTF-8; save it as UTF-8"),
        (b"path,label\na.jpg," + b"x" * 200_000 + b"\n", "cannot read the table .*field larger"),
    ],
)  # fmt: skip
def test_a_table_that_cannot_be_right_is_an_error_that_says_where(text, words, tmp_path):
    table(tmp_path, text, "a.jpg", "b.jpg")
    with pytest.raises(UserError, match=words) as error:
        load(tmp_path)
    assert str(tmp_path) in str(error.value)


def test_a_missing_image_of_a_table_is_named_when_a_task_is_drawn(tmp_path):
    table(tmp_path, "path,label\na.jpg,ant\ngone.jpg,bee\n", "a.jpg")
    with pytest.raises(UserError, match=r"ImageFolder: 1 of 2 images are missing below .*: gone\.jpg"):
        load_few_shot("ImageFolder", str(tmp_path), 1, 1)


def test_a_file_that_is_no_table_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"labels\.txt is no CSV file; expected"):
        load(table(tmp_path, "path,label\na.jpg,ant\n", name="labels.txt") / "labels.txt")


# --- images

# A small photo: red, green and blue in three corners, grey in the fourth
PIXELS = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [128, 128, 128]]], dtype=np.uint8)
PHOTO = Image.fromarray(PIXELS).resize((24, 16), Image.Resampling.NEAREST)
GREY = np.array(PHOTO.convert("L"))


def opened(tmp_path: Path, image: Image.Image | bytes, name: str, **options: object) -> np.ndarray:
    if isinstance(image, bytes):
        (tmp_path / name).write_bytes(image)
    else:
        image.save(tmp_path / name, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = open_image(tmp_path / name)
    assert result.mode == "RGB"
    return np.asarray(result).astype(int)


def test_colour_images_come_as_they_are(tmp_path):
    for name in ("a.png", "a.bmp", "a.ppm", "a.tif"):
        assert (opened(tmp_path, PHOTO, name) == np.asarray(PHOTO)).all()
    for name, options in (("a.jpg", {"quality": 100, "subsampling": 0}), ("a.webp", {"lossless": True})):
        assert np.abs(opened(tmp_path, PHOTO, name, **options) - np.asarray(PHOTO)).max() <= 3


def test_a_palette_becomes_its_colours(tmp_path):
    palette = PHOTO.convert("P", palette=Image.Palette.ADAPTIVE, colors=4)
    for name in ("a.png", "a.gif"):
        assert np.abs(opened(tmp_path, palette, name) - np.asarray(PHOTO)).max() <= 1


def test_grey_and_black_and_white_become_equal_channels(tmp_path):
    grey = opened(tmp_path, PHOTO.convert("L"), "a.png")
    assert (grey == GREY[..., None]).all()
    white = Image.new("1", (3, 2), 1)
    white.putpixel((0, 0), 0)
    assert opened(tmp_path, white, "b.png")[..., 2].tolist() == [[0, 255, 255], [255, 255, 255]]


def test_print_colours_become_screen_colours(tmp_path):
    for name in ("a.tif", "a.jpg"):
        options = {"quality": 100} if name == "a.jpg" else {}
        assert np.abs(opened(tmp_path, PHOTO.convert("CMYK"), name, **options) - np.asarray(PHOTO))[4, 4].max() <= 12


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm", "big-endian.tif", "32 bits.tif"])
def test_16_bits_of_grey_become_8_and_are_not_clipped(name, tmp_path):
    values = GREY.astype(np.uint16) * 257
    if name == "a.pgm":
        image = b"P5 24 16 65535\n" + values.astype(">u2").tobytes()
    else:
        kind = {"big-endian.tif": ">u2", "32 bits.tif": np.int32}.get(name, np.uint16)
        image = Image.fromarray(values.astype(kind))
    assert (opened(tmp_path, image, name) == GREY[..., None]).all()


def test_a_dark_image_of_16_bits_stays_dark(tmp_path):
    values = np.full((4, 4), 200, dtype=np.uint16)  # of 65535
    assert opened(tmp_path, Image.fromarray(values), "a.png").max() == 1


def test_floats_from_0_to_1_and_from_0_to_255_become_0_to_255(tmp_path):
    for name, scale in (("a.tif", 255), ("b.tif", 1)):
        image = opened(tmp_path, Image.fromarray(GREY.astype(np.float32) / scale), name)
        assert (image == GREY[..., None]).all()


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("scale", [1, 255])
def test_a_float_that_is_no_number_is_black_and_changes_no_other_pixel(odd, scale, tmp_path):
    values = GREY.astype(np.float32) / scale
    values[0, 0] = odd
    image = opened(tmp_path, Image.fromarray(values), "a.tif")
    assert image[0, 0].tolist() == [0, 0, 0]
    assert (image[1:] == GREY[1:, :, None]).all()


def test_a_black_image_of_floats_is_black(tmp_path):
    assert opened(tmp_path, Image.fromarray(np.zeros((4, 4), np.float32)), "a.tif").max() == 0


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_of_16_bits(colour_type: int, *pixel: int) -> bytes:
    header = struct.pack(">IIBBBBB", 2, 2, 16, colour_type, 0, 0, 0)
    rows = b"".join(b"\0" + struct.pack(f">{2 * len(pixel)}H", *pixel, *pixel) for _ in range(2))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_16_bits_of_colour_become_8(tmp_path):
    assert opened(tmp_path, png_of_16_bits(2, 0xFF00, 0x8000, 0), "a.png")[0, 0].tolist() == [255, 128, 0]
    half = opened(tmp_path, png_of_16_bits(6, 0xFFFF, 0, 0, 0x8000), "b.png")[0, 0]
    assert np.abs(half - [255, 127, 127]).max() <= 1


def transparent(mode: str) -> tuple[Image.Image, dict]:
    """The photo, its left half transparent, and options to save it with."""
    alpha = np.full(GREY.shape, 255, np.uint8)
    alpha[:, :12] = 0
    image = PHOTO.convert("RGBA")
    image.putalpha(Image.fromarray(alpha))
    if mode == "palette":
        palette = PHOTO.convert("P", palette=Image.Palette.ADAPTIVE, colors=4)
        left = {palette.getpixel((2, 2)), palette.getpixel((2, 13))}
        return palette, {"transparency": bytes(0 if index in left else 255 for index in range(4))}
    return (image if mode == "RGBA" else image.convert("LA")), {}


@pytest.mark.parametrize("mode", ["RGBA", "LA", "palette"])
def test_transparent_parts_are_white(mode, tmp_path):
    image, options = transparent(mode)
    result = opened(tmp_path, image, "a.png", **options)
    assert (result[:, :12] == 255).all()
    right = GREY[..., None] if mode == "LA" else np.asarray(PHOTO)
    assert np.abs(result - right)[:, 12:].max() <= 1


@pytest.mark.parametrize(("mode", "key"), [("RGB", (0, 255, 0)), ("L", int(GREY[0, -1]))])
def test_a_colour_that_stands_for_transparent_is_white(mode, key, tmp_path):
    result = opened(tmp_path, PHOTO.convert(mode), "a.png", transparency=key)
    assert (result[:8, 12:] == 255).all()
    assert (result[:8, :12] == np.asarray(PHOTO.convert(mode).convert("RGB"))[:8, :12]).all()


def test_half_transparent_is_half_white(tmp_path):
    assert (
        np.abs(opened(tmp_path, Image.new("RGBA", (2, 2), (200, 0, 0, 128)), "a.png")[0, 0] - [227, 127, 127]).max()
        <= 1
    )


# What turns an upright photo into what a camera stores with this orientation
@pytest.mark.parametrize(
    ("orientation", "stored"),
    [
        (1, None), (2, Image.Transpose.FLIP_LEFT_RIGHT), (3, Image.Transpose.ROTATE_180),
        (4, Image.Transpose.FLIP_TOP_BOTTOM), (5, Image.Transpose.TRANSPOSE), (6, Image.Transpose.ROTATE_90),
        (7, Image.Transpose.TRANSVERSE), (8, Image.Transpose.ROTATE_270),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.tif"])
def test_an_image_is_turned_upright_as_its_exif_orientation_says(name, orientation, stored, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = PHOTO if stored is None else PHOTO.transpose(stored)
    options = {"a.jpg": {"quality": 100, "subsampling": 0}, "a.webp": {"lossless": True}}.get(name, {})
    assert np.abs(opened(tmp_path, image, name, exif=exif, **options) - np.asarray(PHOTO)).max() <= 3


@pytest.mark.parametrize("orientation", [0, 9, 255])
def test_an_orientation_that_means_nothing_turns_nothing(orientation, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert (opened(tmp_path, PHOTO, "a.png", exif=exif) == np.asarray(PHOTO)).all()


def test_broken_exif_data_turns_nothing(tmp_path):
    assert opened(tmp_path, PHOTO, "a.jpg", exif=b"Exif\0\0garbage that is no table at all").shape == (16, 24, 3)


def test_of_an_animation_the_first_image_is_taken(tmp_path):
    red = Image.new("RGB", PHOTO.size, "red")
    for name in ("a.gif", "a.webp", "a.tif"):
        options = {"lossless": True} if name == "a.webp" else {}
        result = opened(tmp_path, PHOTO, name, save_all=True, append_images=[red], **options)
        assert np.abs(result - np.asarray(PHOTO)).max() <= 3


def test_no_file_stays_open(tmp_path, monkeypatch):
    red = Image.new("RGB", PHOTO.size, "red")
    PHOTO.save(tmp_path / "a.gif", save_all=True, append_images=[red])
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        unraisable = []
        monkeypatch.setattr(sys, "unraisablehook", unraisable.append)
        open_image(tmp_path / "a.gif")
    assert not unraisable


# --- the whole way


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("with_test", [True, False], ids=["with test", "only train"])
def test_a_folder_of_mixed_images_trains_and_is_tested(with_test, tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 6
    kinds = [
        ("jpg", "JPEG", "RGB", {"exif": turned}), ("png", "PNG", "RGBA", {}), ("PNG", "PNG", "LA", {}),
        ("gif", "GIF", "P", {}), ("tif", "TIFF", "CMYK", {}), ("bmp", "BMP", "1", {}),
    ]  # fmt: skip
    rng = np.random.default_rng(0)
    for name, size in (("red panda", 1), ("käse", 3), ("3", 6)):
        for split in ("train", "test") if with_test else ("train",):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            for number in range(size):
                suffix, kind, mode, options = kinds[number]
                image = Image.fromarray(rng.integers(0, 256, (24 + 8 * number, 40, 3), dtype=np.uint8)).convert(mode)
                path = tmp_path / "data" / split / name / f"{number}.{suffix}"
                path.write_bytes(encoded(image, kind, **options))
    output = tmp_path / "out"
    assert main([
        "--dataset-config-file", str(ROOT / "configs" / "datasets" / "folder.yaml"), "--root", str(tmp_path / "data"),
        "--config-file", str(ROOT / "configs" / "trainers" / "HeGraphAdapter" / "mini.yaml"),
        "--shots", "2", "--seed", "1", "--output-dir", str(output),
        "OPTIM.MAX_EPOCH", "1", "TRAINER.HEGRAPHADAPTER.MIN_STEPS", "1", "DATALOADER.NUM_WORKERS", "0",
        "TRAINER.HEGRAPHADAPTER.FEATURES.DIR", str(tmp_path / "features"),
    ]) == 0  # fmt: skip
    record = json.loads((output / "result.json").read_text())
    assert record["dataset"] == "ImageFolder"
    assert record["num_train"] == 5  # one of a class that has one, two of the others
    if with_test:
        assert record["num_test"] == 10
        assert 0 <= record["accuracy"] <= 100
    else:
        assert record["accuracy"] is None
    assert {row[2] for row in json.loads((output / "split.json").read_text())["train"]} == {"3", "käse", "red panda"}


@pytest.mark.parametrize(
    "content", [b"", b"not an image", encoded(PHOTO.resize((200, 200)), "JPEG")[:-600], "bomb"],
    ids=["empty", "text", "cut short", "of a size that would fill the memory"],
)  # fmt: skip
def test_an_image_that_cannot_be_read_is_one_line_of_error_that_names_it(content, tmp_path, capsys):
    if content == "bomb":  # a header alone: 100000 x 100000 pixels
        header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
        content = (
            b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")
        )
    make(tmp_path, "data/train/ant/1.png", "data/train/bee/1.png")
    PHOTO.save(tmp_path / "data/train/ant/1.png")
    (tmp_path / "data/train/bee/1.png").write_bytes(content)
    code = main([
        "--dataset-config-file", str(ROOT / "configs" / "datasets" / "folder.yaml"), "--root", str(tmp_path / "data"),
        "--config-file", str(ROOT / "configs" / "trainers" / "HeGraphAdapter" / "mini.yaml"),
        "--shots", "1", "--seed", "1", "--output-dir", str(tmp_path / "out"), "DATALOADER.NUM_WORKERS", "0",
        "TRAINER.HEGRAPHADAPTER.FEATURES.DIR", str(tmp_path / "features"),
    ])  # fmt: skip
    assert code == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: cannot read the image train/bee/1.png of ImageFolder: ")


# --- Hugging Face's metadata.csv


def test_a_metadata_file_in_each_split_names_its_images(tmp_path):
    make(tmp_path, "train/1.jpg", "train/more/2.jpg", "validation/3.jpg", "test/4.jpg")
    (tmp_path / "train" / "metadata.csv").write_text("file_name,label,notes\n1.jpg,bee,x\nmore/2.jpg,ant,y\n")
    (tmp_path / "validation" / "metadata.csv").write_text("file_name,label\n3.jpg,bee\n")
    (tmp_path / "test" / "metadata.csv").write_text("label,file_name\nant,4.jpg\n")
    dataset = load(tmp_path)
    assert rows_of(dataset) == {
        "train": [("train/1.jpg", 1, "bee"), ("train/more/2.jpg", 0, "ant")],
        "val": [("validation/3.jpg", 1, "bee")],
        "test": [("test/4.jpg", 0, "ant")],
    }
    dataset.check_files()


def test_one_metadata_file_tells_splits_by_folder_or_by_column(tmp_path):
    make(tmp_path, "train/1.jpg", "test/2.jpg", "3.jpg")
    (tmp_path / "metadata.csv").write_text("file_name,label\ntrain/1.jpg,bee\ntest/2.jpg,bee\n")
    rows = rows_of(load(tmp_path))
    assert [path for path, _, _ in rows["train"]] == ["train/1.jpg"]
    assert [path for path, _, _ in rows["test"]] == ["test/2.jpg"]
    (tmp_path / "metadata.csv").write_text("file_name,label,split\ntrain/1.jpg,bee,test\n3.jpg,bee,\n")
    rows = rows_of(load(tmp_path))
    assert [path for path, _, _ in rows["test"]] == ["train/1.jpg"]


@pytest.mark.parametrize("column", ["", ",split"])
@pytest.mark.parametrize(
    "test", ["test/2.jpg", "./test/2.jpg", "Test/2.jpg", "train/../test/2.jpg", "{root}/test/2.jpg", "EVAL//2.jpg"]
)
def test_the_folder_of_a_file_name_is_its_first_one_below_the_table_in_any_case_and_spelling(test, column, tmp_path):
    rows = f"./train/1.jpg,bee\n{test.format(root=tmp_path)},bee\n".replace("\n", f"{column and ','}\n")
    (tmp_path / "metadata.csv").write_text(f"file_name,label{column}\n{rows}")
    dataset = load(tmp_path)
    assert [path for path, _, _ in rows_of(dataset)["train"]] == ["train/1.jpg"]
    assert len(dataset.test) == 1


@pytest.mark.parametrize("column", ["", ",split"])
@pytest.mark.parametrize("image", ["3.jpg", "holdout/3.jpg", "../test/3.jpg", "test.jpg"])
def test_a_file_name_without_a_folder_of_a_split_among_others_is_named(image, column, tmp_path):
    rows = f"train/1.jpg,bee\n{image},bee\n".replace("\n", f"{column and ','}\n")
    (tmp_path / "metadata.csv").write_text(f"file_name,label{column}\n{rows}")
    with pytest.raises(UserError, match=rf"metadata\.csv, line 3: {image} has no split, .* move it to a folder train"):
        load(tmp_path)


def test_file_names_without_a_folder_of_a_split_are_all_train(tmp_path):
    (tmp_path / "metadata.csv").write_text("file_name,label\n1.jpg,bee\nmore/2.jpg,ant\n")
    assert [path for path, _, _ in rows_of(load(tmp_path))["train"]] == ["1.jpg", "more/2.jpg"]


@pytest.mark.parametrize("folder", ["test", "Test", "validation"])
def test_a_folder_of_a_split_without_a_metadata_file_beside_one_with_it_is_named(folder, tmp_path, caplog):
    make(tmp_path, "train/1.jpg", f"{folder}/2.jpg", "notes/3.jpg")
    (tmp_path / "train" / "metadata.csv").write_text("file_name,label\n1.jpg,bee\n")
    with caplog.at_level(logging.WARNING):
        assert load(tmp_path).test == []
    (said,) = caplog.messages
    assert said.startswith(f"{tmp_path}: left out are the folders {folder}; a folder that is read holds a metadata.csv")


def test_class_folders_are_read_as_before_where_a_metadata_file_has_no_file_names(tmp_path):
    make(tmp_path, "train/bee/1.jpg")
    (tmp_path / "metadata.csv").write_text("author,year\nme,2020\n")
    assert rows_of(load(tmp_path))["train"] == [("train/bee/1.jpg", 0, "bee")]


def test_a_metadata_file_without_labels_says_which_columns_it_needs(tmp_path):
    make(tmp_path, "train/1.jpg")
    (tmp_path / "train" / "metadata.csv").write_text("file_name,text\n1.jpg,a bee\n")
    with pytest.raises(UserError, match=r"metadata\.csv must have the columns path,label\[,split\]"):
        load(tmp_path)
