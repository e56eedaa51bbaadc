"""What a user wants classified: images, folders of images, lists of paths.

Nothing is gathered: paths come one by one, so any number of images takes the same memory.
"""

from __future__ import annotations

import codecs
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from ..datasets.images import is_image
from ..utils.errors import UserError
from ..utils.reading import reading

logger = logging.getLogger(__name__)

STDIN = "-"
LIST_SUFFIX = ".txt"
BLOCK = LONGEST_PATH = 1 << 16  # bytes that are read of a list at once, and that a path may have at most


def check_inputs(given: Sequence[str]) -> None:
    """Raises UserError if nothing is given, standard input is given twice or closed, or the only input is not there.
    Among several, such an input gets a row of its own.
    """
    if not given:
        raise UserError("nothing to classify: give images, folders, a .txt file that lists paths, - or --features")
    if STDIN in given and (given.count(STDIN) > 1 or sys.stdin is None):
        raise UserError("standard input (-) is closed, or given twice")
    if len(given) == 1 and given[0] != STDIN and not os.path.exists(given[0]):
        raise UserError(f"cannot read {given[0]}: it is not there")


def image_paths(given: Sequence[str], null: bool = False, leave_out: Path | None = None) -> Iterator[str]:
    """The paths of the images that the command line names.

    Args:
        given: Each an image, a folder, a `.txt` file that lists paths, or "-" for such a list on standard input.
        null: Whether the paths of lists end with a NUL character instead of the end of a line.
        leave_out: A folder that is not walked into; None walks into all.

    Raises:
        UserError: If a list cannot be read.
    """
    for each in given:
        if each == STDIN:
            yield from read_list(sys.stdin.buffer, null)
        elif os.path.isdir(each):
            yield from _walk(each, leave_out)
        elif each.lower().endswith(LIST_SUFFIX):
            with reading(Path(each), "a list of paths"), open(each, "rb") as file:
                yield from read_list(file, null)
        else:
            yield each


def _walk(folder: str, leave_out: Path | None) -> Iterator[str]:
    """The images below a folder, in sorted order, and folders that cannot be listed.

    Hidden files and folders are left out. Links are followed, and no folder is walked into twice.
    """
    others, waiting = 0, [folder]  # the last is next
    seen = set() if leave_out is None else {os.path.realpath(leave_out)}
    while waiting:
        path = waiting.pop()
        if not os.path.isdir(path):
            if is_image(path):
                yield path
            else:
                others += 1
        elif (real := os.path.realpath(path)) not in seen:
            seen.add(real)
            try:
                names = sorted(os.listdir(path), reverse=True)
            except OSError:
                yield path
                continue
            waiting += [os.path.join(path, name) for name in names if not name.startswith(".")]
    if others:
        logger.warning("%s: %d files are left out, whose ending is not that of an image", folder, others)


def read_list(file: BinaryIO, null: bool) -> Iterator[str]:
    """The paths that a file lists, in any encoding: bytes that are no characters are kept as Python keeps file names.

    Each ends with a NUL character or stands on a line, whose end may be that of Windows. Empty ones are skipped; spaces
    belong to the path. UserError for a path that does not end: what is read is no list, and may never end.
    """
    read = getattr(file, "read1", file.read)  # what is there by now: a path of a pipe does not wait for others
    end, rest, block = b"\0" if null else b"\n", b"", read(BLOCK).removeprefix(codecs.BOM_UTF8)
    while block or rest:
        *paths, rest = (rest + block).split(end) if block else (rest, b"")
        for path in paths:
            if name := path if null else path.removesuffix(b"\r"):
                yield os.fsdecode(name)
        if len(rest) > LONGEST_PATH:
            raise UserError(f"the list holds a path of more than {LONGEST_PATH} bytes; is it a list of paths?")
        block = read(BLOCK)
