"""A table of numbers, and how it is written: Markdown, LaTeX, CSV, HTML."""

from __future__ import annotations

import csv
import html
import io
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Cell:
    """A mean, over seeds where there are any.

    Attributes:
        mean: What is shown.
        by_seed: The values it is the mean of; empty if it is a number without seeds.
    """

    mean: float
    by_seed: Mapping[int, float] = field(default_factory=dict)

    @classmethod
    def over(cls, by_seed: Mapping[int, float]) -> Cell:
        """The mean over seeds, of which there is at least one."""
        return cls(statistics.fmean(by_seed.values()), dict(by_seed))

    @property
    def interval(self) -> float | None:
        """Half the width of the 95% interval of the mean, by Student's t; None for fewer than two seeds."""
        n = len(self.by_seed)
        if n < 2:
            return None
        from scipy.stats import t  # half a second, which training need not wait for

        return float(t.ppf((1 + CONFIDENCE) / 2, n - 1)) * statistics.stdev(self.by_seed.values()) / n**0.5


def average(cells: Sequence[Cell | None]) -> Cell | None:
    """The mean of several cells; None if one is missing. It has an interval if all have the same seeds."""
    if not cells or None in cells:
        return None
    seeds = set(cells[0].by_seed)
    if seeds and all(set(cell.by_seed) == seeds for cell in cells):
        return Cell.over({seed: statistics.fmean(cell.by_seed[seed] for cell in cells) for seed in sorted(seeds)})
    return Cell(statistics.fmean(cell.mean for cell in cells))


@dataclass(frozen=True)
class Row:
    """A line of a table.

    Attributes:
        labels: What stands before the numbers: what groups the rows, and last the method.
        cells: One per column; None is empty.
        quoted: Whether they are the paper's numbers.
    """

    labels: tuple[str, ...]
    cells: Sequence[Cell | None]
    quoted: bool = False


@dataclass(frozen=True)
class Table:
    """Rows by columns.

    Attributes:
        caption: One line.
        heads: Of the labels.
        columns: Heads of the numbers.
        decimals: Of each column.
        bold: Whether more is better, so that the best of our rows in each column and group is bold.
    """

    caption: str
    heads: tuple[str, ...]
    columns: Sequence[str]
    rows: Sequence[Row]
    decimals: Sequence[int]
    bold: bool = True

    def number(self, cell: Cell | None, column: int) -> str:
        """Mean and interval as plain text."""
        if cell is None:
            return ""
        digits = self.decimals[column]
        mean = f"{cell.mean:.{digits}f}"
        return mean if cell.interval is None else f"{mean} ± {cell.interval:.{digits}f}"

    def is_best(self, row: Row, column: int) -> bool:
        """Whether no other row of ours in the same group shows more in this column."""
        if not self.bold or row.quoted or row.cells[column] is None:
            return False
        rivals = [r for r in self.rows if r.labels[:-1] == row.labels[:-1] and not r.quoted]
        shown = [round(r.cells[column].mean, self.decimals[column]) for r in rivals if r.cells[column] is not None]
        return round(row.cells[column].mean, self.decimals[column]) == max(shown)


def markdown(table: Table) -> str:
    heads = [*table.heads, *table.columns]
    ruler = [*("---" for _ in table.heads), *("---:" for _ in table.columns)]
    lines = [table.caption, "", *(f"| {' | '.join(map(_pipe, cells))} |" for cells in (heads, ruler))]
    for row in table.rows:
        lines.append(f"| {' | '.join(map(_pipe, _texts(table, row, '**{}**'.format)))} |")
    return "\n".join(lines) + "\n"


def latex(table: Table) -> str:
    """A `table` that needs no package."""
    heads = [*table.heads, *table.columns]
    lines = [
        r"\begin{table}",
        rf"\caption{{{_tex(table.caption)}}}",
        rf"\begin{{tabular}}{{{'l' * len(table.heads)}{'r' * len(table.columns)}}}",
        r"\hline",
        rf"{' & '.join(map(_tex, heads))} \\",
    ]
    group = None
    for row in table.rows:
        if row.labels[:-1] != group:
            lines.append(r"\hline")
        group = row.labels[:-1]
        cells = _texts(table, row, r"\textbf{{{}}}".format, _tex)
        lines.append(rf"{' & '.join(cells)} \\")
    return "\n".join([*lines, r"\hline", r"\end{tabular}", r"\end{table}"]) + "\n"


def as_csv(table: Table) -> str:
    """Per column its mean, the half-width of its interval, and the number of seeds; rounded nowhere."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*table.heads, *(head for name in table.columns for head in (name, f"{name} ±", f"{name} n"))])
    for row in table.rows:
        numbers = []
        for cell in row.cells:
            numbers += ["", "", ""] if cell is None else [cell.mean, cell.interval, len(cell.by_seed) or ""]
        writer.writerow([*row.labels, *numbers])
    return text.getvalue()


def as_html(table: Table) -> str:
    """A `<table>` without its caption; the labels of a row are its headers."""
    heads = [f'<th scope="col" class="label">{html.escape(head)}</th>' for head in table.heads]
    heads += [f'<th scope="col">{html.escape(head)}</th>' for head in table.columns]
    lines = ["<table>", f"<thead><tr>{''.join(heads)}</tr></thead>", "<tbody>"]
    for row in table.rows:
        texts = _texts(table, row, "<strong>{}</strong>".format, html.escape)
        labels, numbers = texts[: len(table.heads)], texts[len(table.heads) :]
        cells = [f'<th scope="row" class="label">{label}</th>' for label in labels]
        cells += [f"<td>{number}</td>" for number in numbers]
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return "\n".join([*lines, "</tbody>", "</table>"]) + "\n"


FORMATS: dict[str, Callable[[Table], str]] = {"markdown": markdown, "latex": latex, "csv": as_csv}


def _texts(table: Table, row: Row, bold: Callable[[str], str], escape: Callable[[str], str] = str) -> list[str]:
    """The cells of a row as text, the best ones bold."""
    texts = [escape(label) for label in row.labels]
    for column, cell in enumerate(row.cells):
        text = escape(table.number(cell, column))
        texts.append(bold(text) if table.is_best(row, column) else text)
    return texts


def _pipe(text: str) -> str:
    return text.replace("|", r"\|")


def _tex(text: str) -> str:
    text = text.replace("\\", r"\textbackslash ")
    for character in "&%$#_{}":
        text = text.replace(character, rf"\{character}")
    return text.replace("±", r"$\pm$").replace("~", r"\textasciitilde ").replace("^", r"\textasciicircum ")
