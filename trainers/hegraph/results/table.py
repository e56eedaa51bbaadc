"""A table of numbers over seeds, and the formats in which it is written: Markdown, LaTeX, CSV and plain text."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from .scores import PLACE, grouped, in_words, method_order

CONFIDENCE = 0.95
NAME_WIDTH = 18  # characters of the methods' column in plain text, at least


@dataclass(frozen=True)
class Cell:
    """A mean over seeds, with seed -> value, which is empty if the number is of no seeds, such as a quoted one.

    `num_test` is the number of test images, if one test gave all values and the records tell it.
    """

    mean: float
    by_seed: Mapping[int, float] = field(default_factory=dict)
    num_test: int | None = None

    @classmethod
    def of(cls, rows: pd.DataFrame, each: bool = True) -> Cell:
        """The mean over the rows of a cell that `scores.cells` gives, with `each` together with the seeds' values."""
        if not each:
            return cls(statistics.fmean(rows["value"]))
        by_seed = {seed: value for seed, value in zip(rows["seed"], rows["value"]) if pd.notna(seed)}
        return cls(statistics.fmean(rows["value"]), dict(sorted(by_seed.items())), rows["num_test"].iloc[0])

    @property
    def deviation(self) -> float | None:
        """The sample standard deviation (n - 1) over seeds; None for fewer than two seeds."""
        return statistics.stdev(self.by_seed.values()) if len(self.by_seed) > 1 else None

    @property
    def interval(self) -> float | None:
        """Half the width of the 95% interval of the mean, by Student's t; None for fewer than two seeds."""
        if self.deviation is None:
            return None
        from scipy.stats import t  # takes half a second to import, and not every table shows intervals

        n = len(self.by_seed)
        return float(t.ppf((1 + CONFIDENCE) / 2, n - 1)) * self.deviation / n**0.5


@dataclass(frozen=True)
class Row:
    """A line of a table: labels, of which the last is the method, and a cell for each column, None for an empty one.

    `quoted` says that these are the paper's numbers, `place` in words what they share, such as "Digits, RN50/openai".
    """

    labels: tuple[str, ...]
    cells: Sequence[Cell | None]
    quoted: bool = False
    place: str = ""


@dataclass(frozen=True)
class Table:
    """Rows by columns.

    Attributes:
        heads: The heads of the labels.
        columns: The heads of the numbers.
        decimals: How many each column shows.
        bold: Whether more is better, so that the best of our rows in each column and group is bold.
        intervals: Whether a mean is shown with its interval.
        unit: The word that a column's head needs where it stands alone: "shots" after "16".
    """

    caption: str
    heads: tuple[str, ...]
    columns: Sequence[str]
    rows: Sequence[Row]
    decimals: Sequence[int]
    bold: bool = True
    intervals: bool = True
    unit: str = ""

    def number(self, cell: Cell | None, column: int) -> str:
        """The mean of a cell, with its interval if the table shows intervals; "" for an empty cell."""
        if cell is None:
            return ""
        digits = self.decimals[column]
        mean = f"{cell.mean:.{digits}f}"
        return mean if not self.intervals or cell.interval is None else f"{mean} ± {cell.interval:.{digits}f}"

    def is_best(self, row: Row, column: int) -> bool:
        """Whether none of our other rows in the same group shows a larger number in this column."""
        cell = row.cells[column]
        if not self.bold or row.quoted or cell is None:
            return False
        rivals = [r.cells[column] for r in self.rows if r.labels[:-1] == row.labels[:-1] and not r.quoted]
        shown = [round(rival.mean, self.decimals[column]) for rival in rivals if rival is not None]
        return round(cell.mean, self.decimals[column]) == max(shown)

    def numbers(self, row: Row) -> list[tuple[str, bool]]:
        """The numbers of a row as they are shown, and whether each is the best."""
        return [(self.number(cell, i), self.is_best(row, i)) for i, cell in enumerate(row.cells)]


def tabulate(
    caption: str,
    keys: Sequence[str],
    frame: pd.DataFrame,
    columns: Mapping[Any, str],
    *,
    decimals: Sequence[int] | None = None,
    intervals: bool = True,
    unit: str = "",
    cases: Sequence[str] = (),
) -> Table:
    """A table of cells.

    Args:
        caption: What the numbers are. The values that all places share, and what the intervals are, are added.
        keys: The keys of a place. Those whose values vary become labels of the rows.
        frame: The numbers, from `scores.cells`, and perhaps quoted ones; their rows stand below ours of the same place.
        columns: Column of the cells -> its head.
        decimals: For numbers that are no accuracies, how many each column shows; none has an interval or is bold.
        intervals, unit: As of `Table`.
        cases: The names of rows that are cases, in their order.
    """
    varying = [key for key in keys if frame[key].nunique() > 1]
    shared = [word for key in keys if key not in varying and (word := _words(key, frame[key].iloc[0]))]
    rows = []
    for place, there in grouped(frame, keys):
        labels = tuple(in_words(key, value) for key, value in zip(keys, place) if key in varying)
        lines = grouped(there, ["quoted", "method"])
        for (quoted, name), found in sorted(lines, key=lambda line: (line[0][0], method_order(line[0][1], cases))):
            of = {column: Cell.of(values, decimals is None) for column, values in found.groupby("column", sort=False)}
            label = f"{name} (quoted)" if quoted else name
            where = ", ".join(filter(None, map(_words, keys, place)))
            rows.append(Row((*labels, label), [of.get(column) for column in columns], quoted, where))
    if frame["quoted"].any():
        shared.append("(quoted): from the paper")
    caption = ", ".join([caption, *shared])
    heads = (*(PLACE[key] for key in varying), "method")
    if decimals is not None:
        return Table(caption, heads, list(columns.values()), rows, decimals, bold=False)
    caption = f"{caption}; {_over_seeds([len(cell.by_seed) for row in rows for cell in row.cells if cell], intervals)}"
    return Table(caption, heads, list(columns.values()), rows, [2] * len(columns), intervals=intervals, unit=unit)


