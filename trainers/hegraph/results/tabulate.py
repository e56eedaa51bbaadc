"""From cells to a table: which values become labels of rows, and which go to the caption."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from .cells import Key
from .methods import PLACE, Place, method_order
from .table import Cell, Row, Table


def tabulate(
    caption: str,
    keys: Sequence[str],
    cells: Mapping[Key, Cell],
    columns: Mapping[Any, str],
    quoted: Mapping[Key, Cell] | None = None,
    *,
    intervals: bool = True,
    unit: str = "",
    cases: Sequence[str] = (),
) -> Table:
    """A table of accuracies over seeds, the best ones bold.

    Args:
        caption: What the numbers are. The values that all places share, and what the intervals are, are added.
        keys: The keys of a place, some of `PLACE`. Those whose values vary become labels of the rows.
        cells: Our numbers.
        columns: Column of a key of the cells -> its head.
        quoted: The paper's numbers; their rows stand below ours of the same place.
        intervals: Whether means are shown with their intervals.
        unit: See `Table`.
        cases: The names of rows that are cases, in their order.
    """
    caption, heads, rows = _arrange(caption, keys, cells, columns, quoted or {}, cases)
    caption = f"{caption}; {_over_seeds(cells.values(), intervals)}"
    return Table(
        caption, heads, list(columns.values()), rows, [2] * len(columns), bold=True, intervals=intervals, unit=unit
    )


def tabulate_costs(
    caption: str,
    keys: Sequence[str],
    cells: Mapping[Key, Cell],
    decimals: Mapping[str, int],
    quoted: Mapping[Key, Cell],
) -> Table:
    """A table of numbers that are no accuracies: without intervals, and with none bold.

    Args:
        caption: As in `tabulate`.
        keys: As in `tabulate`.
        cells: Our numbers.
        decimals: Column, which is its own head -> how many decimals it shows.
        quoted: The paper's numbers.
    """
    caption, heads, rows = _arrange(caption, keys, cells, decimals, quoted)
    return Table(caption, heads, list(decimals), rows, list(decimals.values()), bold=False)


def _arrange(
    caption: str,
    keys: Sequence[str],
    cells: Mapping[Key, Cell],
    columns: Collection[Any],
    quoted: Mapping[Key, Cell],
    cases: Sequence[str] = (),
) -> tuple[str, tuple[str, ...], list[Row]]:
    """The caption with what all places share, the heads of the labels, and the rows."""
    places = list(dict.fromkeys(key[0] for key in cells))
    varying = [i for i in range(len(keys)) if len({where[i] for where in places}) > 1]
    shared = [_words(keys[i], places[0][i]) for i in range(len(keys)) if i not in varying]
    rows = []
    for where in places:
        labels = tuple(str(where[i]) for i in varying)
        in_words = ", ".join(map(_words, keys, where))
        for some, mark in ((cells, ""), (quoted, " (quoted)")):
            for name in _methods(some, where, cases):
                numbers = [some.get((where, name, column)) for column in columns]
                rows.append(Row((*labels, f"{name}{mark}"), numbers, quoted=bool(mark), place=in_words))
    if any(row.quoted for row in rows):
        shared.append("(quoted): from the paper")
    return ", ".join([caption, *shared]), (*(PLACE[keys[i]] for i in varying), "method"), rows


def _methods(cells: Iterable[Key], where: Place, cases: Sequence[str]) -> list[str]:
    """The names of the rows at a place, in order."""
    return sorted({name for place, name, _ in cells if place == where}, key=partial(method_order, cases=cases))


def _words(key: str, value: object) -> str:
    return f"{value} shots" if key == "shots" else str(value)


def _over_seeds(cells: Iterable[Cell], intervals: bool) -> str:
    """Says what the numbers are, and over how many seeds."""
    counts = sorted({len(cell.by_seed) for cell in cells if cell.by_seed})
    if not counts or counts == [1]:
        return "1 seed, so no interval" if intervals else "1 seed"
    n = f"n = {counts[0]}" if len(counts) == 1 else f"n = {counts[0]} to {counts[-1]}"
    if not intervals:
        return f"mean over {n} seeds"
    alone = ", none for one seed" if counts[0] == 1 else ""
    return f"mean ± half-width of its 95% interval (Student's t) over {n} seeds{alone}"
