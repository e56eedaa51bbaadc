"""Fifty photos of many formats, made from the two photos of scikit-learn."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image
from sklearn.datasets import load_sample_images

T = Image.Transpose
# Operation that stores an upright image so that an EXIF orientation turns it back
STORED = {2: T.FLIP_LEFT_RIGHT, 3: T.ROTATE_180, 4: T.FLIP_TOP_BOTTOM, 5: T.TRANSPOSE, 6: T.ROTATE_90,
          7: T.TRANSVERSE, 8: T.ROTATE_270}  # fmt: skip


def pictures() -> list[Image.Image]:
    return [Image.fromarray(array) for array in load_sample_images().images]


def with_orientation(image: Image.Image, path: Path, orientation: int, **options: object) -> None:
    """Save an image as stored under an EXIF orientation."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    stored = image.transpose(STORED[orientation]) if orientation > 1 else image
    stored.save(path, exif=exif.tobytes(), **options)


def faded(image: Image.Image) -> Image.Image:
    """An image with every opacity, and with noise under the transparent parts."""
    noise = np.random.default_rng(0).integers(0, 256, (image.height, image.width), dtype=np.uint8)
    result = image.copy()
    result.putalpha(Image.fromarray(noise))
    return result


def clear(image: Image.Image) -> Image.Image:
    """An image whose left half is transparent."""
    result = image.convert("RGBA")
    alpha = np.full((image.height, image.width), 255, dtype=np.uint8)
    alpha[:, : image.width // 2] = 0
    result.putalpha(Image.fromarray(alpha))
    return result


def jpegs(image: Image.Image) -> Iterator[tuple[str, Callable[[Path], None]]]:
    """Kinds of JPEG files: name and function that saves."""
    for sampling in (0, 1, 2):
        yield (
            f"sampling{sampling}.jpg",
            lambda path, sampling=sampling: image.save(path, quality=75, subsampling=sampling),
        )
    yield "progressive.jpg", lambda path: image.crop((0, 0, 501, 333)).save(path, quality=90, progressive=True)
    yield "grey.jpg", lambda path: image.convert("L").save(path)
    profile = b"\0" * 128  # ignored, since Pillow does not convert colours
    yield "profile.jpg", lambda path: image.save(path, icc_profile=profile)
    for orientation in range(1, 9):
        yield f"exif{orientation}.jpg", lambda path, orientation=orientation: with_orientation(image, path, orientation)
    large = image.resize((4000, 3000), Image.Resampling.BICUBIC)
    yield "12megapixels.jpg", lambda path: large.save(path, quality=92)
    yield "12megapixels-turned.jpg", lambda path: with_orientation(large, path, 6, quality=92)
    odd = image.resize((1283, 2001), Image.Resampling.BICUBIC)
    yield "odd.jpg", lambda path: odd.save(path)
    yield "odd-grey.jpg", lambda path: odd.convert("L").save(path)


def others(image: Image.Image) -> Iterator[tuple[str, Callable[[Path], None]]]:
    """Kinds of files of other formats: name and function that saves."""
    yield "rgb.png", image.save
    yield "grey.png", image.convert("L").save
    yield "palette.png", image.quantize(64).save
    yield "faded.png", faded(image).save
    yield "clear.webp", lambda path: clear(image).save(path, lossless=True)
    yield "exif.webp", lambda path: with_orientation(image, path, 7, lossless=True)
    yield "lossy.webp", lambda path: image.save(path, quality=80)


def save_photos(folder: Path) -> list[Path]:
    """Save the photos in a folder."""
    paths = []
    for name, image in zip(("temple", "flower"), pictures()):
        for kind, save in [*jpegs(image), *others(image)]:
            paths.append(folder / f"{name}-{kind}")
            save(paths[-1])
    return paths
