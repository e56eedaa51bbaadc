"""Rows of predictions, and how a row is written: for people, as CSV or as JSON Lines.

File names may hold any byte but NUL and "/". They are written as `utf8` gives them, so every output is valid UTF-8.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ..utils.errors import printable

NONE_OF_THESE = "none of these"
MAX_WIDTH = 60  # of a column that is aligned


class Row(NamedTuple):
    """One image: its likeliest classes with their probabilities, the likeliest first, or why there is no prediction.

    `known` is whether it is taken to be of one of the classes; None where that was not asked.
    """

    path: str
    top: Sequence[tuple[str, float]] = ()
    error: str = ""
    known: bool | None = None


class Table:
    """One line for each image: path, class, probability, and in brackets the classes after it.

    For an image of none of the classes, "none of these" stands in place of the class, and all classes in brackets.
    """

    header = ""

    def __init__(self, asked: bool = False) -> None:
        self.widths = [0, 0]  # they grow with what comes, up to `MAX_WIDTH`

    def __call__(self, row: Row) -> str:
        if row.error:
            return f"{self._pad(0, row.path)}  error: {_one_line(row.error)}\n"
        shown = [(_one_line(name), f"{100 * value:.2f} %") for name, value in row.top]
        if row.known is False:
            shown.insert(0, (NONE_OF_THESE, ""))
        (first, number), *others = shown
        line = f"{self._pad(0, row.path)}  {self._pad(1, first)}  {number:>7}"
        return f"{line}  ({', '.join(map(' '.join, others))})\n" if others else f"{line}\n"

    def _pad(self, column: int, text: str) -> str:
        text = _one_line(text)
        self.widths[column] = max(self.widths[column], min(len(text), MAX_WIDTH))
        return text.ljust(self.widths[column])


class Csv:
    """`path,class,probability,rank,error`: a line for each of the top classes; one with the error where there is none.

    Where rows were asked for `known`, there is one more column, `none_of_these`, which is "true" or "false".
    """

    def __init__(self, asked: bool = False) -> None:
        self.asked = asked
        self.header = self._line("path", "class", "probability", "rank", "error", "none_of_these")

    def __call__(self, row: Row) -> str:
        if row.error:
            return self._line(row.path, "", "", "", row.error, "")
        none = "true" if row.known is False else "false"
        ranked = enumerate(row.top, start=1)
        return "".join(self._line(row.path, name, digits(value), rank, "", none) for rank, (name, value) in ranked)

    def _line(self, *cells: object) -> str:
        return csv_line(*(cells if self.asked else cells[:-1]))


class JsonLines:
    """`{"path", "top": [{"class", "probability"}], "error"}`; `error` is null where there is none.

    Where rows were asked for `known`, there is one more key, `none_of_these`: true, false or, with an error, null.
    """

    header = ""

    def __init__(self, asked: bool = False) -> None:
        self.asked = asked

    def __call__(self, row: Row) -> str:
        top = [{"class": name, "probability": float(digits(value))} for name, value in row.top]
        value: dict[str, object] = {"path": utf8(row.path), "top": top, "error": utf8(row.error) or None}
        if self.asked:
            value["none_of_these"] = None if row.error else row.known is False
        return json.dumps(value, ensure_ascii=False) + "\n"


FORMATS: dict[str, Callable[[bool], Table | Csv | JsonLines]] = {"table": Table, "csv": Csv, "jsonl": JsonLines}


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


def _one_line(text: str) -> str:
    r"""Text for people, in one line: control characters, too, become `\n`, `\x1b` and so on."""
    return printable(utf8(text))
