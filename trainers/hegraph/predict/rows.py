"""Rows of predictions, and how they are written: for people, as CSV or as JSON Lines.

File names may hold any byte but NUL and "/". They are written as `utf8` gives them, so every output is valid UTF-8.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from ..utils.errors import printable

NONE_OF_THESE = "none of these"


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
