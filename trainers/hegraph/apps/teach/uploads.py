"""Files that the page receives: their names, their places in the project, and the check that they are images."""

import re
import unicodedata
import zipfile
from pathlib import PurePosixPath
from typing import IO

from ...datasets.decoding import FACTORS, REDUCED, LazyImage
from ...datasets.folder import NON_CLASS_FOLDERS
from ...datasets.images import MAX_BYTES, MAX_PIXELS, is_image, reading_upload
from ...datasets.own_images import class_name
from ...datasets.splits import split_of
from ...models.predict.files import folder_name
from ...utils.errors import UserError
from ...utils.text import printable
from .contents import UNLABELLED

TRAIN = "train"
PLACES = "|".join(NON_CLASS_FOLDERS)
# Path in a zip file. The project may lie in a further folder, next to __MACOSX, which macOS adds
MEMBER = re.compile(rf"((?!__MACOSX)[^/]+/)??({TRAIN}/(?P<name>[^/]+)|(?P<place>{PLACES})(/.+)?)/[^/]*", re.S)


def safe_file_name(name: str) -> str:
    """Name of an uploaded file, with characters replaced that some file system rejects."""
    last = PurePosixPath(printable(re.split(r"[/\\]", unicodedata.normalize("NFC", name))[-1]) or "image")
    return f"{folder_name(last.stem)}{last.suffix}"


def place_of_member(member: zipfile.ZipInfo) -> str:
    """Place of an entry in the zip file of a project; "" if the entry is not part of a project."""
    match = MEMBER.fullmatch(member.filename)
    return (match["place"] or class_name(match["name"], TRAIN)) if match else ""


def place_of_path(path: str) -> str:
    """Place of a file of an uploaded folder; "" if it is not added.

    The place is the folder that contains the file, or one of `NON_CLASS_FOLDERS` above it. Files without a folder are
    unlabelled. Test and validation images are not added.
    """
    folders = PurePosixPath(path).parts[:-1]
    if any(split_of(folder) not in ("", TRAIN) for folder in folders[:-1]):
        return ""
    for folder in folders:
        if folder in NON_CLASS_FOLDERS:
            return folder
    return class_name(folders[-1], path) if folders else UNLABELLED


def read_upload(file: IO[bytes]) -> bytes:
    """Read and close a file, up to one byte more than an image may have."""
    with file:
        return file.read(MAX_BYTES + 1)


def image_problem(name: str, data: bytes) -> str:
    """Reason why a file is not added, as the predicate of a sentence; "" for an image."""
    try:
        with reading_upload(data):
            LazyImage.read(data, REDUCED, MAX_PIXELS).decoded(max(FACTORS))
    except UserError as error:
        return str(error)
    return "" if is_image(name) else "has no file name extension of an image"
