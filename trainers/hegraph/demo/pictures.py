"""Opening what a user has uploaded: only images, and none that would fill the memory."""

from __future__ import annotations

import warnings
from pathlib import Path

from PIL import Image, ImageOps

from ..utils.errors import UserError

MAX_BYTES = 20 * 2**20  # of an upload
MAX_PIXELS = 50_000_000  # the largest photos of phones have about so many
MAX_RATIO = 50  # of the sides: resized to the backbone's input, a thin strip would become very long
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")  # Pillow hands some others to programs outside


def limit_decoding() -> None:
    """Has Pillow refuse images of more than `MAX_PIXELS` in all of this process, also those that Gradio opens."""
    Image.MAX_IMAGE_PIXELS = MAX_PIXELS
    warnings.simplefilter("error", Image.DecompressionBombWarning)


def open_picture(path: Path) -> Image.Image:
    """An uploaded image, upright and as RGB.

    Raises:
        UserError: If it is no image, damaged or too large.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"the file has more than {MAX_BYTES >> 20} MB; take a smaller image")
        with Image.open(path, formats=FORMATS) as image:
            _check_size(image)
            return ImageOps.exif_transpose(image).convert("RGB")
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UserError(f"the image has more than {MAX_PIXELS // 10**6} million pixels; take a smaller one") from error
    except UserError:
        raise
    except Exception as error:  # on damaged bytes, Pillow raises whatever they lead to
        raise UserError(f"this is no image that can be read; take one of {', '.join(FORMATS)}") from error


def _check_size(image: Image.Image) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise UserError(
            f"the image has {width} x {height} pixels, more than {MAX_PIXELS // 10**6} million; take a smaller one"
        )
    if max(width, height) > MAX_RATIO * max(min(width, height), 1):
        raise UserError(f"the image is a strip of {width} x {height} pixels; take one that is less long")
