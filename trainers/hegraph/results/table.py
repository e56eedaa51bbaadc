"""A table of numbers over seeds, before it is written in a format."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Cell:
    """A mean, usually over seeds.

    Attributes:
        mean: The number that is shown.
        by_seed: Seed -> the value that went into the mean; empty if the number is of no seeds, such as a quoted one.
        num_test: Number of test images, if one test gave all values and the records tell it.
    """

    mean: float
    by_seed: Mapping[int, float] = field(default_factory=dict)
    num_test: int | None = None

    @classmethod
    def over(cls, by_seed: Mapping[int, float], num_test: int | None = None) -> Cell:
        """The mean over seeds, of which there must be at least one."""
        return cls(statistics.fmean(by_seed.values()), dict(sorted(by_seed.items())), num_test)

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


def average(cells: Iterable[Cell | None]) -> Cell | None:
    """The mean of several cells, or None if there is no cell or one is missing.

    If all cells have the same seeds, the mean is taken seed by seed, and so has an interval of its own.
    """
    cells = list(cells)
    present = [cell for cell in cells if cell is not None]
    if not present or len(present) < len(cells):
        return None
    seeds = set(present[0].by_seed)
    if seeds and all(set(cell.by_seed) == seeds for cell in present):
        return Cell.over({seed: statistics.fmean(cell.by_seed[seed] for cell in present) for seed in sorted(seeds)})
    return Cell(statistics.fmean(cell.mean for cell in present))


@dataclass(frozen=True)
class Row:
    """A line of a table.

    Attributes:
        labels: The texts before the numbers: the values that group the rows, then the method.
        cells: One per column; None leaves the cell empty.
        quoted: Whether these are the paper's numbers.
        place: What is the same for all numbers of the row, in words, such as "Digits, RN50/openai".
    """

    labels: tuple[str, ...]
    cells: Sequence[Cell | None]
    quoted: bool = False
    place: str = ""


@dataclass(frozen=True)
class Table:
    """Rows by columns.

    Attributes:
        caption: One line.
        heads: The heads of the labels.
        columns: The heads of the numbers.
        rows: The lines.
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
        if not self.intervals or cell.interval is None:
            return mean
        return f"{mean} ± {cell.interval:.{digits}f}"

    def is_best(self, row: Row, column: int) -> bool:
        """Whether none of our other rows in the same group shows a larger number in this column."""
        cell = row.cells[column]
        if not self.bold or row.quoted or cell is None:
            return False
        rivals = [r.cells[column] for r in self.rows if r.labels[:-1] == row.labels[:-1] and not r.quoted]
        shown = [round(rival.mean, self.decimals[column]) for rival in rivals if rival is not None]
        return round(cell.mean, self.decimals[column]) == max(shown)
