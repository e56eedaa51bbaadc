"""What is opened as an image, and how: formats, sides, EXIF, depth. What is not is told in one line."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from trainers.hegraph.datasets.images import IMAGE_SUFFIXES, MAX_RATIO, ORIENTATIONS, open_image, reason, to_rgb

ORIENTATION = 0x0112


def photo(**tags: object) -> Image.Image:
    """A JPEG of 3 x 2 blocks with EXIF tags, such as `t0112=6`."""
    blocks = np.random.default_rng(0).integers(0, 256, (2, 3, 3), dtype=np.uint8)
    image = Image.fromarray(blocks.repeat(8, 0).repeat(8, 1))
    exif = image.getexif()
    for tag, value in tags.items():
        exif[int(tag[1:], 16)] = value
    file = io.BytesIO()
    image.save(file, "jpeg", exif=exif)
    return Image.open(file)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_turns_the_image_as_pillow_does(orientation):
    image = photo(t0112=orientation)
    assert image.getexif()[ORIENTATION] == orientation
    assert to_rgb(image).tobytes() == ImageOps.exif_transpose(image).convert("RGB").tobytes()
    assert (orientation in ORIENTATIONS) == (orientation > 1)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_turns_nothing(orientation):
    image = photo(t0112=orientation)
    assert to_rgb(image).tobytes() == image.convert("RGB").tobytes()


@pytest.mark.parametrize("odd", [None, "word", (6, 6), b"\xff", [6], float("nan"), {}])
def test_an_orientation_of_another_type_turns_nothing(monkeypatch, odd):
    image = photo()
    monkeypatch.setattr(image, "getexif", lambda: {ORIENTATION: odd})
    assert to_rgb(image).size == (24, 16)


def test_exif_that_pillow_cannot_read_does_not_matter(monkeypatch):
    def fail():
        raise SyntaxError("not a TIFF file (header b'' not valid)")

    image = photo()
    monkeypatch.setattr(image, "getexif", fail)
    assert to_rgb(image).size == (24, 16)


def test_exif_that_pillow_cannot_write_again_does_not_keep_the_photo_from_being_turned(monkeypatch):
    def fail(*args):
        raise TypeError("a tag of an odd type")

    monkeypatch.setattr(Image.Exif, "tobytes", fail)
    file = io.BytesIO()
    Image.effect_noise((24, 16), 50).save(file, "jpeg")
    content = file.getvalue()
    tags = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    segment = b"\xff\xe1" + (len(tags) + 2).to_bytes(2, "big") + tags
    image = Image.open(io.BytesIO(content[:2] + segment + content[2:]))
    assert to_rgb(image).size == (16, 24)


def problem_of(source: Path | bytes) -> str:
    with pytest.raises(Exception) as caught:  # Pillow's are of many kinds
        open_image(source)
    return reason(caught.value)


@pytest.mark.parametrize("kind", ["EPS", "PDF", "ICNS", "TGA"])
def test_a_format_that_is_not_documented_is_not_opened_whatever_the_file_is_called(tmp_path, kind, monkeypatch):
    """Pillow would start Ghostscript for an EPS file called photo.jpg."""
    monkeypatch.setattr("subprocess.check_call", lambda *args, **kwargs: pytest.fail("a program was started"))
    path = tmp_path / "photo.jpg"
    Image.new("RGB", (8, 8)).save(path, format=kind)
    assert problem_of(path).startswith("is no image, or of a format that is not read (JPEG, PNG, ")
    assert problem_of(path.read_bytes()).startswith("is no image")


@pytest.mark.parametrize("suffix", IMAGE_SUFFIXES)
def test_every_documented_ending_is_opened(tmp_path, suffix):
    kind = {".jfif": "JPEG", ".jpe": "JPEG"}.get(suffix)
    Image.new("RGB", (8, 8), (10, 200, 90)).save(tmp_path / f"a{suffix}", format=kind)
    image = open_image(tmp_path / f"a{suffix}")
    assert (image.mode, image.size) == ("RGB", (8, 8))
    if suffix not in (".pgm", ".pbm"):
        assert np.abs(np.asarray(image).astype(int) - [10, 200, 90]).max() < 30


def test_a_strip_is_refused_before_it_is_decoded(tmp_path):
    for size, refused in (((MAX_RATIO, 1), False), ((MAX_RATIO + 1, 1), True), ((1, 100_000), True)):
        Image.new("1", size).save(tmp_path / "strip.png")
        said = "" if not refused else f"its sides differ too much ({size[0]} x {size[1]} pixels)"
        assert (problem_of(tmp_path / "strip.png") if refused else "") == said
    with pytest.raises(ValueError, match="its sides differ too much"):
        open_image(tmp_path / "strip.png", as_stored=True)


def test_what_opening_would_wait_for_and_what_is_not_there_is_told(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "empty").touch()
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert problem_of(tmp_path / "pipe") == "is no regular file"
    assert problem_of(tmp_path) == "is a folder"
    assert problem_of(tmp_path / "empty") == problem_of(b"") == "is empty (0 bytes)"
    assert problem_of(tmp_path / "link") == f"is a link to {tmp_path / 'gone'}, which is not there"
    assert "symbolic links" in problem_of(tmp_path / "loop")
    assert problem_of(tmp_path / "gone") == "No such file or directory"


def test_an_image_as_dassl_reads_it_is_neither_turned_nor_put_on_white(tmp_path):
    photo(t0112=6).save(tmp_path / "turned.jpg", exif=photo(t0112=6).getexif())
    assert open_image(tmp_path / "turned.jpg").size == (16, 24)
    assert open_image(tmp_path / "turned.jpg", as_stored=True).size == (24, 16)
    Image.new("RGBA", (2, 2), (10, 20, 30, 0)).save(tmp_path / "clear.png")
    assert open_image(tmp_path / "clear.png").getpixel((0, 0)) == (255, 255, 255)
    assert open_image(tmp_path / "clear.png", as_stored=True).getpixel((0, 0)) == (10, 20, 30)
