"""What is written of predictions: rows for people, as CSV or as JSON Lines, and copies of images in folders of classes.

File names may hold any byte but NUL and "/". Rows have them as `utf8` gives them, so every output is valid UTF-8.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from ..utils.errors import first_line, printable
from ..utils.files import atomic_path

NONE_OF_THESE = "none of these"
# What some file system does not allow, and "%" itself, so that two classes never share a folder
FORBIDDEN = re.compile(r'[\x00-\x1f\x7f/\\:*?"<>|%]|^\.|[. ]$|^ ')
MAX_NAME = 200  # bytes of a folder's name


class Row(NamedTuple):
    """One image: its likeliest classes with their probabilities, the likeliest first, or why there is no prediction.

    `known` is whether it is taken to be of one of the classes; None where that was not asked.
    """

    path: str
    top: Sequence[tuple[str, float]] = ()
    error: str = ""
    known: bool | None = None


def table_lines(rows: Iterable[Row], asked: bool) -> Iterator[str]:
    """One line for each image: path, class, probability, and in brackets the classes after it.

    For an image of none of the classes, "none of these" stands in place of the class, and all classes in brackets.
    """
    for row in rows:
        shown = [(name, f"{100 * value:.2f} %") for name, value in row.top]
        first, *others = [("error:", row.error)] if row.error else shown
        if row.known is False:
            first, others = (NONE_OF_THESE, ""), shown
        after = f"  ({', '.join(map(' '.join, others))})" if others else ""
        yield printable(utf8(f"{row.path}  {'  '.join(first)}{after}")) + "\n"


def csv_lines(rows: Iterable[Row], asked: bool) -> Iterator[str]:
    """`path,class,probability,rank,error`: a line for each of the top classes; one with the error where there is none.

    Where rows were `asked` for `known`, there is one more column, `none_of_these`, which is "true" or "false".
    """
    columns = 6 if asked else 5
    for number, row in enumerate(rows):
        if number == 0:
            yield csv_line(*("path", "class", "probability", "rank", "error", "none_of_these")[:columns])
        if row.error:
            yield csv_line(*(row.path, "", "", "", row.error, "")[:columns])
        for rank, (name, value) in enumerate(row.top, start=1):
            none = "true" if row.known is False else "false"
            yield csv_line(*(row.path, name, digits(value), rank, "", none)[:columns])


def json_lines(rows: Iterable[Row], asked: bool) -> Iterator[str]:
    """`{"path", "top": [{"class", "probability"}], "error"}`; `error` is null where there is none.

    Where rows were `asked` for `known`, there is one more key, `none_of_these`: true, false or, with an error, null.
    """
    for row in rows:
        top = [{"class": name, "probability": float(digits(value))} for name, value in row.top]
        value: dict[str, object] = {"path": utf8(row.path), "top": top, "error": utf8(row.error) or None}
        if asked:
            value["none_of_these"] = None if row.error else row.known is False
        yield json.dumps(value, ensure_ascii=False) + "\n"


FORMATS: dict[str, Callable[[Iterable[Row], bool], Iterator[str]]] = {
    "table": table_lines,
    "csv": csv_lines,
    "jsonl": json_lines,
}


def csv_line(*cells: object) -> str:
    """A line of a CSV file."""
    text = io.StringIO()
    # With another end of lines, Python's writer leaves a carriage return in a name bare
    csv.writer(text, lineterminator="\r\n").writerow([utf8(str(cell)) for cell in cells])
    return text.getvalue().removesuffix("\r\n") + "\n"


def digits(probability: float) -> str:
    """Six digits, as many as float32 has; small ones are kept (`1.2e-08`)."""
    return f"{probability:.6g}"


def utf8(text: str) -> str:
    r"""Text that every file and program takes: a byte that is no character becomes `\xff`, with its value."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


class ClassFolders:
    """Folders of classes below one folder. Nothing in them is overwritten, and no copy is half there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.last_suffix: dict[Path, int] = {}  # of a path, which thousands of images may share

    def copy(self, path: str, name: str) -> str:
        """Copies an image into the folder of the class `name`. Returns why it cannot be read; "" if its copy is there.

        A file name that is taken gets a suffix, as in `photo-1.jpg`; by the same image, it is left as it is.
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
