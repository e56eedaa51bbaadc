"""Photos with odd EXIF tags are read, and stand upright where the tag says how."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from trainers.hegraph.datasets.folder import ORIENTATIONS, to_rgb

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
