"""Rows of predictions, and how a row is written: for people, as CSV or as JSON Lines.

Paths are written as `text.utf8` gives them, so that every output is valid UTF-8.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import NamedTuple

from .text import one_line, utf8

MAX_WIDTH = 60  # of a column that is aligned


class Row(NamedTuple):
    """One image.

    Attributes:
        path: The image.
        top: Its likeliest classes with their probabilities, the likeliest first; () where `error` is not "".
        error: Why there is no prediction.
    """

    path: str
    top: Sequence[tuple[str, float]] = ()
    error: str = ""


class Table:
    """One line for each image: path, class, probability, and in brackets the classes after it."""

    header = ""

    def __init__(self) -> None:
        self.widths = [0, 0]  # they grow with what comes, up to `MAX_WIDTH`

    def __call__(self, row: Row) -> str:
        """A row as a line."""
        if row.error:
            return f"{self._pad(0, one_line(row.path))}  error: {one_line(row.error)}\n"
        (first, probability), *others = row.top
        rest = ", ".join(f"{one_line(name)} {percent(value)}" for name, value in others)
        cells = [self._pad(0, one_line(row.path)), self._pad(1, one_line(first)), f"{percent(probability):>7}"]
        return "  ".join([*cells, f"({rest})"] if rest else cells) + "\n"

    def _pad(self, column: int, text: str) -> str:
        self.widths[column] = max(self.widths[column], min(len(text), MAX_WIDTH))
        return text.ljust(self.widths[column])


class Csv:
    """`path,class,probability,rank,error`: a line for each of the top classes; one with the error where there is none.

    A cell with a comma, a quote or a line break stands in quotes (RFC 4180). Python's own writer leaves a carriage
    return bare where lines end with a line feed.
    """

    header = "path,class,probability,rank,error\n"

    def __call__(self, row: Row) -> str:
        """A row as lines."""
        if row.error:
            return f"{self._cell(row.path)},,,,{self._cell(row.error)}\n"
        ranked = enumerate(row.top, start=1)
        return "".join(f"{self._cell(row.path)},{self._cell(c)},{digits(p)},{rank},\n" for rank, (c, p) in ranked)

    def _cell(self, text: str) -> str:
        text = utf8(text)
        return '"' + text.replace('"', '""') + '"' if set(text) & set(',"\r\n') else text


class JsonLines:
    """`{"path", "top": [{"class", "probability"}], "error"}`; `error` is null where there is none."""

    header = ""

    def __call__(self, row: Row) -> str:
        """A row as a line."""
        top = [{"class": name, "probability": float(digits(value))} for name, value in row.top]
        value = {"path": utf8(row.path), "top": top, "error": utf8(row.error) or None}
        return json.dumps(value, ensure_ascii=False) + "\n"


FORMATS: dict[str, Callable[[], Table | Csv | JsonLines]] = {"table": Table, "csv": Csv, "jsonl": JsonLines}


def percent(probability: float) -> str:
    """Such as "98.31 %"."""
    return f"{100 * probability:.2f} %"


def digits(probability: float) -> str:
    """Six digits, as many as float32 has; small ones are kept (`1.2e-08`)."""
    return f"{probability:.6g}"
