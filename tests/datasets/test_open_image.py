"""What is opened as an image, and how: formats, sides, EXIF, depth, colours. What is not is told in one line."""

from __future__ import annotations

import io
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from trainers.hegraph.datasets.images import IMAGE_SUFFIXES, MAX_RATIO, is_image, open_image, reason, to_rgb

ORIENTATION = 0x0112
# A small photo: red, green and blue in three corners, grey in the fourth
PIXELS = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [128, 128, 128]]], dtype=np.uint8)
PHOTO = Image.fromarray(PIXELS).resize((24, 16), Image.Resampling.NEAREST)
GREY = np.array(PHOTO.convert("L"))
EXACT = {"a.jpg": {"quality": 100, "subsampling": 0}, "a.webp": {"lossless": True}}


def opened(tmp_path: Path, image: Image.Image | np.ndarray | bytes, name: str, **options: object) -> np.ndarray:
    if isinstance(image, bytes):
        (tmp_path / name).write_bytes(image)
    else:
        image = image if isinstance(image, Image.Image) else Image.fromarray(image)
        image.save(tmp_path / name, **EXACT.get(name, {}), **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = open_image(tmp_path / name)
    assert result.mode == "RGB"
    return np.asarray(result).astype(int)


# --- colours and depth


def test_colours_palettes_grey_black_and_white_and_print_colours_become_screen_colours(tmp_path):
    for name, most in (("a.png", 0), ("a.bmp", 0), ("a.ppm", 0), ("a.tif", 0), ("a.jpg", 3), ("a.webp", 3)):
        assert np.abs(opened(tmp_path, PHOTO, name) - np.asarray(PHOTO)).max() <= most
    palette = PHOTO.convert("P", palette=Image.Palette.ADAPTIVE, colors=4)
    for name in ("a.png", "a.gif"):
        assert np.abs(opened(tmp_path, palette, name) - np.asarray(PHOTO)).max() <= 1
    assert (opened(tmp_path, PHOTO.convert("L"), "a.png") == GREY[..., None]).all()
    assert opened(tmp_path, Image.new("1", (3, 2), 1), "b.png").min() == 255
    assert np.abs(opened(tmp_path, PHOTO.convert("CMYK"), "a.jpg") - np.asarray(PHOTO))[4, 4].max() <= 12


def test_16_bits_and_floats_become_0_to_255_and_keep_their_scale_and_what_is_no_number_is_black(tmp_path):
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


def test_transparent_parts_are_white(tmp_path):
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


# --- EXIF


def photo(orientation: int) -> Image.Image:
    """A JPEG of 3 x 2 blocks."""
    blocks = np.random.default_rng(0).integers(0, 256, (2, 3, 3), dtype=np.uint8)
    image = Image.fromarray(blocks.repeat(8, 0).repeat(8, 1))
    (exif := image.getexif())[ORIENTATION] = orientation
    file = io.BytesIO()
    image.save(file, "jpeg", exif=exif)
    return Image.open(file)


def test_every_orientation_turns_the_image_as_pillow_does_and_odd_ones_and_damaged_exif_do_not_matter(
    tmp_path, monkeypatch
):
    for orientation in range(1, 9):
        image = photo(orientation)
        assert to_rgb(image).tobytes() == ImageOps.exif_transpose(image).convert("RGB").tobytes()
    (exif := Image.Exif())[ORIENTATION] = 6
    for name in ("a.png", "a.webp", "a.tif"):  # what a camera stores
        turned = opened(tmp_path, PHOTO.transpose(Image.Transpose.ROTATE_90), name, exif=exif)
        assert np.abs(turned - np.asarray(PHOTO)).max() <= 3
    image = photo(1)
    for odd in (0, 9, "word", [6]):
        monkeypatch.setattr(image, "getexif", lambda odd=odd: {ORIENTATION: odd})
        assert to_rgb(image).tobytes() == image.convert("RGB").tobytes()
    monkeypatch.setattr(image, "getexif", lambda: 1 / 0)
    assert to_rgb(image).size == (24, 16)


def test_an_image_as_dassl_reads_it_is_neither_turned_nor_put_on_white(tmp_path):
    photo(6).save(tmp_path / "turned.jpg", exif=photo(6).getexif())
    Image.new("RGBA", (2, 2), (10, 20, 30, 0)).save(tmp_path / "clear.png")
    assert open_image(tmp_path / "turned.jpg", as_stored=True).size == (24, 16)
    assert open_image(tmp_path / "clear.png", as_stored=True).getpixel((0, 0)) == (10, 20, 30)


# --- what is no image


def problem_of(source: Path | bytes, **how: bool) -> str:
    with pytest.raises(Exception) as caught:  # Pillow's are of many kinds
        open_image(source, **how)
    return reason(caught.value)


def test_every_documented_format_is_opened_and_no_other_whatever_the_file_is_called(tmp_path, monkeypatch):
    """Pillow would start Ghostscript for an EPS file called photo.jpg."""
    monkeypatch.setattr("subprocess.check_call", lambda *args, **kwargs: pytest.fail("a program was started"))
    for kind in ("EPS", "TGA"):
        path = tmp_path / "photo.jpg"
        Image.new("RGB", (8, 8)).save(path, format=kind)
        for source in (path, path.read_bytes()):
            assert problem_of(source).startswith("is no image, or of a format that is not read (JPEG, PNG, ")
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    for suffix in IMAGE_SUFFIXES:
        assert f"`{suffix}`" in page and is_image(f"A{suffix.upper()}")
        kind = {".jfif": "JPEG", ".jpe": "JPEG"}.get(suffix)
        Image.new("RGB", (8, 8), (10, 200, 90)).save(tmp_path / f"a{suffix}", format=kind)
        image = open_image(tmp_path / f"a{suffix}")
        assert (image.mode, image.size) == ("RGB", (8, 8))
        if suffix not in (".pgm", ".pbm"):
            assert np.abs(np.asarray(image).astype(int) - [10, 200, 90]).max() < 30


def test_a_strip_and_what_would_fill_the_memory_are_refused_before_they_are_decoded(tmp_path, monkeypatch):
    Image.new("1", (MAX_RATIO, 1)).save(tmp_path / "most.png")
    assert open_image(tmp_path / "most.png").size == (MAX_RATIO, 1)
    for width, height in ((MAX_RATIO + 1, 1), (1, 100_000)):
        Image.new("1", (width, height)).save(tmp_path / "strip.png")
        for as_stored in (False, True):
            said = problem_of(tmp_path / "strip.png", as_stored=as_stored)
            assert said == f"its sides differ too much ({width} x {height} pixels)"
    with pytest.raises(ValueError, match=r"\(0 x 4 pixels\)"):
        to_rgb(Image.new("RGB", (0, 4)))
    assert Image.MAX_IMAGE_PIXELS == 178956970 // 2  # Pillow refuses twice as many
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", MAX_RATIO // 4)
    assert "exceeds limit of 500 pixels" in problem_of(tmp_path / "most.png")


def test_what_opening_would_wait_for_and_what_is_not_there_is_told(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "empty").touch()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for source, said in (
        (tmp_path / "pipe", "is no regular file"),
        (tmp_path, "is a folder"),
        (tmp_path / "empty", "is empty (0 bytes)"),
        (b"", "is empty (0 bytes)"),
        (tmp_path / "loop", "Too many levels of symbolic links"),
        (tmp_path / "gone", "No such file or directory"),
    ):
        assert problem_of(source) == said
