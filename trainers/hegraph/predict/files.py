"""What predict reads and writes: the paths that a user names; rows for people, as CSV or as JSON Lines; and copies of
images in folders of classes.

Paths come one by one, so any number of images takes the same memory. File names may hold any byte but NUL and "/". Rows
have them as `utf8` gives them, so every output is valid UTF-8.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import logging
import os
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import BinaryIO, NamedTuple

from ..utils.errors import UserError, first_line, printable
from ..utils.files import atomic_path, check_not_read, hash_json

logger = logging.getLogger(__name__)

STDIN = "-"
LIST_SUFFIX = ".txt"
BLOCK = LONGEST_PATH = 1 << 16  # bytes that are read of a list at once, and that a path may have at most
REPLACED = (".csv", ".jsonl", ".txt")  # endings of older rows; no file of a folder of images that is read has them
# What some file system does not allow, and "%" itself, so that two classes never share a folder
FORBIDDEN = re.compile(r'[\x00-\x1f\x7f/\\:*?"<>|%]|^\.|[. ]$|^ ')
MAX_NAME = 200  # bytes of a folder's name
DIGITS = ".6g"  # of a probability: as many as float32 has


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


def image_paths(
    given: Sequence[str], null: bool = False, leave_out: Path | None = None, out: Path | None = None
) -> Iterator[str]:
    """The paths of the images that the command line names: images, folders, `.txt` files that list paths, and "-" for
    such a list on standard input. With `null` the paths of lists end with a NUL character; the folder `leave_out` is
    not walked into. UserError if a list cannot be read, or an image is the file `out`, which is to be written.
    """
    for path in _image_paths(given, null, leave_out):
        if out is not None:
            check_not_read(out, path)
        yield path


def _image_paths(given: Sequence[str], null: bool, leave_out: Path | None) -> Iterator[str]:
    for each in given:
        if each == STDIN:
            yield from read_list(sys.stdin.buffer, null)
        elif os.path.isdir(each):
            yield from _walk(each, leave_out)
        elif each.lower().endswith(LIST_SUFFIX):
            from ..utils.reading import reading

            with reading(Path(each), "a list of paths"), open(each, "rb") as file:
                yield from read_list(file, null)
        else:
            yield each


def _walk(folder: str, leave_out: Path | None) -> Iterator[str]:
    """The images below a folder, in sorted order, and folders that cannot be listed.

    Hidden files and folders are left out. Links are followed, and no folder is walked into twice.
    """
    from ..datasets.images import is_image

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


class Row(NamedTuple):
    """One image: its likeliest classes with their probabilities, the likeliest first, or why there is no prediction.

    `known` is whether it is taken to be of one of the classes; None where that was not asked.
    """

    path: str
    top: Sequence[tuple[str, float]] = ()
    error: str = ""
    known: bool | None = None


def aligned(head: Sequence[str], batches: Iterable[Sequence[Sequence[str]]]) -> Iterator[str]:
    """Lines of a table for people, whose rows come in batches: a header, which an empty table lacks, and columns as
    wide as their widest cell so far.
    """
    widths, waiting = [0] * len(head), [head]
    for rows in filter(None, batches):
        lines = [list(map(printable, cells)) for cells in (*waiting, *rows)]
        widths = [max(width, *map(len, column)) for width, column in zip(widths, zip(*lines))]
        yield from ("  ".join(map(str.ljust, cells, widths)).rstrip() + "\n" for cells in lines)
        waiting = []


def table_lines(batches: Iterable[Sequence[Row]], asked: bool) -> Iterator[str]:
    """A table: path, class, probability, and the classes after it.

    For an image of none of the classes, "none of these" stands in place of the class, and all classes after it.
    """

    def cells(row: Row) -> Sequence[str]:
        shown = [(name, f"{100 * value:.2f} %") for name, value in row.top]
        if row.known is False:
            from ..datasets.folder import NONE_OF_THESE

            first, others = (NONE_OF_THESE, ""), shown
        else:
            first, *others = shown or [("error:", "")]
        return [*map(utf8, (row.path, *first, row.error or ", ".join(map(" ".join, others))))]

    return aligned(("path", "class", "probability", "next classes"), (list(map(cells, rows)) for rows in batches))


def csv_lines(batches: Iterable[Sequence[Row]], asked: bool) -> Iterator[str]:
    """`path,class,probability,rank,error`: a line for each of the top classes; one with the error where there is none.

    Where rows were `asked` for `known`, there is one more column, `none_of_these`, which is "true" or "false".
    """
    columns = 6 if asked else 5
    for number, row in enumerate(chain.from_iterable(batches)):
        if number == 0:
            yield csv_line(*("path", "class", "probability", "rank", "error", "none_of_these")[:columns])
        if row.error:
            yield csv_line(*(row.path, "", "", "", row.error, "")[:columns])
        for rank, (name, value) in enumerate(row.top, start=1):
            none = "true" if row.known is False else "false"
            yield csv_line(*(row.path, name, f"{value:{DIGITS}}", rank, "", none)[:columns])


def json_lines(batches: Iterable[Sequence[Row]], asked: bool) -> Iterator[str]:
    """`{"path", "top": [{"class", "probability"}], "error"}`; `error` is null where there is none.

    Where rows were `asked` for `known`, there is one more key, `none_of_these`: true, false or, with an error, null.
    """
    for row in chain.from_iterable(batches):
        top = [{"class": name, "probability": float(f"{value:{DIGITS}}")} for name, value in row.top]
        value: dict[str, object] = {"path": utf8(row.path), "top": top, "error": utf8(row.error) or None}
        if asked:
            value["none_of_these"] = None if row.error else row.known is False
        yield json.dumps(value, ensure_ascii=False) + "\n"


FORMATS = {"table": table_lines, "csv": csv_lines, "jsonl": json_lines}


def csv_line(*cells: object) -> str:
    """A line of a CSV file."""
    text = io.StringIO()
    # With another end of lines, Python's writer leaves a carriage return in a name bare
    csv.writer(text, lineterminator="\r\n").writerow([utf8(str(cell)) for cell in cells])
    return text.getvalue().removesuffix("\r\n") + "\n"


def utf8(text: str) -> str:
    r"""Text that every file and program takes: a byte that is no character becomes `\xff`, with its value."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def copy_into(folder: Path, path: str) -> str:
    """Copies an image into a folder, whole or not at all. Returns why it cannot be read; "" if its copy is there.

    A file name that is taken gets a number, as in `photo-1.jpg`; by the same image, it is left as it is. The image is
    opened once, since another program may remove it.
    """
    try:
        with open(path, "rb") as file:
            content, status = file.read(), os.fstat(file.fileno())
    except OSError as error:
        return f"cannot be copied: {first_line(error)}"
    number, wanted = 0, folder / os.path.basename(path)
    while os.path.lexists(target := with_suffix(wanted, number)):
        with suppress(OSError):
            if target.is_file() and target.stat().st_size == len(content) and target.read_bytes() == content:
                return ""
        number += 1
    with atomic_path(target) as temporary:
        temporary.write_bytes(content)
        os.utime(temporary, ns=(status.st_atime_ns, status.st_mtime_ns))
    return ""


