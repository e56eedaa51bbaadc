"""The class `Dataset`, the digits, and opening of images."""

import hashlib
import os
import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from dataset_files import write
from PIL import Image, ImageFilter
from sklearn.datasets import load_digits

from trainers.hegraph import UserError, load_dataset
from trainers.hegraph.datasets.base import Dataset, abbreviate, check_classes, class_names
from trainers.hegraph.datasets.images import (
    IMAGE_SUFFIXES,
    MAX_RATIO,
    is_image,
    open_image,
    open_upload,
    pixel_hash,
    reason,
    to_rgb,
)
from trainers.hegraph.datasets.splits import Item

CLASSES = ("ant", "bee", "cow", "dog", "elk")


@pytest.fixture
def dataset() -> Dataset:
    """Five classes in memory; label 2 is the middle one."""
    train, val, test = (
        [Item(f"{split}/{number}.jpg", label, CLASSES[label]) for number, label in enumerate([4, 3, 2, 1, 0, 2])]
        for split in ("train", "val", "test")
    )
    return Dataset("Farm", CLASSES, train, val, test, Image.open)


@pytest.fixture
def on_disk(dataset: Dataset, tmp_path: Path) -> Dataset:
    """The same data set, with a file of three bytes for each image."""
    for path in dataset.paths():
        write(tmp_path / path, "abc")
    return replace(dataset, root=tmp_path)


def test_subsample_halves_classes_as_coop(dataset):
    assert dataset.subsample("all") is dataset
    task = replace(dataset, train=[item for item in dataset.train if item.label != 0], class_ids=tuple("ABCDE"))
    base = task.subsample("base")
    assert (list(base.classnames), list(base.ids)) == (["bee", "cow"], ["B", "C"])
    assert base.test == [Item("test/2.jpg", 1, "cow"), Item("test/3.jpg", 0, "bee"), Item("test/5.jpg", 1, "cow")]
    assert [item.label for item in replace(dataset, train=[]).subsample("new").test] == [1, 0]
    assert not replace(dataset, val=[], test=[]).val_is_test


def test_missing_images_are_counted_once(on_disk):
    on_disk.check_files()
    (on_disk.root / "test/0.jpg").unlink()
    with pytest.raises(UserError, match=r"1 of 12 images are missing below .*: test/0\.jpg; list all: look DIR"):
        replace(on_disk, val=on_disk.test, check_command="look DIR").check_files()
    assert str(on_disk.unreadable_error("val/3.jpg", "is empty")) == "cannot read the image val/3.jpg of Farm: is empty"
    assert [abbreviate(names) for names in ("abcd", "abc", "")] == ["a, b, c, ...", "a, b, c", ""]
    assert abbreviate("ab", 1) == "a, ..."


def test_file_version_follows_content_and_time(on_disk, dataset):
    path, file = "train/0.jpg", on_disk.root / "train/0.jpg"
    os.utime(file, ns=(0, 10**18))
    assert on_disk.file_version(path) == (3, 10**18)
    before = on_disk.files_hash()
    file.write_bytes(b"abcd")
    assert on_disk.file_version(path)[0] == 4 and on_disk.files_hash() != before
    assert dataset.file_version(path) is dataset.files_hash() is None
    file.unlink()
    with pytest.raises(UserError, match=r"cannot read the image train/0\.jpg of Farm: No such file"):
        on_disk.file_version(path)


def test_image_edited_to_the_same_size_changes_the_hash(on_disk):
    before = on_disk.files_hash()
    file = on_disk.root / "train/0.jpg"
    status = file.stat()
    file.write_bytes(bytes(status.st_size))
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert file.stat().st_size == status.st_size and on_disk.files_hash() != before


def test_out_of_memory_is_no_unreadable_image(dataset):
    def open_image(path: str):
        raise MemoryError

    with pytest.raises(MemoryError):
        replace(dataset, open=open_image).read("train/0.jpg")


ANT, BEE, COW = Item("1", 0, "ant"), Item("2", 1, "bee"), Item("3", 2, "cow")


@pytest.mark.parametrize(("pools", "code", "words"), [
    ([[ANT, BEE, Item("3", 0, "wasp")]], "", "3 has label 0 for 'wasp', which is ant in training images"),
    ([[ANT, COW]], "labels.gap", "no item has label 1"),
    ([[ANT, BEE], [ANT, COW]], "", "3 has label 2 for 'cow', which is no class"),
])  # fmt: skip
def test_inconsistent_labels_are_refused(pools, code, words, refused):
    with refused(code, words):
        class_names(*pools)


def test_single_class_is_refused(refused):
    check_classes(2)
    with refused("classes.few", "Farm: expected at least two classes, got 1"):
        check_classes(1, "Farm")


# --- the digits


