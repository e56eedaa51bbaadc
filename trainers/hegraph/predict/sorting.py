"""Copies images into a folder for each class. Nothing is ever overwritten."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import BinaryIO

from ..utils.errors import UserError
from .text import one_line

MAX_FILE_NAME = 255  # bytes, of most file systems
MAX_NAME = 200  # bytes of a folder's name
# What some file system does not allow, and "%" itself, so that two classes never share a folder
FORBIDDEN = re.compile(r'[\x00-\x1f\x7f/\\:*?"<>|%]|^\.|[. ]$|^ ')


class ClassFolders:
    """Folders of classes below one folder.

    Args:
        folder: The folder, which is made if it is not there.
        names: The names of the classes; two that are equal share a folder.

    Raises:
        UserError: If the folder cannot be made.
    """

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self.folder = folder
        self.names = [folder_name(name) for name in names]
        self.next_suffix: dict[str, int] = {}  # of the paths that were taken
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot make the folder {folder}: {error.strerror}") from error

    def copy(self, path: str, label: int) -> str:
        """Copies an image into the folder of its class. A name that is taken gets a suffix, as in `photo-1.jpg`.

        Returns:
            Why the image cannot be read; "" if it was copied.

        Raises:
            UserError: If the copy cannot be written.
        """
        target = self.folder / self.names[label] / os.path.basename(path)
        try:
            source = open(path, "rb")  # noqa: SIM115 (a failure here is another than one below)
        except OSError as error:
            return f"cannot be copied: {error.strerror}"
        try:
            target.parent.mkdir(exist_ok=True)
            with source:
                copy = self._create(target)
                try:
                    with copy:
                        shutil.copyfileobj(source, copy)
                except BaseException:
                    os.unlink(copy.name)
                    raise
            with suppress(OSError):  # some file systems keep no times
                shutil.copystat(path, copy.name)
        except OSError as error:
            raise UserError(f"cannot copy {one_line(path)} to {target.parent}: {error.strerror}") from error
        return ""

    def _create(self, target: Path) -> BinaryIO:
        """Makes a new file, with the first suffix that is free."""
        name, first = str(target), self.next_suffix.get(str(target), 0)
        for number in count(first):
            try:
                file = open(with_suffix(target, number) if number else target, "xb")  # noqa: SIM115 (it is returned)
            except FileExistsError:
                continue
            if number:
                self.next_suffix[name] = number + 1  # thousands of images may have one name
            return file
        raise AssertionError  # there is always a next number


def folder_name(classname: str) -> str:
    """A class name as the name of a folder: what is not allowed becomes `%2F` and so on, and a long name is cut."""
    escaped = FORBIDDEN.sub(lambda found: "".join(f"%{byte:02X}" for byte in found[0].encode()), classname)
    encoded = escaped.encode()
    if len(encoded) <= MAX_NAME:
        return escaped
    return f"{encoded[:MAX_NAME].decode(errors='ignore')}%{hashlib.sha256(encoded).hexdigest()[:8]}"


def with_suffix(path: Path, number: int) -> Path:
    """`photo.jpg` with a number before its ending, `photo-1.jpg`. A name that gets too long is cut."""
    ending = f"-{number}{path.suffix}"
    stem = os.fsencode(path.stem)[: MAX_FILE_NAME - len(os.fsencode(ending))]
    return path.with_name(os.fsdecode(stem) + ending)
