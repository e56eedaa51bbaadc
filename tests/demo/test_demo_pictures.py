"""Uploads: only images are opened, and none that would fill the memory."""

from __future__ import annotations

import warnings

import pytest
from PIL import Image

from trainers.hegraph.demo import pictures
from trainers.hegraph.demo.pictures import limit_decoding, open_picture
from trainers.hegraph.utils.errors import UserError


@pytest.mark.parametrize("file_format", pictures.FORMATS)
def test_the_usual_formats_are_read(file_format, tmp_path):
    path = tmp_path / "image"
    Image.new("RGB", (20, 10), "red").save(path, format=file_format)
    image = open_picture(path)
    assert (image.mode, image.size) == ("RGB", (20, 10))


def test_a_photo_is_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright
    Image.new("RGB", (20, 10)).save(tmp_path / "photo.jpg", exif=exif)
    assert open_picture(tmp_path / "photo.jpg").size == (10, 20)


def write(path, kind):
    if kind == "text":
        path.write_text("no image")
    elif kind == "cut":
        Image.effect_noise((64, 64), 50).save(path, format="PNG")
        path.write_bytes(path.read_bytes()[:500])
    elif kind == "EPS":  # Pillow would start Ghostscript for it
        Image.new("L", (8, 8)).save(path, format="EPS")
    elif kind == "SVG":
        path.write_text('<svg xmlns="http://www.w3.org/2000/svg" width="8" height="8"/>')


@pytest.mark.parametrize("kind", ["text", "cut", "EPS", "SVG", "missing"])
def test_what_is_no_image_is_one_clear_line(kind, tmp_path):
    write(tmp_path / "image.png", kind)
    with pytest.raises(UserError, match=r"^this is no image that can be read; take one of JPEG, "):
        open_picture(tmp_path / "image.png")


def test_an_image_of_too_many_pixels_is_not_decoded(tmp_path):
    Image.new("1", (10_000, 5_001)).save(tmp_path / "image.png")
    with pytest.raises(UserError, match="more than 50 million pixels; take a smaller one"):
        open_picture(tmp_path / "image.png")


def test_all_of_pillow_refuses_an_image_of_too_many_pixels(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
    Image.new("1", (10_000, 5_001)).save(tmp_path / "image.png")
    with warnings.catch_warnings():
        limit_decoding()
        with pytest.raises(Image.DecompressionBombWarning):
            Image.open(tmp_path / "image.png")
        with pytest.raises(UserError, match="more than 50 million pixels"):
            open_picture(tmp_path / "image.png")


def test_a_large_file_is_not_opened(tmp_path, monkeypatch):
    Image.new("1", (10, 10)).save(tmp_path / "image.png")
    monkeypatch.setattr(pictures, "MAX_BYTES", 10)
    with pytest.raises(UserError, match="the file has more than 0 MB"):
        open_picture(tmp_path / "image.png")