def test_digits_are_split_by_position():
    digits, (scans, labels) = load_dataset("Digits"), (load_digits().images, load_digits().target)
    numbers = [range(698), range(698, 898), range(898, 1797)]  # test is that of scikit-learn's own example
    for items, rows in zip(digits.splits.values(), numbers):
        assert [item.path for item in items] == [f"digits/{row:04d}" for row in rows]
        assert [item.label for item in items] == labels[rows].tolist()
        assert min(Counter(item.label for item in items).values()) >= 16  # enough for 16 shots
        image = digits.open(items[-1].path)
        assert (image.mode, image.size) == ("RGB", (8, 8))
        assert np.abs(np.asarray(image) - scans[rows[-1]][..., None] * 255 / 16).max() <= 0.5


@pytest.mark.parametrize("row", [898, 899])
def test_digit_domains_change_only_test_images(row):
    digits = load_dataset("Digits")
    scan = digits.open(f"digits/{row:04d}").convert("L")
    noisy = np.asarray(scan) + np.random.default_rng(row).normal(0, 60, (8, 8))
    for name, expected in {
        "DigitsInverted": 255 - np.asarray(scan),
        "DigitsRotated": scan.rotate(25 if row == 899 else -25, Image.Resampling.BILINEAR),
        "DigitsNoisy": noisy.clip(0, 255).round(),
        "DigitsBlurred": scan.filter(ImageFilter.GaussianBlur(0.8)),
    }.items():
        domain = load_dataset(name)
        assert (domain.train, domain.val, domain.test) == ([], [], digits.test)
        assert (np.asarray(domain.open(f"digits/{row:04d}")) == np.asarray(expected)[..., None]).all(), name
    low, high = load_dataset("DigitsLow"), load_dataset("DigitsHigh")
    assert (low.classnames[-1], high.classnames[0], high.train[0].label) == ("four", "five", 0)


# --- opening images


# A small photo: red, green and blue in three corners, grey in the fourth
PIXELS = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [128, 128, 128]]], dtype=np.uint8)
PHOTO = Image.fromarray(PIXELS).resize((24, 16), Image.Resampling.NEAREST)
GREY = np.array(PHOTO.convert("L"))


