"""A drawn or photographed digit as a scan like those of the data set: 8x8 pixels, white ink on black.

The same is done as by the programs of NIST (see `datasets/digits.py`): a digit is cropped, made 32 dots high, and drawn
with strokes of about the same width; then the inked dots of each block of 4x4 are counted.
"""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from ..datasets.digits import CLASSNAMES, HALVES, MAX_INK
from ..models.saved import SavedModel
from ..utils.errors import UserError

DOTS, BLOCK = 32, 4  # dots on each side of a bitmap, and of a block whose dots are counted
WIDEST = 22  # in dots; a wider digit is squeezed
INKED = 314  # dots of a scan that are inked, on average over the training images; it differs little between them
BLUR = 1.0  # in dots; strokes are blurred before they become wider or thinner
LEAST_CONTRAST = 24  # grey levels of 255 between ink and paper
SIDE = 280  # pixels of the canvas that one draws on
PNG = "data:image/png;base64,"  # begins the URL of a picture that is in the URL itself


def is_of_digits(model: SavedModel) -> bool:
    """Whether a model classifies the embedded digits, so that one can be drawn for it."""
    return model.trained_on.dataset in ("Digits", *HALVES) and set(model.classnames) <= set(CLASSNAMES)


def scan_of_picture(picture: Image.Image) -> Image.Image:
    """The scan of a picture of a digit; UserError if no ink stands out. A picture of 8x8 pixels is one already."""
    if picture.size == (DOTS // BLOCK, DOTS // BLOCK):
        return picture.convert("L").convert("RGB")
    grey = np.asarray(picture.convert("L"), dtype=np.float32)
    paper = np.median(np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]]))
    contrast = np.abs(grey - paper)
    strongest = np.quantile(contrast, 0.99)
    if strongest < LEAST_CONTRAST:
        raise UserError("no digit stands out in this picture; take one of a dark digit on bright paper, or draw it")
    return scan_of_ink(np.clip(contrast / strongest, 0, 1))


def scan_of_ink(ink: np.ndarray) -> Image.Image:
    """The scan, in RGB, of how much of each pixel is inked, from 0 to 1, shape `[H, W]`; at least one pixel is."""
    bitmap = Image.fromarray(np.round(ink * 255).astype(np.uint8))
    bitmap = bitmap.crop(bitmap.point(lambda level: 255 * (level > 127)).getbbox() or bitmap.getbbox())
    width = min(max(round(DOTS * bitmap.width / bitmap.height), 1), WIDEST)
    digit = Image.new("L", (DOTS, DOTS))
    digit.paste(bitmap.resize((width, DOTS), Image.Resampling.BOX), ((DOTS - width) // 2, 0))
    blurred = np.asarray(digit.filter(ImageFilter.GaussianBlur(BLUR)), dtype=np.float64)
    blurred = blurred + np.asarray(digit) / 256  # where the blur is equal, the ink itself decides
    dots = blurred >= max(np.sort(blurred, axis=None)[-INKED], 1)
    blocks = dots.reshape(DOTS // BLOCK, BLOCK, DOTS // BLOCK, BLOCK).sum(axis=(1, 3))
    return Image.fromarray(np.round(blocks * (255 / MAX_INK)).astype(np.uint8)).convert("RGB")


def as_png(image: Image.Image) -> bytes:
    """A picture as a PNG file."""
    data = io.BytesIO()
    image.save(data, format="PNG")
    return data.getvalue()


def ink_of_canvas(value: Any) -> np.ndarray:
    """How much of each pixel of the canvas is inked, from 0 to 1, shape `[SIDE, SIDE]`; UserError for anything but what
    the browser sends, a PNG in a data URL.
    """
    try:
        data = base64.b64decode(value.removeprefix(PNG), validate=True)
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            if image.size != (SIDE, SIDE):
                raise ValueError("another size")
            ink = np.asarray(image.convert("L"), dtype=np.float32) / 255
        if not ink.any():
            raise ValueError("no ink")
        return ink
    except Exception as error:  # on damaged bytes, Pillow raises whatever they lead to
        raise UserError("the drawing came damaged; clear it and draw again") from error
