"""Small pictures of a model's cached training images: `thumbnails/00000.jpg` and so on, in the order of the cache.

A model folder may have them. Prediction does not need them; they show which training images an image resembles.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

from PIL import Image

from ..utils.files import writing_folder
from .folder import own_file

logger = logging.getLogger(__name__)

FOLDER = "thumbnails"  # in the model folder
MAX_SIDE = 64  # pixels
MAX_BYTES = 32_768  # of one file; JPEGs of this size have about 3,000
QUALITY = 85  # of the JPEG


def write_thumbnails(folder: Path, images: Iterable[Image.Image]) -> None:
    """Writes the thumbnails of a model folder, all or none: of one image for each key of the cache, in the same order.

    Only the pixels are written: what else an image file holds, such as the place where a photo was taken, is left out.

    Raises:
        UserError: If the folder cannot be written.
    """
    with writing_folder(folder / FOLDER) as temporary:
        for position, image in enumerate(images):
            small = image.convert("RGB")
            small.thumbnail((MAX_SIDE, MAX_SIDE))
            pixels = Image.new("RGB", small.size)
            pixels.paste(small)
            pixels.save(temporary / thumbnail_name(position), quality=QUALITY)


def has_thumbnails(folder: Path) -> bool:
    """Whether a model folder has thumbnails."""
    return (folder / FOLDER).is_dir()


def read_thumbnail(folder: Path, position: int) -> Image.Image | None:
    """The thumbnail of the cached image at a position from 0, as RGB of at most 64x64 pixels; None if there is none.

    A file that is larger than a thumbnail, or no JPEG, is not shown either, and that is logged.
    """
    path = own_file(folder, f"{FOLDER}/{thumbnail_name(position)}")
    if path is None:
        return None
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"it has more than {MAX_BYTES} bytes")
        with Image.open(path, formats=["JPEG"]) as image:
            if max(image.size) > MAX_SIDE:
                raise ValueError(f"it has {image.width}x{image.height} pixels, more than {MAX_SIDE}x{MAX_SIDE}")
            return image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        logger.warning("%s is not shown: %s", path, error)
        return None


def thumbnail_name(position: int) -> str:
    """The file of one cached image, in `FOLDER`."""
    return f"{position:05d}.jpg"
