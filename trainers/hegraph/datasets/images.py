"""Open images safely, and explain in one line why an image cannot be read.

Only `IMAGE_FORMATS` are read, independent of file names: Pillow passes other formats to external programs. The package
pillow-heif, imported for the first HEIC file, reads this format of iPhones.

An opened image has pixels and a colour profile. Other metadata is removed, so that no program rotates it again.
"""

import hashlib
import io
import math
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError, features

from ..utils.errors import UserError, first_line

MAX_BYTES = 20 * 2**20  # of an uploaded image
MAX_PIXELS = 50_000_000  # of an uploaded image: the size of the largest photos of phones
MAX_RATIO = 1000  # of the sides of an image, since a backbone resizes the short side to hundreds of pixels
STRIP_PIXELS = 2**18  # of an image that are processed at once: little memory, and other threads soon run again
T = Image.Transpose
TURNS = (T.FLIP_LEFT_RIGHT, T.ROTATE_180, T.FLIP_TOP_BOTTOM, T.TRANSPOSE, T.ROTATE_270, T.TRANSVERSE, T.ROTATE_90)
ORIENTATIONS = dict(enumerate(TURNS, start=2))  # EXIF orientation -> operation that makes the image upright
SWAPPED = (T.TRANSPOSE, T.ROTATE_270, T.TRANSVERSE, T.ROTATE_90)  # operations that swap width and height

ImageOrPath: TypeAlias = "Image.Image | os.PathLike[str] | str"
ImageSource: TypeAlias = "ImageOrPath | bytes"  # bytes of an image file

IMAGE_FORMATS = ["JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM"]
IMAGE_SUFFIXES = [
    ".jpg", ".jpeg", ".jfif", ".jpe", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm",
    ".heic", ".heif",
]  # fmt: skip
HEIF_BRANDS = (b"hei", b"hev", b"mif1", b"msf1")  # prefixes of the major brand of a HEIC file
for _format, _suffix, _feature in (("AVIF", ".avif", "avif"), ("JPEG2000", ".jp2", "jpg_2000")):
    if _feature in {*features.modules, *features.codecs} and features.check(_feature):  # this build of Pillow opens it
        IMAGE_FORMATS.append(_format)
        IMAGE_SUFFIXES.append(_suffix)


def is_image(name: str) -> bool:
    """Whether a file name has the suffix of an image."""
    return name.lower().endswith(tuple(IMAGE_SUFFIXES))


def open_image(
    source: os.PathLike[str] | str | bytes, as_stored: bool = False, max_pixels: float = math.inf
) -> Image.Image:
    """Open an image as RGB.

    Args:
        source: File, or the bytes of a file.
        as_stored: Convert as Dassl does, without rotation and without the other steps of `to_rgb`.
        max_pixels: Number of pixels from which on an image is refused before decoding.

    Raises:
        Exception: Of many types, on damaged bytes; `reason` converts it to one line.
    """
    with open_header(source, max_pixels) as file:
        return decoded(file, as_stored)


def open_header(source: os.PathLike[str] | str | bytes, max_pixels: float = math.inf) -> Image.Image:
    """Open an image without decoding its pixels; arguments and errors as in `open_image`."""
    status = None if isinstance(source, bytes) else os.stat(source)
    if status and not stat.S_ISREG(status.st_mode):  # opening a pipe would block
        raise ValueError("is a folder" if stat.S_ISDIR(status.st_mode) else "is not a regular file")
    if source == b"" or (status and not status.st_size):
        raise ValueError("is empty (0 bytes)")
    file = _identify(source)
    try:
        if file.width * file.height > max_pixels:
            raise Image.DecompressionBombError(f"{file.width} x {file.height} pixels are too many")
        check_sides(file)
    except BaseException:
        file.close()
        raise
    return file


def decoded(file: Image.Image, as_stored: bool = False) -> Image.Image:
    """Decode an image of `open_header` as RGB; `as_stored` as in `open_image`."""
    file.load()  # rotates a TIFF
    return _strip_metadata(_in_rgb(file if as_stored else _on_white(_upright(file))))


def open_any(image: ImageSource) -> Image.Image:
    """Convert a PIL image by `to_rgb`, or open a file by `open_image`; an image that is converted already is itself."""
    if not isinstance(image, Image.Image):
        return open_image(image)
    return image if _is_converted(image) else to_rgb(image)


def _is_converted(image: Image.Image) -> bool:
    """Whether `to_rgb` would only copy an image."""
    in_memory = type(image) is Image.Image and image.mode == "RGB"
    if not in_memory or not image.info.keys() <= {"icc_profile"} or image.getexif():
        return False
    check_sides(image)
    return True


def _identify(source: os.PathLike[str] | str | bytes) -> Image.Image:
    """Open an image without decoding its pixels; ValueError for a HEIC file without pillow-heif."""

    def start() -> Any:
        return io.BytesIO(source) if isinstance(source, bytes) else source

    try:
        return Image.open(start(), formats=IMAGE_FORMATS)
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
    """Open an uploaded image by `open_image`; errors as in `reading_upload`."""
    with reading_upload(source):
        return open_image(source, max_pixels=MAX_PIXELS)


@contextmanager
def reading_upload(source: Path | bytes) -> Iterator[None]:
    """Context that opens an uploaded image, of at most `MAX_PIXELS` pixels.

    Raises:
        UserError: If the file has more than `MAX_BYTES` bytes, or the block fails. The message is worded as the end of
            a sentence.
    """
    try:
        if (len(source) if isinstance(source, bytes) else source.stat().st_size) > MAX_BYTES:
            raise ValueError(f"has more than {MAX_BYTES >> 20} MB; take a smaller one")
        yield
    except Image.DecompressionBombError as error:  # Pillow's own limit is higher
        raise UserError(f"has more than {MAX_PIXELS // 10**6} million pixels; take a smaller one") from error
    except Exception as error:  # Pillow raises exceptions of many types on damaged bytes
        raise UserError(reason(error)) from error


