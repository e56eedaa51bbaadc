"""Thumbnails: small, clean, in order, and no trouble when they are damaged."""

from __future__ import annotations

import os

import pytest
from PIL import Image

from trainers.hegraph.models.folder import MAX_BYTES, read_thumbnail, write_thumbnails


def test_thumbnails_are_read_in_the_order_in_which_they_were_written_last(tmp_path):
    exif = Image.Exif()
    exif[0x010E] = "taken at home"
    Image.new("RGB", (100, 50), "red").save(tmp_path / "photo.jpg", exif=exif, comment=b"at home")
    write_thumbnails(tmp_path, [Image.new("RGB", (8, 8))] * 3)
    with Image.open(tmp_path / "photo.jpg") as photo:
        write_thumbnails(tmp_path, [photo, Image.new("RGBA", (100, 50), "lime")])
    for position in (0, 1):
        image = read_thumbnail(tmp_path, position)
        assert (image.mode, image.size) == ("RGB", (64, 32))
        pixel = image.getpixel((10, 10))
        assert pixel.index(max(pixel)) == position
    assert read_thumbnail(tmp_path, 2) is None
    assert b"home" not in (tmp_path / "thumbnails" / "00000.jpg").read_bytes()


@pytest.mark.parametrize("how", ["text", "long", "wide", "PNG", "pipe"])
def test_a_file_that_is_no_thumbnail_is_not_shown(how, tmp_path):
    write_thumbnails(tmp_path, [Image.new("RGB", (64, 64), "red")])
    path = tmp_path / "thumbnails" / "00000.jpg"
    content = {"text": b"no image", "long": path.read_bytes() + bytes(MAX_BYTES)}
    path.unlink()
    if how == "pipe":
        os.mkfifo(path)  # which is not waited for
    elif how in content:
        path.write_bytes(content[how])
    else:
        Image.new("RGB", (65 if how == "wide" else 8, 8)).save(path, format="PNG" if how == "PNG" else "JPEG")
    assert read_thumbnail(tmp_path, 0) is None
