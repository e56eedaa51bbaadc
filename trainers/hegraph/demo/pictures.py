"""Opening what a user has uploaded: only images, and none that would fill the memory."""

from __future__ import annotations

import warnings
from pathlib import Path

from PIL import Image

from ..datasets.images import FORMATS, open_image
from ..utils.errors import UserError

MAX_BYTES = 20 * 2**20  # of an upload
MAX_PIXELS = 50_000_000  # the largest photos of phones have about so many


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
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError
        return open_image(path)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UserError(f"the image has more than {MAX_PIXELS // 10**6} million pixels; take a smaller one") from error
    except UserError:
        raise
    except Exception as error:  # on damaged bytes, Pillow raises whatever they lead to
        raise UserError(f"this is no image that can be read; take one of {', '.join(FORMATS)}") from error