def _words(key: str, value: object) -> str:
    return f"{value} shots" if key == "shots" else str(value)


def _over_seeds(counts: Sequence[int], intervals: bool) -> str:
    """Says what the numbers are, and over how many seeds."""
    counts = sorted(set(counts) - {0})
    if not counts or counts == [1]:
        return "1 seed, so no interval" if intervals else "1 seed"
    n = f"n = {counts[0]}" if len(counts) == 1 else f"n = {counts[0]} to {counts[-1]}"
    if not intervals:
        return f"mean over {n} seeds"
    alone = ", none for one seed" if counts[0] == 1 else ""
    return f"mean ± half-width of its 95% interval (Student's t) over {n} seeds{alone}"


def markdown(table: Table) -> str:
    """The caption, and below it a table of GitHub's Markdown."""
    ruler = [*("---" for _ in table.heads), *("---:" for _ in table.columns)]
    lines = [[*table.heads, *table.columns], ruler]
    for row in table.rows:
        lines.append([*row.labels, *(f"**{text}**" if best else text for text, best in table.numbers(row))])
    piped = ["| " + " | ".join(text.replace("|", r"\|") for text in line) + " |" for line in lines]
    return "\n".join([table.caption, "", *piped]) + "\n"


def latex(table: Table) -> str:
    """A `table` environment with its caption; it needs no LaTeX package."""
    lines = [
        r"\begin{table}",
        rf"\caption{{{_tex(table.caption)}}}",
        rf"\begin{{tabular}}{{{'l' * len(table.heads)}{'r' * len(table.columns)}}}",
        r"\hline",
        rf"{' & '.join(map(_tex, [*table.heads, *table.columns]))} \\",
    ]
    group = None
    for row in table.rows:
        if row.labels[:-1] != group:
            lines.append(r"\hline")
        group = row.labels[:-1]
        numbers = [rf"\textbf{{{_tex(text)}}}" if best else _tex(text) for text, best in table.numbers(row)]
        lines.append(rf"{' & '.join([*map(_tex, row.labels), *numbers])} \\")
    return "\n".join([*lines, r"\hline", r"\end{tabular}", r"\end{table}"]) + "\n"


_TEX = str.maketrans({character: rf"\{character}" for character in "&%$#_{}"})
_TEX |= str.maketrans({"\\": r"\textbackslash ", "±": r"$\pm$", "~": r"\textasciitilde ", "^": r"\textasciicircum "})


def _tex(text: str) -> str:
    return text.translate(_TEX)


def as_csv(table: Table) -> str:
    """Numbers that are not rounded: per column the mean, the half-width of its interval, and the number of seeds."""
    measures = ("", " ±", " n") if table.intervals else ("", " n")
    heads = [*table.heads, *(f"{name}{measure}" for name in table.columns for measure in measures)]
    lines = []
    for row in table.rows:
        line: list[object] = [*row.labels]
        for cell in row.cells:
            interval = [cell and cell.interval] if table.intervals else []
            line += [cell and cell.mean, *interval, (cell and len(cell.by_seed)) or None]
        lines.append(line)
    return pd.DataFrame(lines, columns=heads, dtype=object).to_csv(index=False, lineterminator="\n")


def as_text(table: Table) -> str:
    """For each row group and column a block: the mean of every method, its deviation, and the value of each seed."""
    blocks = []
    for place in dict.fromkeys(row.place for row in table.rows):
        rows = [row for row in table.rows if row.place == place]
        for column, head in enumerate(table.columns):
            found = {row.labels[-1]: cell for row in rows if (cell := row.cells[column]) is not None}
            if found:
                blocks.append(_block(", ".join(filter(None, [place, f"{head} {table.unit}".strip()])), found))
    return "\n".join(blocks)


FORMATS: dict[str, Callable[[Table], str]] = {"markdown": markdown, "latex": latex, "csv": as_csv, "text": as_text}


def _block(title: str, cells: Mapping[str, Cell]) -> str:
    """One experiment in plain text: a title, a line of heads, and a line for each method."""
    sizes = {cell.num_test for cell in cells.values()} - {None}
    images = f"{sizes.pop()} test images" if len(sizes) == 1 else "test"
    seeds = sorted({seed for cell in cells.values() for seed in cell.by_seed})
    width = max(NAME_WIDTH, *map(len, cells))
    lines = [
        f"{title}, accuracy on {images} (%)",
        f"  {'':{width}}  {'mean':>6}  {'std':>5}  seeds {', '.join(map(str, seeds))}",
    ]
    for name, cell in cells.items():
        deviation = "-" if cell.deviation is None else f"{cell.deviation:.2f}"
        each = "  ".join(f"{cell.by_seed[seed]:<5.2f}" if seed in cell.by_seed else " " * 5 for seed in seeds)
        lines.append(f"  {name:{width}}  {cell.mean:6.2f}  {deviation:>5}  {each}".rstrip())
    return "\n".join(lines) + "\n"
