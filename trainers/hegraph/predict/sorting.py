"""Copies images into a folder for each class. Nothing is overwritten, and no copy is half there."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from ..utils.errors import first_line
from ..utils.files import atomic_path

# What some file system does not allow, and "%" itself, so that two classes never share a folder
FORBIDDEN = re.compile(r'[\x00-\x1f\x7f/\\:*?"<>|%]|^\.|[. ]$|^ ')
MAX_NAME = 200  # bytes of a folder's name


class ClassFolders:
    """Folders of classes below one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.last_suffix: dict[Path, int] = {}  # of a path, which thousands of images may share

    def copy(self, path: str, name: str) -> str:
        """Copies an image into the folder of the class `name`.

        A name that is taken gets a suffix, as in `photo-1.jpg`; by the same image, it is left as it is.

        Returns:
            Why the image cannot be read; "" if its copy is there.

        Raises:
            UserError: If the copy cannot be written.
        """
        try:
            content = Path(path).read_bytes()
        except OSError as error:
            return f"cannot be copied: {first_line(error)}"
        wanted = self.folder / folder_name(name) / os.path.basename(path)
        number = self.last_suffix.get(wanted, 0)
        while os.path.lexists(target := with_suffix(wanted, number)):
            if target.is_file() and target.read_bytes() == content:
                return ""
            number += 1
        self.last_suffix[wanted] = number
        with atomic_path(target) as temporary:
            temporary.write_bytes(content)
            shutil.copystat(path, temporary)
        return ""


def folder_name(classname: str) -> str:
    """A class name as the name of a folder: what is not allowed becomes `%2F` and so on."""
    return FORBIDDEN.sub(lambda found: "".join(f"%{byte:02X}" for byte in found[0].encode()), classname)


def with_suffix(path: Path, number: int) -> Path:
    """`photo.jpg` with a number before its ending, `photo-1.jpg`; with 0, the path itself."""
    return path.with_name(f"{path.stem}-{number}{path.suffix}") if number else path
