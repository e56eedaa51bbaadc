"""Conversion of a drawn or photographed digit into a scan like those of the data set: 8x8 pixels, white on black.

The steps follow the programs of NIST (see `datasets/digits.py`): crop the digit, scale it to a height of 32 dots,
normalize the stroke width, and count the inked dots of each 4x4 block.
"""

import base64
import io
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from ...datasets.digits import CLASSNAMES, HALVES, MAX_INK
from ...models.saved import SavedModel
from ...utils.errors import UserError

DOTS, BLOCK = 32, 4  # side of a bitmap and of a block, in dots
MAX_WIDTH = 22  # in dots; a wider digit is compressed
INKED_DOTS = 314  # mean number of inked dots of a training scan; its variance is small
BLUR = 1.0  # in dots, applied before the threshold that sets the stroke width
MIN_CONTRAST = 24  # between ink and paper, in grey levels from 0 to 255
SIDE = 280  # side of the canvas in pixels
MAX_URL = 4 * 2**20  # characters of a data URL


def classifies_digits(model: SavedModel) -> bool:
    """Whether the classes of a model are those of the embedded digits, so that a visitor can draw its inputs."""
    return model.trained_on.dataset in ("Digits", *HALVES) and set(model.classnames) <= set(CLASSNAMES)


def scan_of_picture(picture: Image.Image) -> Image.Image:
    """Convert a picture of a digit into a scan. A picture of 8x8 pixels is already one.

    Raises:
        UserError: If the picture has too little contrast.
    """
    if picture.size == (DOTS // BLOCK, DOTS // BLOCK):
        return picture.convert("L").convert("RGB")
    grey = np.asarray(picture.convert("L"), dtype=np.float32)
    paper = np.median(np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]]))
    contrast = np.abs(grey - paper)
    strongest = np.quantile(contrast, 0.99)
    if strongest < MIN_CONTRAST:
        raise UserError("no digit found in this picture; use a picture of a dark digit on bright paper, or draw it")
    return scan_of_ink(np.clip(contrast / strongest, 0, 1))


def scan_of_ink(ink: np.ndarray) -> Image.Image:
    """Convert the ink of each pixel, shape `[H, W]`, from 0 to 1, into a scan in RGB. At least one pixel has ink."""
    bitmap = Image.fromarray(np.round(ink * 255).astype(np.uint8))
    bitmap = bitmap.crop(bitmap.point(lambda level: 255 * (level > 127)).getbbox() or bitmap.getbbox())
    width = min(max(round(DOTS * bitmap.width / bitmap.height), 1), MAX_WIDTH)
    digit = Image.new("L", (DOTS, DOTS))
    digit.paste(bitmap.resize((width, DOTS), Image.Resampling.BOX), ((DOTS - width) // 2, 0))
    blurred = np.asarray(digit.filter(ImageFilter.GaussianBlur(BLUR)), dtype=np.float64)
    blurred = blurred + np.asarray(digit) / 256  # the ink breaks ties of the blur
    dots = blurred >= max(np.sort(blurred, axis=None)[-INKED_DOTS], 1)
    blocks = dots.reshape(DOTS // BLOCK, BLOCK, DOTS // BLOCK, BLOCK).sum(axis=(1, 3))
    return Image.fromarray(np.round(blocks * (255 / MAX_INK)).astype(np.uint8)).convert("RGB")


def as_png(image: Image.Image) -> bytes:
    """Encode a picture as PNG."""
    data = io.BytesIO()
    image.save(data, format="PNG")
    return data.getvalue()


def data_url(image: Image.Image) -> str:
    """Encode a picture as a data URL with a PNG file."""
    return f"data:image/png;base64,{base64.b64encode(as_png(image)).decode('ascii')}"


def decode_data_url(url: str) -> bytes:
    """Decode the file in a data URL. Raise UserError if it is damaged or too long."""
    try:
        if len(url) > MAX_URL:
            raise ValueError("too long")
        return base64.b64decode(url.partition(";base64,")[2], validate=True)
    except ValueError as error:
        raise UserError("arrived damaged; try again") from error


def ink_of_canvas(value: Any) -> np.ndarray:
    """Decode the PNG data URL of the canvas into the ink of each pixel, shape `[SIDE, SIDE]`, from 0 to 1.

    Raises:
        UserError: For any other value, and for an empty canvas.
    """
    try:
        with Image.open(io.BytesIO(decode_data_url(value)), formats=["PNG"]) as image:
            if image.size != (SIDE, SIDE):
                raise ValueError("wrong size")
            ink = np.asarray(image.convert("L"), dtype=np.float32) / 255
        if not ink.any():
            raise ValueError("no ink")
        return ink
    except Exception as error:  # Pillow raises many types for damaged bytes
        raise UserError("the drawing arrived damaged; clear it and draw again") from error
