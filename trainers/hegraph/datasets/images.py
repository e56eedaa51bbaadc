"""Opening the images of a data set, and why one cannot be read, in one line."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from ..utils.errors import first_line
from .base import Dataset
from .splits import Item

if TYPE_CHECKING:
    from PIL import Image


def open_image(dataset: Dataset, item: Item) -> Image.Image:
    """Opens the image of an item as RGB.

    Raises:
        UserError: If it cannot be read; the message names the file, and how all such files are found.
    """
    try:
        return _opened(dataset, item.path)
    except Exception as error:  # on damaged bytes, Pillow raises whatever they lead to
        raise dataset.unreadable(item.path, _reason_here(dataset, item.path, error)) from error


def problem_of(dataset: Dataset, path: str) -> str:
    """Why the image of an item cannot be read; "" if it can. It is decoded, as `open_image` does."""
    try:
        _opened(dataset, path)
    except Exception as error:
        return _reason_here(dataset, path, error)
    return ""


def check_file(path: Path | str) -> None:
    """Checks that there is a file which opening does not wait for.

    Raises:
        ValueError: If it is a folder, a pipe or a device, or a link to nothing.
        OSError: If there is none.
    """
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError as error:
        if os.path.islink(path):
            raise ValueError(f"is a link to {os.readlink(path)}, which is not there") from error
        raise
    if not stat.S_ISREG(mode):
        raise ValueError("is a folder" if stat.S_ISDIR(mode) else "is no regular file")


def reason(error: Exception) -> str:
    """Why an image cannot be read, in one line, from what opening it has raised."""
    from PIL import UnidentifiedImageError

    if isinstance(error, UnidentifiedImageError):
        return "is no image, or of a format that Pillow does not read"
    if isinstance(error, MemoryError):
        return "is too large for the memory"
    return getattr(error, "strerror", None) or first_line(error)


def _opened(dataset: Dataset, path: str) -> Image.Image:
    if dataset.root is not None and dataset.version is None:
        check_file(dataset.root / path)
    return dataset.open(path).convert("RGB")


def _reason_here(dataset: Dataset, path: str, error: Exception) -> str:
    """As `reason`, of an image of a data set: one without a byte is told from one that is something else."""
    from PIL import UnidentifiedImageError

    if isinstance(error, UnidentifiedImageError) and (dataset.file_version(path) or (None,))[0] == 0:
        return "is empty (0 bytes)"
    return reason(error)
