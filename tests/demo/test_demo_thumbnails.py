"""Thumbnails: small, clean, in order, and no trouble when they are damaged."""

from __future__ import annotations

import os

import pytest
from PIL import Image

from trainers.hegraph.models.folder import MAX_BYTES, read_thumbnail, write_thumbnails


def test_thumbnails_are_read_in_the_order_in_which_they_were_written(tmp_path):
    colours = ["red", "lime", "blue"]
    modes = ["RGB", "RGBA", "RGB"]
    write_thumbnails(tmp_path, (Image.new(m, (100, 50), colour) for m, colour in zip(modes, colours)))
    assert sorted(path.name for path in (tmp_path / "thumbnails").iterdir()) == ["00000.jpg", "00001.jpg", "00002.jpg"]
    for position, channel in enumerate(range(3)):
        image = read_thumbnail(tmp_path, position)
        assert (image.mode, image.size) == ("RGB", (64, 32))
        pixel = image.getpixel((10, 10))
        assert max(range(3), key=lambda c: pixel[c]) == channel
    assert read_thumbnail(tmp_path, 3) is None


def test_writing_again_replaces_all_thumbnails_and_keeps_nothing_of_a_file_but_its_pixels(tmp_path):
    exif = Image.Exif()
    exif[0x010E] = "taken at home"
    Image.new("RGB", (80, 80)).save(tmp_path / "photo.jpg", exif=exif, comment=b"at home")
    write_thumbnails(tmp_path / "model", [Image.new("RGB", (8, 8))] * 3)
    with Image.open(tmp_path / "photo.jpg") as photo:
        write_thumbnails(tmp_path / "model", [photo])
    assert read_thumbnail(tmp_path / "model", 0).size == (64, 64)
    assert read_thumbnail(tmp_path / "model", 1) is None
    assert b"home" in (tmp_path / "photo.jpg").read_bytes()
    assert b"home" not in (tmp_path / "model" / "thumbnails" / "00000.jpg").read_bytes()
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["thumbnails"]


@pytest.mark.parametrize("how", ["cut", "text", "long", "wide", "PNG"])
def test_a_file_that_is_no_thumbnail_is_not_shown_and_that_is_logged(how, tmp_path, caplog):
    write_thumbnails(tmp_path, [Image.new("RGB", (64, 64), "red")])
    path = tmp_path / "thumbnails" / "00000.jpg"
    content = {"cut": path.read_bytes()[:200], "text": b"no image", "long": path.read_bytes() + bytes(MAX_BYTES)}
    if how in content:
        path.write_bytes(content[how])
    else:
        Image.new("RGB", (65 if how == "wide" else 8, 8)).save(path, format="PNG" if how == "PNG" else "JPEG")
    assert read_thumbnail(tmp_path, 0) is None
    [record] = caplog.records
    assert "00000.jpg is not shown" in record.message


def test_a_pipe_in_place_of_a_thumbnail_is_not_waited_for(tmp_path):
    (tmp_path / "thumbnails").mkdir()
    os.mkfifo(tmp_path / "thumbnails" / "00000.jpg")
    assert read_thumbnail(tmp_path, 0) is None
