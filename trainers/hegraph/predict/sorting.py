"""Copies images into a folder for each class. Nothing is ever overwritten, and no copy is ever half there."""

from __future__ import annotations

import filecmp
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path

from ..utils.errors import first_line
from ..utils.files import cannot_write

MAX_FILE_NAME = 255  # bytes, of most file systems
MAX_NAME = 200  # bytes of a folder's name
# What some file system does not allow, and "%" itself, so that two classes never share a folder
FORBIDDEN = re.compile(r'[\x00-\x1f\x7f/\\:*?"<>|%]|^\.|[. ]$|^ ')


class ClassFolders:
    """Folders of classes, whose names are all different, below one folder, which is made if it is not there.

    Raises:
        UserError: If it cannot be made.
    """

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self.folders = [folder / folder_name(name) for name in names]
        self.last_suffix: dict[Path, int] = {}  # of a path, which thousands of images may share
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(folder, error) from error

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
            target.parent.mkdir(exist_ok=True)
            with tempfile.TemporaryDirectory(dir=target.parent, prefix=".", suffix=".tmp") as temporary:
                finished = Path(temporary) / "copy"
                shutil.copyfile(path, finished)
                with suppress(OSError):  # some file systems keep no times
                    shutil.copystat(path, finished)
                self._place(finished, target)
        except FileNotFoundError as error:
            return f"cannot be copied: {first_line(error)}"
        except OSError as error:
            raise cannot_write(target, error) from error
        return ""

    def _place(self, finished: Path, target: Path) -> None:
        """Gives a finished copy the first name that is free, unless the same is there already."""
        for number in count(self.last_suffix.get(target, 0)):
            named = with_suffix(target, number) if number else target
            self.last_suffix[target] = number
            try:
                os.link(finished, named)  # unlike a renaming, it never overwrites what another process puts there
                return
            except OSError:
                if not os.path.lexists(named):  # a file system without such links
                    os.rename(finished, named)
                    return
            if named.is_file() and filecmp.cmp(finished, named, shallow=False):
                return


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