def opened(tmp_path: Path, image: Image.Image | np.ndarray | bytes, name: str, **options: object) -> np.ndarray:
    if isinstance(image, bytes):
        (tmp_path / name).write_bytes(image)
    else:
        image = image if isinstance(image, Image.Image) else Image.fromarray(image)
        image.save(tmp_path / name, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = open_image(tmp_path / name)
    assert result.mode == "RGB"
    return np.asarray(result).astype(int)


# --- colours and depth


def test_all_colour_modes_become_rgb(tmp_path):
    palette = PHOTO.convert("P", palette=Image.Palette.ADAPTIVE, colors=4)
    for name in ("a.png", "a.gif"):
        assert np.abs(opened(tmp_path, palette, name) - np.asarray(PHOTO)).max() <= 1
    assert (opened(tmp_path, PHOTO.convert("L"), "a.png") == GREY[..., None]).all()
    assert opened(tmp_path, Image.new("1", (3, 2), 1), "b.png").min() == 255
    assert np.abs(opened(tmp_path, PHOTO.convert("CMYK"), "a.jpg", quality=100) - np.asarray(PHOTO))[4, 4].max() <= 12


def test_16_bit_and_float_values_are_scaled(tmp_path):
    values = GREY.astype(np.uint16) * 257
    for name, image in {
        "a.png": values, "a.tif": values, "b.tif": values.astype(">u2"), "c.tif": values.astype(np.int32),
        "a.pgm": b"P5 24 16 65535\n" + values.astype(">u2").tobytes(),
        "d.tif": GREY.astype(np.float32), "e.tif": GREY.astype(np.float32) / 255,
    }.items():  # fmt: skip
        assert (opened(tmp_path, image, name) == GREY[..., None]).all(), name
    assert opened(tmp_path, np.full((4, 4), 200, dtype=np.uint16), "a.png").max() == 1  # of 65535
    for value, expected in ((200, 200), (255, 255), (256, 1), (1.0, 255), (1.5, 2)):  # of 255, of 65535, or of 1
        kind = np.int32 if isinstance(value, int) else np.float32
        assert opened(tmp_path, np.full((4, 4), value, dtype=kind), "a.tif").max() == expected
    for odd in (np.nan, np.inf, -np.inf):
        values = np.array([[odd, 0.5], [0, 1]], dtype=np.float32)
        assert opened(tmp_path, values, "a.tif")[..., 0].tolist() == [[0, 128], [0, 255]]


def test_brightest_value_of_all_strips_decides():
    values = np.full((900, 700), 200, dtype=np.int32)
    values[-1] = 65535
    assert np.unique(np.asarray(to_rgb(Image.fromarray(values)))).tolist() == [1, 255]  # of 65535


def test_hash_of_strips_is_the_hash_of_the_image():
    image = Image.fromarray(np.arange(900 * 700 * 3, dtype=np.uint8).reshape(900, 700, 3))
    digest = hashlib.sha256(b"(700, 900)" + image.tobytes()).digest()
    assert pixel_hash(image) == int.from_bytes(digest[:8], "little", signed=True)


def test_large_transparent_image_is_composited_completely():
    image = Image.new("RGBA", (700, 900), (0, 200, 0, 255))
    image.paste((0, 200, 0, 0), (0, 450, 700, 900))
    expected = Image.new("RGB", (700, 900), (0, 200, 0))
    expected.paste((255, 255, 255), (0, 450, 700, 900))
    assert (np.asarray(to_rgb(image)) == np.asarray(expected)).all()


def test_transparent_parts_become_white(tmp_path):
    image = Image.new("RGBA", (2, 1), (200, 0, 0, 0))
    image.putpixel((1, 0), (0, 200, 0, 255))
    palette = image.convert("RGB").quantize(2)
    white_and_green = [[[255, 255, 255], [0, 200, 0]]]
    assert opened(tmp_path, image, "a.png").tolist() == white_and_green
    assert opened(tmp_path, palette, "b.png", transparency=palette.getpixel((0, 0))).tolist() == white_and_green
    assert opened(tmp_path, image.convert("RGB"), "c.png", transparency=(200, 0, 0)).tolist() == white_and_green
    assert opened(tmp_path, image.convert("LA"), "d.png").tolist() == [[[255] * 3, [117] * 3]]  # 0.587 * 200
    half = opened(tmp_path, Image.new("RGBA", (2, 2), (200, 0, 0, 128)), "e.png")[0, 0]
    assert np.abs(half - [227, 127, 127]).max() <= 1
    for mode, premultiplied in (("LA", "La"), ("RGBA", "RGBa")):
        stored = image.convert(mode)
        assert to_rgb(stored.convert(premultiplied)).tobytes() == to_rgb(stored).tobytes()


# --- EXIF


def test_invalid_exif_orientation_is_ignored(monkeypatch):
    image = PHOTO.copy()
    for odd in (0, 9, "word", [6]):
        monkeypatch.setattr(image, "getexif", lambda odd=odd: {0x0112: odd})
        assert to_rgb(image).tobytes() == PHOTO.tobytes()
    monkeypatch.setattr(image, "getexif", lambda: 1 / 0)
    assert to_rgb(image).tobytes() == PHOTO.tobytes()


# --- refusals


def problem_of(source: Path | bytes, **how: bool) -> str:
    with pytest.raises(Exception) as caught:  # Pillow's are of many kinds
        open_image(source, **how)
    return reason(caught.value)


def test_only_documented_formats_are_opened(tmp_path, monkeypatch):
    """Pillow would start Ghostscript for an EPS file called photo.jpg."""
    monkeypatch.setattr("subprocess.check_call", lambda *args, **kwargs: pytest.fail("a program was started"))
    for kind in ("EPS", "TGA"):
        path = tmp_path / "photo.jpg"
        Image.new("RGB", (8, 8)).save(path, format=kind)
        for source in (path, path.read_bytes()):
            assert problem_of(source).startswith("is not an image in a supported format (JPEG, PNG, ")
    page = (Path(__file__).parents[2] / "docs" / "guides" / "data.md").read_text()
    for suffix in IMAGE_SUFFIXES:
        assert f"`{suffix}`" in page and is_image(f"A{suffix.upper()}")
        if suffix in (".heic", ".heif"):  # which need a package: tests/test_photos.py
            continue
        kind = {".jfif": "JPEG", ".jpe": "JPEG"}.get(suffix)
        Image.new("RGB", (8, 8), (10, 200, 90)).save(tmp_path / f"a{suffix}", format=kind)
        image = open_image(tmp_path / f"a{suffix}")
        assert (image.mode, image.size) == ("RGB", (8, 8))
        if suffix not in (".pgm", ".pbm"):
            assert np.abs(np.asarray(image).astype(int) - [10, 200, 90]).max() < 30


def test_huge_images_are_refused_before_decoding(tmp_path, monkeypatch):
    Image.new("1", (MAX_RATIO, 1)).save(tmp_path / "most.png")
    assert open_image(tmp_path / "most.png").size == (MAX_RATIO, 1)
    for width, height in ((MAX_RATIO + 1, 1), (1, 100_000)):
        Image.new("1", (width, height)).save(tmp_path / "strip.png")
        for as_stored in (False, True):
            problem = problem_of(tmp_path / "strip.png", as_stored=as_stored)
            assert problem == f"its sides differ too much ({width} x {height} pixels)"
    with pytest.raises(ValueError, match=r"\(0 x 4 pixels\)"):
        to_rgb(Image.new("RGB", (0, 4)))
    assert Image.MAX_IMAGE_PIXELS == 178956970 // 2  # Pillow refuses twice as many
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", MAX_RATIO // 4)
    assert "exceeds limit of 500 pixels" in problem_of(tmp_path / "most.png")


@pytest.mark.parametrize(("source", "problem"), [
    ("pipe", "is not a regular file"), (".", "is a folder"), ("empty", "is empty (0 bytes)"),
    (b"", "is empty (0 bytes)"), ("loop", "Too many levels of symbolic links"), ("gone", "No such file or directory"),
])  # fmt: skip
def test_files_that_cannot_be_opened_are_refused(tmp_path, source, problem):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "empty").touch()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    source = source if isinstance(source, bytes) else tmp_path / source
    assert problem_of(source) == problem
    with pytest.raises(UserError) as caught:
        open_upload(source)
    assert str(caught.value) == problem
