"""Thumbnails of the cached images in a model folder, and access to the files of folders that nobody has checked.

`thumbnails/00000.jpg` and so on, in the order of the cache, show the training images that an image resembles.
"""

import logging
from collections.abc import Iterable
from pathlib import Path

from PIL import Image

from ..utils.files import writing_folder
from ..utils.locks import lock_replacement
from .folder import SAVE_WAIT, THUMBNAILS

logger = logging.getLogger(__name__)

MAX_SIDE = 64  # pixels of a thumbnail
MAX_BYTES = 32_768  # of a thumbnail's file; typical are 3,000


def own_file(folder: Path, name: str) -> Path | None:
    """File of a model folder that may be shown or copied; None if it does not exist.

    Links are followed only inside the folder, and to the files of huggingface_hub's cache, whose folders consist of
    links. Another link in an untrusted folder could reveal a file of this machine.
    """
    base = folder.resolve()
    path = (base / name).resolve()
    places = [base, base.parents[1] / "blobs"] if base.parent.name == "snapshots" else [base]
    if not path.is_file():
        return None
    if not any(path.is_relative_to(place) for place in places):
        logger.warning("%s is a link out of its folder, and is skipped", folder / name)
        return None
    return path


def write_thumbnails(folder: Path, images: Iterable[Image.Image]) -> None:
    """Write the thumbnails of a model folder, all or none, for each key of the cache in order.

    Only pixels are written, without metadata such as the location of a photo.

    Raises:
        UserError: If the folder cannot be written, or another process changes the model.
    """
    with lock_replacement(folder, SAVE_WAIT), writing_folder(folder / THUMBNAILS) as temporary:
        for position, image in enumerate(images):
            small = image.convert("RGB")
            small.thumbnail((MAX_SIDE, MAX_SIDE))
            small.info.clear()
            small.save(temporary / thumbnail_name(position), quality=85)


def read_thumbnail(folder: Path, position: int) -> Image.Image | None:
    """Thumbnail of the cached image at a position, in RGB with at most 64x64 pixels; None without one.

    A larger file, or one that is not a JPEG, gives None and a warning.
    """
    path = own_file(folder, f"{THUMBNAILS}/{thumbnail_name(position)}")
    if path is None:
        return None
    try:
        with Image.open(path, formats=["JPEG"]) as image:
            if max(image.size) > MAX_SIDE or path.stat().st_size > MAX_BYTES:
                raise ValueError(f"it is larger than a thumbnail of {MAX_SIDE}x{MAX_SIDE} pixels")
            return image.convert("RGB")
    except Exception as error:  # Pillow raises any type on damaged bytes
        logger.warning("%s is not shown: %s", path, error)
        return None


def thumbnail_name(position: int) -> str:
    """File name of a thumbnail in `THUMBNAILS`."""
    return f"{position:05d}.jpg"
