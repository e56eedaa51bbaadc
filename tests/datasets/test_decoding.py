"""Decoding of JPEG photos at a reduced scale."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trainers.hegraph.datasets import decoding
from trainers.hegraph.datasets.decoding import FULL, REDUCED, LazyImage
from trainers.hegraph.datasets.images import TURNS, open_image, reason

ORIENTATION = 0x0112
SIZE = (800, 600)
TILES = np.random.default_rng(4).integers(0, 256, (3, 4, 3), dtype=np.uint8)
UPRIGHT = Image.fromarray(TILES.repeat(200, 0).repeat(200, 1))  # without any symmetry
INVERSE = {Image.Transpose.ROTATE_90: Image.Transpose.ROTATE_270, Image.Transpose.ROTATE_270: Image.Transpose.ROTATE_90}


def stored(orientation: int) -> tuple[Image.Image, Image.Exif]:
    """Pixels and tags that a camera stores for the upright image."""
    tags = Image.Exif()
    tags[ORIENTATION] = orientation
    if orientation == 1:
        return UPRIGHT, tags
    turn = TURNS[orientation - 2]
    return UPRIGHT.transpose(INVERSE.get(turn, turn)), tags


def difference(image: Image.Image, other: Image.Image) -> float:
    return float(np.abs(np.asarray(image).astype(int) - np.asarray(other)).mean())


def check_reduced(path: Path) -> None:
    """Compare an image of half the sides with the box average of the whole image."""
    lazy = LazyImage.read(path, REDUCED)
    assert lazy.size == SIZE
    half = lazy.decoded(2)
    assert (half.pixels.mode, half.pixels.size, half.size, half.factor) == ("RGB", (400, 300), SIZE, 2)
    assert difference(half.pixels, open_image(path).reduce(2)) < 1
    assert half.pixels.info == {} and not half.pixels.getexif()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_reduced_photo_is_upright(tmp_path, orientation):
    image, tags = stored(orientation)
    image.save(tmp_path / "a.jpg", exif=tags, quality=95)
    check_reduced(tmp_path / "a.jpg")


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_grey_and_cmyk_photos_are_reduced(tmp_path, mode):
    UPRIGHT.convert(mode).save(tmp_path / "a.jpg", quality=95)
    check_reduced(tmp_path / "a.jpg")


def test_progressive_photo_is_reduced(tmp_path):
    UPRIGHT.save(tmp_path / "a.jpg", progressive=True, quality=95)
    check_reduced(tmp_path / "a.jpg")


def test_first_frame_of_mpo_is_reduced(tmp_path):
    image, tags = stored(6)
    image.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[image.rotate(180)], exif=tags, quality=95)
    check_reduced(tmp_path / "a.jpg")


@pytest.mark.parametrize("progressive", [False, True])
def test_truncated_photo_has_the_reason_of_full_size(tmp_path, progressive):
    UPRIGHT.save(tmp_path / "a.jpg", progressive=progressive)
    content = (tmp_path / "a.jpg").read_bytes()
    cut = content[: 2 * len(content) // 3]
    with pytest.raises(OSError, match="truncated") as at_full_size:
        open_image(cut)
    for factor in decoding.FACTORS:
        with pytest.raises(OSError, match="truncated") as reduced:
            LazyImage.read(cut, REDUCED).decoded(factor)
        assert reason(reduced.value) == reason(at_full_size.value)


@pytest.mark.parametrize(("limit", "factor"), [(0.1, 1), (1.99, 1), (2, 2), (3.99, 2), (4, 4), (7.99, 4), (1e9, 8)])
def test_largest_factor_up_to_the_limit_is_taken(limit, factor):
    file = io.BytesIO()
    UPRIGHT.save(file, "JPEG")
    decoded = LazyImage.read(file.getvalue(), REDUCED).decoded(limit)
    assert (decoded.factor, decoded.pixels.size) == (factor, (800 // factor, 600 // factor))


def test_sides_are_rounded_up(tmp_path):
    UPRIGHT.resize((801, 603)).save(tmp_path / "a.jpg")
    decoded = LazyImage.read(tmp_path / "a.jpg", REDUCED).decoded(4)
    assert (decoded.size, decoded.pixels.size) == ((801, 603), (201, 151))


def test_other_formats_keep_their_size(tmp_path):
    for name in ("a.png", "a.webp", "a.tif", "a.bmp"):
        UPRIGHT.save(tmp_path / name)
        decoded = LazyImage.read(tmp_path / name, REDUCED).decoded(8)
        assert decoded.factor == 1 and decoded.pixels.tobytes() == open_image(tmp_path / name).tobytes()


def test_full_decoding_equals_open_image(tmp_path):
    image, tags = stored(5)
    image.save(tmp_path / "a.jpg", exif=tags)
    decoded = LazyImage.read(tmp_path / "a.jpg", FULL).decoded(8)
    assert decoded.factor == 1 and decoded.pixels.tobytes() == open_image(tmp_path / "a.jpg").tobytes()


def test_photo_is_decoded_once_for_each_factor(tmp_path, monkeypatch):
    UPRIGHT.save(tmp_path / "a.jpg")
    lazy = LazyImage.read(tmp_path / "a.jpg", REDUCED)
    decode = decoding.decoded
    sizes = []
    monkeypatch.setattr(decoding, "decoded", lambda file: sizes.append(file.size) or decode(file))
    for limit in (2, 1, 2.5, 1, 2):
        lazy.decoded(limit)
    assert sizes == [(400, 300), SIZE]


def test_photo_with_too_many_pixels_is_refused(tmp_path):
    UPRIGHT.save(tmp_path / "a.jpg")
    with pytest.raises(Image.DecompressionBombError, match="800 x 600 pixels are too many"):
        LazyImage.read(tmp_path / "a.jpg", REDUCED, 800 * 600 - 1)
