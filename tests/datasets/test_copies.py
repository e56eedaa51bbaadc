"""Copies of images: equal pixels in any format, in the splits of own images and among unlabelled images."""

import io
import logging
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from dataset_files import write
from PIL import Image

from trainers.hegraph import UserError, load_dataset
from trainers.hegraph.datasets.copies import content_keys

ROTATED = {0x0112: 6}  # EXIF orientation: to be rotated by 90 degrees


def photo(seed: int, size: tuple[int, int] = (40, 24)) -> Image.Image:
    """Smooth random image, which JPEG changes little."""
    pixels = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)


def stored(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def decoded(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content)).convert("RGB")


def keys_of(*contents: bytes) -> list[object]:
    return content_keys([lambda content=content: content for content in contents])


def test_equal_pixels_are_copies_in_any_format():
    jpeg = stored(photo(0), "JPEG")
    exif = Image.Exif()
    exif[0x010E] = "described"
    described = jpeg[:2] + stored(photo(0), "JPEG", exif=exif)[2:]
    pixels = decoded(jpeg)
    turned = Image.Exif()
    turned.update(ROTATED)
    upright = stored(pixels.transpose(Image.Transpose.ROTATE_90), "PNG", exif=turned)
    copies = [jpeg, described, stored(pixels, "PNG"), stored(pixels, "BMP"), upright]
    others = [stored(photo(0), "PNG"), stored(photo(1), "JPEG"), stored(pixels.crop((0, 0, 40, 23)), "PNG")]
    keys = keys_of(*copies, *others)
    assert len({*keys[: len(copies)]}) == 1
    assert len({*keys}) == 1 + len(others)


def test_jpeg_files_are_compared_at_full_size_in_the_end():
    image = np.array(photo(0))
    image[:8, :8] = 128
    image[:8, :8, :] += np.indices((8, 8)).sum(axis=0)[..., None].astype(np.uint8) % 2 * 2  # equal means
    other = np.array(image)
    other[:8, :8] = other[:8, :8][::-1]
    files = [stored(Image.fromarray(each), "JPEG", quality=100, subsampling=0) for each in (image, other, image)]
    keys = keys_of(*files, files[0])
    assert keys[0] == keys[2] == keys[3] != keys[1]


def test_unreadable_files_are_compared_byte_by_byte(tmp_path):
    names = {"a": b"xa", "b": b"xb", "empty": b"", "twin": b"xa"}
    for name, content in names.items():
        (tmp_path / name).write_bytes(content)
    keys = content_keys([partial(tmp_path.joinpath, name) for name in (*names, "gone", "lost", ".")])
    assert keys[0] == keys[3] and len({*keys}) == len(keys) - 1


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """Two images in each split and class."""
    numbers = iter(range(100))
    for split in ("train", "val", "test"):
        for name in ("ant", "bee"):
            for number in range(2):
                write(tmp_path / split / name / f"{number}.jpg", stored(photo(next(numbers)), "JPEG"))
    return tmp_path


def as_png(file: Path) -> bytes:
    return stored(decoded(file.read_bytes()), "PNG")


def test_copies_between_all_splits_are_found(own, caplog):
    assert load_dataset("ImageFolder", str(own)).copies() == []
    of_test = write(own / "train" / "ant" / "2.png", as_png(own / "test" / "bee" / "0.jpg"))
    in_both = write(own / "val" / "ant" / "2.png", of_test.read_bytes())
    of_train = write(own / "val" / "bee" / "2.png", as_png(own / "train" / "bee" / "1.jpg"))
    dataset = load_dataset("ImageFolder", str(own))
    assert dataset.copies() == [("train", "test", [of_test]), ("val", "test", [in_both]), ("val", "train", [of_train])]
    with pytest.raises(UserError, match="1 of 5 train images are test images as well, such as .*2.png"):
        dataset.refuse_copies()
    of_test.unlink()
    in_both.unlink()
    caplog.set_level(logging.WARNING)
    load_dataset("ImageFolder", str(own)).refuse_copies()
    assert f"1 of 5 val images are training images as well, such as {of_train}; scores on val" in caplog.messages[-1]
