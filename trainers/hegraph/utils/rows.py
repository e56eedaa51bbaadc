"""Options given as rows `[for what, value]`, such as a value for each data set or from each number of shots on."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from .errors import UserError


def check_rows(
    key: str, rows: Sequence, first: type, form: str, second: Callable[[Any], bool] = lambda value: True
) -> None:
    """Checks that every row is a pair of the wanted form.

    Args:
        key: Name of the option, for the message.
        rows: What the user gave.
        first: Type of the first entry of every row.
        form: How a row must look, for the message, such as "[data set, value]".
        second: Whether the second entry of a row is allowed; by default everything is.

    Raises:
        UserError: If a row has another form; it is shown.
    """
    for row in rows:
        if not (isinstance(row, (list, tuple)) and len(row) == 2 and isinstance(row[0], first) and second(row[1])):
            raise UserError(f"a row of {key} must be {form}, got {row!r}")


def is_list(value: object) -> bool:
    """Whether `value` is a list that is not empty."""
    return isinstance(value, (list, tuple)) and len(value) > 0


def is_positive(value: object) -> bool:
    """Whether `value` is a finite number above 0."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < math.inf


def is_list_of_pairs(value: object) -> bool:
    """Whether `value` is a list `[KEY, VALUE, KEY, VALUE, ...]` that is not empty."""
    return isinstance(value, (list, tuple)) and len(value) > 0 and len(value) % 2 == 0


def values_up_to(rows: Sequence[Sequence], shots: float) -> list:
    """The values of the rows `[from this many shots, value]` that `shots` reaches, the row of most shots last."""
    return [value for least, value in sorted(rows, key=lambda row: row[0]) if least <= shots]