def unique_names(names: Sequence[str], ids: Sequence[str], taken: Iterable[str] = ()) -> list[str]:
    """Names of K classes, no two of which are equal. A name that is not unique, or taken by something else, gets the id
    of its class, as in "crane (n02012849)", and the position as well if another class has that name.
    """
    counts, seen = Counter([*names, *taken]), {*names, *taken}
    unique = list(names)
    for position, name in enumerate(names):
        if counts[name] > 1:
            unique[position] = f"{name} ({ids[position]})"
            while unique[position] in seen:
                unique[position] += f" ({position})"
            seen.add(unique[position])
    return unique


def folder_name(classname: str) -> str:
    """A class name as the name of a folder: what is not allowed becomes `%2F` and so on, and the end of a long name
    becomes a hash of the whole.
    """
    name = FORBIDDEN.sub(lambda found: "".join(f"%{byte:02X}" for byte in found[0].encode()), classname)
    if len(name.encode()) <= MAX_NAME:
        return name
    end = f"~{hash_json(classname)[:16]}"
    return name.encode()[: MAX_NAME - len(end)].decode(errors="ignore") + end


def with_suffix(path: Path, number: int) -> Path:
    """`photo.jpg` with a number before its ending, `photo-1.jpg`; with 0, the path itself."""
    return path.with_name(f"{path.stem}-{number}{path.suffix}") if number else path
