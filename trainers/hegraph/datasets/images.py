"""The one place where images are opened, and why one cannot be read, in one line.

Only the formats of `FORMATS` are read, whatever a file is called: Pillow hands some others to programs outside. HEIC,
the format of iPhones, is read by the package pillow-heif, which is imported when the first such file comes.

An opened image holds pixels and a colour profile. Its other metadata is dropped, so nothing turns it a second time.
"""

from __future__ import annotations

import io
import math
import os
import stat
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError, features

from ..utils.errors import UserError, first_line

MAX_BYTES = 20 * 2**20  # of an image that somebody sends to a page
MAX_PIXELS = 50_000_000  # of one; the largest photos of phones have about so many
MAX_RATIO = 1000  # of the sides of an image; a backbone takes the short one to some hundred pixels
T = Image.Transpose
TURNS = (T.FLIP_LEFT_RIGHT, T.ROTATE_180, T.FLIP_TOP_BOTTOM, T.TRANSPOSE, T.ROTATE_270, T.TRANSVERSE, T.ROTATE_90)
ORIENTATIONS = dict(enumerate(TURNS, start=2))  # of EXIF

ImageOrPath: TypeAlias = "Image.Image | os.PathLike[str] | str"

FORMATS = ["JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM"]
IMAGE_SUFFIXES = [
    ".jpg", ".jpeg", ".jfif", ".jpe", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm",
    ".heic", ".heif",
]  # fmt: skip
HEIF_BRANDS = (b"hei", b"hev", b"mif1", b"msf1")  # beginnings of the major brand of a HEIC file
for _format, _suffix, _feature in (("AVIF", ".avif", "avif"), ("JPEG2000", ".jp2", "jpg_2000")):
    if _feature in {*features.modules, *features.codecs} and features.check(_feature):  # this Pillow opens it
        FORMATS.append(_format)
        IMAGE_SUFFIXES.append(_suffix)


def is_image(name: str) -> bool:
    """Whether a file has the ending of an image."""
    return name.lower().endswith(tuple(IMAGE_SUFFIXES))


def open_image(source: os.PathLike[str] | str | bytes, as_stored: bool = False, most: float = math.inf) -> Image.Image:
    """Opens a file, or the bytes of one, as RGB; `as_stored` as Dassl does it, without what `to_rgb` does.

    One of more than `most` pixels is refused before any is decoded.

    On damaged bytes, Pillow raises whatever they lead to; `reason` puts it into one line.
    """
    status = None if isinstance(source, bytes) else os.stat(source)
    if status and not stat.S_ISREG(status.st_mode):  # opening a pipe would wait
        raise ValueError("is a folder" if stat.S_ISDIR(status.st_mode) else "is no regular file")
    if source == b"" or (status and not status.st_size):
        raise ValueError("is empty (0 bytes)")
    with _identify(source) as file:
        if file.width * file.height > most:
            raise Image.DecompressionBombError(f"{file.width} x {file.height} pixels are too many")
        check_sides(file)
        return _pixels_alone(file.convert("RGB")) if as_stored else to_rgb(file)


def open_any(image: ImageOrPath) -> Image.Image:
    """Open an image of PIL's by `to_rgb`, or a file by `open_image`."""
    return to_rgb(image) if isinstance(image, Image.Image) else open_image(image)


def _identify(source: os.PathLike[str] | str | bytes) -> Image.Image:
    """An image whose pixels are not decoded yet. ValueError for a HEIC file where pillow-heif is not installed."""

    def start() -> Any:
        return io.BytesIO(source) if isinstance(source, bytes) else source

    try:
        return Image.open(start(), formats=FORMATS)
    except UnidentifiedImageError:
        with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as file:
            head = file.read(12)
        if head[4:8] != b"ftyp" or not head[8:].startswith(HEIF_BRANDS):
            raise
    try:
        from pillow_heif import register_heif_opener
    except ImportError as error:
        raise ValueError("is a HEIC image: `pip install pillow-heif`, or convert it to JPEG") from error
    register_heif_opener()
    return Image.open(start(), formats=["HEIF"])


def open_upload(source: Path | bytes) -> Image.Image:
    """Opens an image that was sent to a page; UserError, as the end of a sentence, for one too large or none."""
    if (len(source) if isinstance(source, bytes) else source.stat().st_size) > MAX_BYTES:
        raise UserError(f"has more than {MAX_BYTES >> 20} MB; take a smaller one")
    try:
        return open_image(source, most=MAX_PIXELS)
    except Image.DecompressionBombError as error:  # Pillow's own limit is higher
        raise UserError(f"has more than {MAX_PIXELS // 10**6} million pixels; take a smaller one") from error
    except Exception as error:  # on damaged bytes, Pillow raises whatever they lead to
        raise UserError(reason(error)) from error


def open_below(base: Path, path: str, as_stored: bool = False) -> Image.Image:
    """Opens a file below a folder; as `open_image`."""
    return open_image(base / path, as_stored)


def to_rgb(file: Image.Image) -> Image.Image:
    """An image of any mode as RGB, upright (by its EXIF orientation) and with white for transparent parts. The result
    has neither an orientation nor transparency, so a second call changes nothing.
    """
    check_sides(file)
    image = _upright(file)
    if image.mode.startswith(("I", "F")):  # Pillow would clip values of more than 8 bits at 255
        image = _to_8_bits(image)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return _pixels_alone(image if image.mode == "RGB" else image.convert("RGB"))  # which would copy it


def _pixels_alone(image: Image.Image) -> Image.Image:
    """A new image without its metadata, except the colour profile, which programs need to show it."""
    image.info = {key: value for key, value in image.info.items() if key == "icc_profile"}
    return image


def check_sides(image: Image.Image) -> None:
    """Raises ValueError for a strip, which would take gigabytes once its short side is the backbone's, and for an image
    without pixels."""
    if max(image.size) > MAX_RATIO * min(image.size) or 0 in image.size:
        raise ValueError(f"its sides differ too much ({image.width} x {image.height} pixels)")


def reason(error: Exception) -> str:
    """Why an image cannot be read, in one line, from what opening it has raised."""
    if isinstance(error, UnidentifiedImageError):
        return f"is no image, or of a format that is not read ({', '.join(FORMATS)} are)"
    return first_line(error)


def _upright(file: Image.Image) -> Image.Image:
    """The image as its EXIF orientation turns it; unlike Pillow's `exif_transpose`, also where other tags are odd."""
    file.load()  # a TIFF then turns itself
    try:
        turn = ORIENTATIONS.get(file.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # on odd tags, Pillow raises whatever they lead to
        turn = None
    return file.copy() if turn is None else file.transpose(turn)


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Scales grey values of 16 bits, or floats from 0 to 1, to 0-255. NaN and infinite values become 0."""
    values = np.nan_to_num(np.asarray(image).astype(np.float64), nan=0, posinf=0, neginf=0)
    if image.mode == "F" and values.max() <= 1:
        values *= 255
    elif image.mode.startswith("I") and (image.mode.startswith("I;16") or values.max() > 255):
        values *= 255 / 65535
    return Image.fromarray(np.clip(np.round(values), 0, 255).astype(np.uint8))
