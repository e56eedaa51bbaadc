"""What a user wants classified: images, folders of images, lists of paths.

Nothing is gathered: paths come one by one, so any number of them takes the same memory.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ..datasets.images import IMAGE_SUFFIXES, is_image
from ..utils.errors import UserError, first_line

logger = logging.getLogger(__name__)

STDIN = "-"
LIST_SUFFIX = ".txt"
BOM = b"\xef\xbb\xbf"  # of UTF-8, which Windows puts at the start of a file
BLOCK = 1 << 16  # bytes that are read of a list at once
LONGEST_PATH = 1 << 16  # bytes; systems allow 4096 or 32767 characters
NO_IMAGE = f"is a folder that holds no image ({', '.join(IMAGE_SUFFIXES)}), or that cannot be listed"


@dataclass(frozen=True)
class Inputs:
    """The paths of the images that the command line names. A folder without images is a path as well.

    Attributes:
        given: Each an image, a folder, a `.txt` file that lists paths, or "-" for such a list on standard input.
        null: Whether the paths of lists end with a NUL character instead of the end of a line.
        leave_out: A folder that is not walked into; None walks into all.
    """

    given: Sequence[str]
    null: bool = False
    leave_out: Path | None = None

    def __iter__(self) -> Iterator[str]:
        return self._paths(tell=True)

    def check(self) -> None:
        """Raises UserError if nothing is given, standard input is given twice, or the only input is missing or holds no
        image. Among several, such an input gets a row of its own.
        """
        if not self.given:
            raise UserError("nothing to classify: give images, folders, a .txt file that lists paths, - or --features")
        if self.given.count(STDIN) > 1:
            raise UserError("standard input (-) can be read once, and it is given twice")
        if len(self.given) == 1 and not self._has_stream():
            [given] = self.given
            try:
                os.stat(given)
            except (OSError, ValueError) as error:  # ValueError: a NUL character
                raise UserError(f"cannot read {given}: {first_line(error)}") from error
            if os.path.isdir(given) and next(self._paths(tell=False)) == given:
                raise UserError(f"{given} {NO_IMAGE}")

    def count(self) -> int | None:
        """How many paths there will be; None where that is known only once a pipe has ended."""
        return None if self._has_stream() else sum(1 for _ in self._paths(tell=False))

    def _has_stream(self) -> bool:
        """Whether an input can be read only once."""
        others = [given for given in self.given if not (os.path.isfile(given) or os.path.isdir(given))]
        return any(given == STDIN or os.path.exists(given) for given in others)

    def _paths(self, tell: bool) -> Iterator[str]:
        for given in self.given:
            if given == STDIN:
                if sys.stdin is None:
                    raise UserError("standard input is closed, so there is no list to read from it")
                yield from read_list(sys.stdin.buffer, self.null)
            elif os.path.isdir(given):
                yield from self._walk(given, tell)
            elif given.lower().endswith(LIST_SUFFIX):
                try:
                    with open(given, "rb") as file:
                        yield from read_list(file, self.null)
                except OSError as error:
                    raise UserError(f"cannot read the list {given}: {first_line(error)}") from error
            else:
                yield given

    def _walk(self, folder: str, tell: bool) -> Iterator[str]:
        """The images below a folder, in sorted order, and folders that cannot be listed; the folder itself if it has
        neither. Hidden files and folders are left out; links are followed.
        """
        found, others, example = 0, 0, ""
        left_out = {_identity(self.leave_out)} if self.leave_out is not None and self.leave_out.exists() else set()
        waiting = [(folder, left_out)]  # each with the folders above it; the last is next
        while waiting:
            path, above = waiting.pop()
            try:
                inside = above | {_identity(path)} if os.path.isdir(path) else None
                names = sorted(os.listdir(path), reverse=True) if inside else []
            except OSError:
                inside = None
            if inside is None and (is_image(path) or os.path.isdir(path)):
                found += 1
                yield path
            elif inside is None:
                others, example = others + 1, example or path
            elif inside != above:  # they are equal where a link leads to a folder above it
                waiting += [(os.path.join(path, name), inside) for name in names if not name.startswith(".")]
        if not found:
            yield folder
        elif others and tell:
            said = "%s: %d files are left out, whose ending is not that of an image, such as %s"
            logger.warning(said, folder, others, example)


def read_list(file: BinaryIO, null: bool) -> Iterator[str]:
    """The paths that a file lists, in any encoding: bytes that are no characters are kept as Python keeps file names.

    Each ends with a NUL character or stands on a line, whose end may be that of Windows. Empty ones are skipped; spaces
    belong to the path.

    Raises:
        UserError: If a path does not end: what is read is no list, and may never end.
    """
    # What is there by now, so that a path that comes through a pipe does not wait for others
    read = getattr(file, "read1", file.read)
    end, rest, block = b"\0" if null else b"\n", b"", read(BLOCK)
    block = block if null else block.removeprefix(BOM)
    while block or rest:
        *paths, rest = (rest + block).split(end) if block else (rest, b"")
        for path in paths:
            if name := path if null else path.removesuffix(b"\r"):
                yield os.fsdecode(name)
        if len(rest) > LONGEST_PATH:
            raise UserError(f"the list holds a path of more than {LONGEST_PATH} bytes; is it a list of paths?")
        block = read(BLOCK)


def _identity(folder: str | Path) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino
