"""Copies images into a folder for each class. Nothing is ever overwritten, and no copy is ever half there."""

from __future__ import annotations

import filecmp
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

from ..utils.errors import UserError, first_line
from ..utils.files import cannot_write
from .rows import one_line

MAX_FILE_NAME = 255  # bytes, of most file systems
MAX_NAME = 200  # bytes of a folder's name
# What some file system does not allow, and "%" itself, so that two classes never share a folder
FORBIDDEN = re.compile(r'[\x00-\x1f\x7f/\\:*?"<>|%]|^\.|[. ]$|^ ')


class ClassFolders:
    """Folders of classes below one folder.

    Args:
        folder: The folder, which is made if it is not there.
        names: The names of the classes, all different.

    Raises:
        UserError: If the folder cannot be made.
    """

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self.folders = [folder / folder_name(name) for name in names]
        self.last_suffix: dict[Path, int] = {}  # of a path, which thousands of images may share
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot make the folder {folder}: {first_line(error)}") from error

    def copy(self, path: str, label: int) -> str:
        """Copies an image into the folder of its class.

        A name that is taken gets a suffix, as in `photo-1.jpg`; by the same image, it is left as it is.

        Returns:
            Why the image cannot be read; "" if its copy is there.

        Raises:
            UserError: If the copy cannot be written.
        """
        target = self.folders[label] / os.path.basename(path)
        try:
            source = open(path, "rb")  # noqa: SIM115 (a failure here is another than one below)
        except OSError as error:
            return f"cannot be copied: {first_line(error)}"
        with source:
            try:
                target.parent.mkdir(exist_ok=True)
                with temporary_in(target.parent) as temporary:
                    with open(temporary, "wb") as copy:
                        shutil.copyfileobj(source, copy)
                    with suppress(OSError):  # some file systems keep no times
                        shutil.copystat(path, temporary)
                    self._place(temporary, target)
            except OSError as error:
                raise cannot_write(target.parent / one_line(target.name), error) from error
        return ""

    def _place(self, temporary: str, target: Path) -> None:
        """Gives a finished copy the first name that is free, unless the same is there already."""
        for number in count(self.last_suffix.get(target, 0)):
            named = with_suffix(target, number) if number else target
            self.last_suffix[target] = number
            try:
                os.link(temporary, named)  # unlike a renaming, it never overwrites what another process puts there
                return
            except FileExistsError:
                if named.is_file() and filecmp.cmp(temporary, named, shallow=False):
                    return
            except OSError:  # a file system without such links
                if not os.path.lexists(named):
                    os.rename(temporary, named)
                    return


@contextmanager
def temporary_in(folder: Path) -> Iterator[str]:
    """An empty file in a folder, which is gone after the block."""
    handle, name = tempfile.mkstemp(dir=folder, prefix=".", suffix=".tmp")
    os.close(handle)
    try:
        yield name
    finally:
        with suppress(FileNotFoundError):
            os.unlink(name)


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