def count_pixels(content: bytes) -> int:
    """Number of pixels of an uploaded image, from its header; 0 if it is unreadable or larger than `MAX_PIXELS`."""
    try:
        with _identify(content) as file:
            pixels = file.width * file.height
    except Exception:  # Pillow raises exceptions of many types on damaged bytes
        return 0
    return pixels if pixels <= MAX_PIXELS else 0  # `open_upload` refuses a larger one before it decodes


def open_below(base: Path, path: str, as_stored: bool = False) -> Image.Image:
    """Open the image at a path relative to a folder, by `open_image`."""
    return open_image(base / path, as_stored)


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to RGB, upright by its EXIF orientation, with white in transparent parts.

    Returns:
        Another image. A second call changes nothing.

    Raises:
        ValueError: If the sides differ too much (`check_sides`).
    """
    check_sides(image)
    image.load()  # rotates a TIFF
    converted = _in_rgb(_on_white(_upright(image)))
    return _strip_metadata(image.copy() if converted is image else converted)


def _on_white(image: Image.Image) -> Image.Image:
    """Reduce an image to 8 bits a channel, and blend it with white where it is transparent."""
    if image.mode.startswith(("I", "F")):  # Pillow would clip values above 255
        image = _to_8_bits(image)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        with_alpha = image.convert("LA") if image.mode == "La" else image  # Pillow lacks La to RGBA
        image = _without_alpha(with_alpha if with_alpha.mode == "RGBA" else with_alpha.convert("RGBA"))
    return image


def _in_rgb(image: Image.Image) -> Image.Image:
    """Convert an image to RGB; the same image if it is RGB already, since `convert` would copy it."""
    return image if image.mode == "RGB" else image.convert("RGB")


def _strip_metadata(image: Image.Image) -> Image.Image:
    """Remove metadata from an image, in place, except the colour profile, which displays need."""
    image.info = {key: value for key, value in image.info.items() if key == "icc_profile"}
    with suppress(Exception):  # Pillow raises exceptions of many types on invalid tags
        image.getexif().clear()  # the orientation, by which a second call would rotate
    return image


def pixel_hash(image: Image.Image) -> int:
    """Hash the size and the pixels of an image to 64 bits, by which a model recognises its training images."""
    digest = hashlib.sha256(f"{image.size}".encode())
    for _, strip in _strips(image):
        digest.update(strip.tobytes())
    return int.from_bytes(digest.digest()[:8], "little", signed=True)


def _strips(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """Iterate over the strips of an image from its top to its bottom: the first row, and the pixels."""
    rows = max(STRIP_PIXELS // image.width, 1)
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))


def check_sides(image: Image.Image) -> None:
    """Raise ValueError for an image without pixels or with sides above `MAX_RATIO`, which resizing would make huge."""
    if max(image.size) > MAX_RATIO * min(image.size) or 0 in image.size:
        raise ValueError(f"its sides differ too much ({image.width} x {image.height} pixels)")


def reason(error: Exception) -> str:
    """Explain in one line why an image cannot be read, from the exception of opening it.

    A MemoryError, which is no fault of the image, is raised again.
    """
    if isinstance(error, MemoryError):
        raise error
    if isinstance(error, UnidentifiedImageError):
        return f"is not an image in a supported format ({', '.join(IMAGE_FORMATS)})"
    return first_line(error)


def upright_size(file: Image.Image) -> tuple[int, int]:
    """Width and height of an image after the rotation by its EXIF orientation."""
    return file.size[::-1] if _turn(file) in SWAPPED else file.size


def _upright(file: Image.Image) -> Image.Image:
    """Rotate a decoded image by its EXIF orientation."""
    turn = _turn(file)
    return file if turn is None else file.transpose(turn)


def _turn(file: Image.Image) -> Image.Transpose | None:
    """Operation that makes an image upright, or None; unlike Pillow's `exif_transpose`, ignore invalid tags."""
    try:
        return ORIENTATIONS.get(file.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # Pillow raises exceptions of many types on invalid tags
        return None


def _without_alpha(image: Image.Image) -> Image.Image:
    """RGB image of an RGBA image on white, in strips: Pillow composites without letting other threads run."""
    result = Image.new("RGB", image.size)
    for top, strip in _strips(image):
        white = Image.new("RGBA", strip.size, "white")
        result.paste(Image.alpha_composite(white, strip).convert("RGB"), (0, top))
    return result


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Scale 16-bit grey values, or floats from 0 to 1, to 0 ... 255. NaN and infinite values become 0."""
    largest = max(_finite(strip).max() for _, strip in _strips(image))
    scale = 1.0
    if image.mode == "F" and largest <= 1:
        scale = 255
    elif image.mode.startswith("I") and (image.mode.startswith("I;16") or largest > 255):
        scale = 255 / 65535
    result = Image.new("L", image.size)
    for top, strip in _strips(image):
        values = np.clip(np.round(_finite(strip) * scale), 0, 255).astype(np.uint8)
        result.paste(Image.fromarray(values), (0, top))
    return result


def _finite(image: Image.Image) -> np.ndarray:
    """Values of a grey image; 0 for NaN and infinite ones."""
    return np.nan_to_num(np.asarray(image).astype(np.float64), nan=0, posinf=0, neginf=0)
