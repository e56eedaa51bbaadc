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
from typing import BinaryIO, NamedTuple

from ..datasets.images import IMAGE_SUFFIXES, is_image
from ..utils.errors import UserError, first_line
from .rows import one_line

logger = logging.getLogger(__name__)

STDIN = "-"
LIST_SUFFIX = ".txt"
BLOCK = 1 << 16  # bytes that are read of a list at once
LONGEST_PATH = 1 << 16  # bytes; systems allow 4096 or 32767 characters
NO_IMAGE = f"holds no image ({', '.join(IMAGE_SUFFIXES)})"


class Found(NamedTuple):
    """An image that is to be read, or a place where none could be found; `problem` then says why."""

    path: str
    problem: str = ""


@dataclass(frozen=True)
class Inputs:
    """What the command line names.

    Attributes:
        given: Each an image, a folder, a `.txt` file that lists paths, or "-" for such a list on standard input.
        null: Whether the paths of lists end with a NUL character instead of the end of a line.
        leave_out: A folder that is not walked into; None walks into all.
    """

    given: Sequence[str]
    null: bool = False
    leave_out: Path | None = None

    def __iter__(self) -> Iterator[Found]:
        return self._found(tell=True)

    def check(self) -> None:
        """Checks what can be known before anything is read.

        Raises:
            UserError: If nothing is given, standard input is given twice, or the only input is missing or holds no
                image. Among several, such an input gets a row of its own.
        """
        if not self.given:
            raise UserError("nothing to classify: give images, folders, a .txt file that lists paths, - or --features")
        if self.given.count(STDIN) > 1:
            raise UserError("standard input (-) can be read once, and it is given twice")
        if len(self.given) > 1 or self._streams():
            return
        [given] = self.given
        try:
            os.stat(given)
        except (OSError, ValueError) as error:  # ValueError: a NUL character
            raise UserError(f"cannot read {one_line(given)}: {first_line(error)}") from error
        first = next(self._found(tell=False), None)
        if first is None:
            raise UserError(f"{one_line(given)} lists no path")
        if first.problem and first.path == given:
            raise UserError(f"{one_line(given)} {first.problem}")

    def count(self) -> int | None:
        """How many rows there will be; None where that is known only once a pipe has ended."""
        return None if self._streams() else sum(1 for _ in self._found(tell=False))

    def _streams(self) -> bool:
        """Whether an input can be read only once."""
        return any(given == STDIN or (os.path.exists(given) and _is_pipe(given)) for given in self.given)

    def _found(self, tell: bool) -> Iterator[Found]:
        for given in self.given:
            if given == STDIN:
                if sys.stdin is None:
                    raise UserError("standard input is closed, so there is no list to read from it")
                yield from map(Found, read_list(sys.stdin.buffer, self.null))
            elif os.path.isdir(given):
                yield from self._walk(given, tell)
            elif given.lower().endswith(LIST_SUFFIX):
                try:
                    with open(given, "rb") as file:
                        yield from map(Found, read_list(file, self.null))
                except OSError as error:
                    raise UserError(f"cannot read the list {one_line(given)}: {first_line(error)}") from error
            else:
                yield Found(given)

    def _walk(self, folder: str, tell: bool) -> Iterator[Found]:
        """The images below a folder, in sorted order. Hidden files and folders are left out; links are followed."""
        places, others, example = 0, 0, ""
        left_out = {_identity(self.leave_out)} if self.leave_out is not None and self.leave_out.exists() else set()
        waiting = [(folder, True, left_out)]  # paths, whether they are folders, and the folders above; the last is next
        while waiting:
            path, is_folder, above = waiting.pop()
            if not is_folder and is_image(path):
                places += 1
                yield Found(path)
            elif not is_folder:
                others, example = others + 1, example or path
            else:
                try:
                    here = _identity(path)
                    entries = sorted(_entries(path), reverse=True)
                except OSError as error:
                    places += 1
                    yield Found(path, f"cannot be listed: {first_line(error)}")
                    continue
                if here not in above:  # it is, where a link leads to a folder above it
                    waiting += [(os.path.join(path, name), is_folder, above | {here}) for name, is_folder in entries]
        if not places:
            yield Found(folder, NO_IMAGE)
        elif others and tell:
            said = "%s: %d files are left out, whose ending is not that of an image, such as %s"
            logger.warning(said, one_line(folder), others, one_line(example))


def read_list(file: BinaryIO, null: bool) -> Iterator[str]:
    """The paths that a file lists, in any encoding: bytes that are no characters are kept as Python keeps file names.

    Args:
        file: The list.
        null: Whether each path ends with a NUL character. Else each stands on a line, whose end may be that of Windows,
            and a mark of UTF-8 at the start is left out. Empty lines are skipped; spaces belong to the path.

    Raises:
        UserError: If a path does not end: what is read is no list, and may never end.
    """
    end, rest = b"\0" if null else b"\n", b""
    if not null and (rest := file.read(3)) == b"\xef\xbb\xbf":
        rest = b""
    # What is there by now, so that a path that comes through a pipe does not wait for others
    read = getattr(file, "read1", file.read)
    while block := read(BLOCK):
        *paths, rest = (rest + block).split(end)
        yield from _names(paths, null)
        if len(rest) > LONGEST_PATH:
            raise UserError(f"the list holds a path of more than {LONGEST_PATH} bytes; is it a list of paths?")
    yield from _names(rest.split(end), null)


def _names(paths: Sequence[bytes], null: bool) -> Iterator[str]:
    for path in paths:
        if name := path if null else path.removesuffix(b"\r"):
            yield os.fsdecode(name)


def _entries(folder: str) -> Iterator[tuple[str, bool]]:
    """The names in a folder that are not hidden, and whether each is a folder, which most systems list along."""
    with os.scandir(folder) as entries:
        for entry in entries:
            try:
                is_folder = entry.is_dir()
            except OSError:  # a link that leads to itself
                is_folder = False
            if not entry.name.startswith("."):
                yield entry.name, is_folder


def _is_pipe(path: str) -> bool:
    return not os.path.isfile(path) and not os.path.isdir(path)


def _identity(folder: str | Path) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino
