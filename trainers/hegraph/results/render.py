"""The formats in which a table is written: Markdown, LaTeX, CSV, HTML and plain text."""

from __future__ import annotations

import csv
import html
import io
from collections.abc import Callable, Mapping

from .table import Cell, Row, Table

NAME_WIDTH = 18  # characters of the methods' column in plain text, at least


def markdown(table: Table) -> str:
    """The caption, and below it a table of GitHub's Markdown."""
    heads = [*table.heads, *table.columns]
    ruler = [*("---" for _ in table.heads), *("---:" for _ in table.columns)]
    lines = [table.caption, "", *(f"| {' | '.join(map(_pipe, cells))} |" for cells in (heads, ruler))]
    for row in table.rows:
        lines.append(f"| {' | '.join(map(_pipe, _texts(table, row, '**{}**'.format)))} |")
    return "\n".join(lines) + "\n"


def latex(table: Table) -> str:
    """A `table` environment with its caption; it needs no LaTeX package."""
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
    """Numbers that are not rounded: per column the mean, the half-width of its interval, and the number of seeds."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    measures = ("", " ±", " n") if table.intervals else ("", " n")
    writer.writerow([*table.heads, *(f"{name}{measure}" for name in table.columns for measure in measures)])
    for row in table.rows:
        numbers: list[object] = []
        for cell in row.cells:
            interval = [cell and cell.interval] if table.intervals else []
            numbers += [cell and cell.mean, *interval, (cell and len(cell.by_seed)) or None]
        writer.writerow([*row.labels, *numbers])
    return text.getvalue()


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


def as_html(table: Table) -> str:
    """A `<table>` element without a caption; the labels of a row are its header cells."""
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
        values = [f"{cell.by_seed[seed]:.2f}" if seed in cell.by_seed else "" for seed in seeds]
        each = "  ".join(f"{value:5}" for value in values)
        lines.append(f"  {name:{width}}  {cell.mean:6.2f}  {deviation:>5}  {each}".rstrip())
    return "\n".join(lines) + "\n"


def _texts(table: Table, row: Row, bold: Callable[[str], str], escape: Callable[[str], str] = str) -> list[str]:
    """The labels and numbers of a row as text, the best numbers bold."""
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
