"""Rows of predictions, and how a row is written: for people, as CSV or as JSON Lines.

Paths are written as `text.utf8` gives them, so that every output is valid UTF-8.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from .text import one_line, utf8

NONE_OF_THESE = "none of these"
MAX_WIDTH = 60  # of a column that is aligned
NEEDS_QUOTES = re.compile('[,"\r\n]')  # a cell of CSV that holds one of these


class Row(NamedTuple):
    """One image.

    Attributes:
        path: The image.
        top: Its likeliest classes with their probabilities, the likeliest first; () where `error` is not "".
        error: Why there is no prediction.
        known: Whether the image is taken to be of one of the classes; None where that was not asked.
    """

    path: str
    top: Sequence[tuple[str, float]] = ()
    error: str = ""
    known: bool | None = None


class Table:
    """One line for each image: path, class, probability, and in brackets the classes after it.

    For an image of none of the classes, "none of these" stands in place of the class, and all classes in brackets.

    Args:
        asked: Whether rows tell `known`.
    """

    header = ""

    def __init__(self, asked: bool = False) -> None:
        self.widths = [0, 0]  # they grow with what comes, up to `MAX_WIDTH`

    def __call__(self, row: Row) -> str:
        """A row as a line."""
        if row.error:
            return f"{self._pad(0, one_line(row.path))}  error: {one_line(row.error)}\n"
        (first, probability), *others = row.top
        number = f"{percent(probability):>7}"
        if row.known is False:
            first, number, others = NONE_OF_THESE, f"{'':>7}", list(row.top)
        rest = ", ".join(f"{one_line(name)} {percent(value)}" for name, value in others)
        cells = [self._pad(0, one_line(row.path)), self._pad(1, one_line(first)), number]
        return "  ".join([*cells, f"({rest})"] if rest else cells) + "\n"

    def _pad(self, column: int, text: str) -> str:
        self.widths[column] = max(self.widths[column], min(len(text), MAX_WIDTH))
        return text.ljust(self.widths[column])


class Csv:
    """`path,class,probability,rank,error`: a line for each of the top classes; one with the error where there is none.

    A cell with a comma, a quote or a line break stands in quotes (RFC 4180). Python's own writer leaves a carriage
    return bare where lines end with a line feed.

    Args:
        asked: Whether rows tell `known`. There is one more column then, `none_of_these`, which is "true" or "false".
    """

    def __init__(self, asked: bool = False) -> None:
        self.asked = asked
        self.header = f"path,class,probability,rank,error{',none_of_these' if asked else ''}\n"

    def __call__(self, row: Row) -> str:
        """A row as lines."""
        if row.error:
            return f"{self._cell(row.path)},,,,{self._cell(row.error)}{',' if self.asked else ''}\n"
        ranked, end = enumerate(row.top, start=1), ""
        if self.asked:
            end = ",true" if row.known is False else ",false"
        path = self._cell(row.path)
        return "".join(f"{path},{self._cell(c)},{digits(p)},{rank},{end}\n" for rank, (c, p) in ranked)

    def _cell(self, text: str) -> str:
        text = utf8(text)
        return '"' + text.replace('"', '""') + '"' if NEEDS_QUOTES.search(text) else text


class JsonLines:
    """`{"path", "top": [{"class", "probability"}], "error"}`; `error` is null where there is none.

    Args:
        asked: Whether rows tell `known`. There is one more key then, `none_of_these`, which is true, false or, with an
            error, null.
    """

    header = ""

    def __init__(self, asked: bool = False) -> None:
        self.asked = asked

    def __call__(self, row: Row) -> str:
        """A row as a line."""
        top = [{"class": name, "probability": float(digits(value))} for name, value in row.top]
        value: dict[str, object] = {"path": utf8(row.path), "top": top, "error": utf8(row.error) or None}
        if self.asked:
            value["none_of_these"] = None if row.error else row.known is False
        return json.dumps(value, ensure_ascii=False) + "\n"


FORMATS: dict[str, Callable[[bool], Table | Csv | JsonLines]] = {"table": Table, "csv": Csv, "jsonl": JsonLines}


def percent(probability: float) -> str:
    """Such as "98.31 %"."""
    return f"{100 * probability:.2f} %"


def digits(probability: float) -> str:
    """Six digits, as many as float32 has; small ones are kept (`1.2e-08`)."""
    return f"{probability:.6g}"
