"""Thumbnails: small, clean, in order, and no trouble when they are damaged."""

from __future__ import annotations

import os

import pytest
from PIL import Image

from trainers.hegraph.models.thumbnails import MAX_BYTES, read_thumbnail, write_thumbnails


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


def test_a_thumbnail_keeps_nothing_of_the_file_but_its_pixels(tmp_path):
    exif = Image.Exif()
    exif[0x010E] = "taken at home"
    Image.new("RGB", (80, 80)).save(tmp_path / "photo.jpg", exif=exif, comment=b"at home")
    with Image.open(tmp_path / "photo.jpg") as photo:
        write_thumbnails(tmp_path, [photo])
    assert b"home" in (tmp_path / "photo.jpg").read_bytes()
    assert b"home" not in (tmp_path / "thumbnails" / "00000.jpg").read_bytes()


def test_writing_again_replaces_all_thumbnails(tmp_path):
    write_thumbnails(tmp_path, [Image.new("RGB", (8, 8))] * 3)
    write_thumbnails(tmp_path, [Image.new("RGB", (9, 9))])
    assert read_thumbnail(tmp_path, 0).size == (9, 9)
    assert read_thumbnail(tmp_path, 1) is None
    assert [path.name for path in tmp_path.iterdir()] == ["thumbnails"]


def damage(path, how):
    if how == "cut":
        path.write_bytes(path.read_bytes()[:200])
    elif how == "text":
        path.write_text("no image")
    elif how == "long":
        path.write_bytes(path.read_bytes() + bytes(MAX_BYTES))
    elif how == "wide":
        Image.new("RGB", (65, 8)).save(path)
    else:
        Image.new("RGB", (8, 8)).save(path, format=how)


@pytest.mark.parametrize("how", ["cut", "text", "long", "wide", "PNG", "GIF", "TIFF"])
def test_a_file_that_is_no_thumbnail_is_not_shown_and_that_is_logged(how, tmp_path, caplog):
    write_thumbnails(tmp_path, [Image.new("RGB", (64, 64), "red")])
    damage(tmp_path / "thumbnails" / "00000.jpg", how)
    assert read_thumbnail(tmp_path, 0) is None
    [record] = caplog.records
    assert "00000.jpg is not shown" in record.message


def test_a_pipe_in_place_of_a_thumbnail_is_not_waited_for(tmp_path):
    (tmp_path / "thumbnails").mkdir()
    os.mkfifo(tmp_path / "thumbnails" / "00000.jpg")
    assert read_thumbnail(tmp_path, 0) is None
