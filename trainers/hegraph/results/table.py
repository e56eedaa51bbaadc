"""Means over data sets, and a table of numbers over seeds with its formats: Markdown, LaTeX, CSV and plain text."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from itertools import groupby
from statistics import fmean
from typing import Any

import pandas as pd
from scipy.special import stdtrit

from .scores import INDUCTIVE, MEAN_OF, PLACE, PROTOCOL, grouped, method_order

CONFIDENCE = 0.95
NAME_WIDTH = 18  # characters of the methods' column in plain text, at least


# The second rule of `scores.py`: what is averaged over data sets or columns


def add_means(
    frame: pd.DataFrame, over: str, keys: Sequence[str], names: Sequence = (), called: str = "", mean: Callable = fmean
) -> pd.DataFrame:
    """The cells, and below them the mean of every method over several values of the column `over` of the frame.

    The values are `names`, or those that any method has there; a method that lacks one, and one value alone, have no
    mean. It is taken seed by seed if all values have the same seeds. Otherwise it is the mean of their means, which is
    of no seed. `keys` are what the cells of a mean have in common beside the method; `called` stands in the column
    `over`, by default such as "mean of 3".
    """
    parts = [frame]
    for _, group in grouped(frame, keys):
        wanted = list(names or group[over].unique())
        for _, part in grouped(group[group[over].isin(wanted)], ["method"]):
            if len(wanted) == 1 or part[over].nunique() < len(wanted):
                continue
            shared = part.iloc[:1].drop(columns=["seed", "value"]).assign(num_test=None)
            shared[over] = called or f"{MEAN_OF}{len(wanted)}"
            if part.groupby(over)["seed"].agg(frozenset).nunique() > 1:
                part = part.groupby(over, sort=False)["value"].agg(fmean).reset_index().assign(seed=None)
            means = part.groupby("seed", sort=False, dropna=False)["value"].agg(mean).reset_index()
            parts.append(shared.merge(means, how="cross").astype(object))
    return pd.concat(parts, ignore_index=True)


def add_mean_places(frame: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """The cells, with those of places that are means over data sets.

    A column is averaged over the data sets that have it for any method, so a bank of four images a class leaves the
    means at 16 shots to the others, in a place of their own.
    """
    return add_means(frame, "dataset", [*(key for key in keys if key != "dataset"), "column"])


# Tables


class Table:
    """Numbers over seeds, in rows and columns.

    Attributes:
        heads: The heads of the labels, of which the last is the method's.
        labels: The labels of every row.
        values: The number of a seed a line, with the number of its "row" and its "column".
        The other attributes are those of `__init__`, the caption with what the rows share.
    """

    def __init__(
        self,
        caption: str,
        keys: Sequence[str],
        frame: pd.DataFrame,
        columns: Mapping[Any, str] | None = None,
        *,
        decimals: Mapping[str, int] | None = None,
        intervals: bool = True,
        by: str = "",
        cases: Sequence[str] = (),
    ) -> None:
        """A table of cells.

        Args:
            caption: What the numbers are. The values that all places share, and what the intervals are, are added.
            keys: The keys of a place. Those whose values vary become labels of the rows.
            frame: The numbers, from `scores.cells`, and perhaps quoted ones; their rows stand below ours of the place.
            columns: Column of the cells -> its head; None if they are called as their heads, the keys of `decimals`.
            decimals: For numbers that are no accuracies, how many each column shows; none has an interval or is bold.
            intervals: Whether a mean is shown with its interval.
            by: The key of which the columns are values, where it is one.
            cases: The names of rows that are cases, in their order.
        """
        names = sorted(frame["method"].unique(), key=lambda name: method_order(name, cases))
        rank = {"place": frame.groupby(list(keys), sort=False).ngroup(), "rank": frame["method"].map(names.index)}
        values = frame.astype({"value": float, "quoted": bool}).assign(**rank)
        values = values.sort_values(["place", "quoted", "rank"], kind="stable", ignore_index=True)
        values["row"] = values.groupby(["place", "quoted", "rank"]).ngroup()
        rows = values.drop_duplicates("row")
        varying = [key for key in keys if frame[key].nunique() > 1]
        lines = rows["method"] + rows["quoted"].map({True: " (quoted)", False: ""})
        self.labels = list(zip(*(rows[key].map(str) for key in varying), lines))
        self.heads = (*(PLACE.get(key, key) for key in varying), "method")
        self.columns = columns or {column: column for column in decimals or ()}
        self.decimals = decimals or dict.fromkeys(self.columns, 2)
        self.keys, self.values, self.by = list(keys), values, by
        self.bold, self.intervals = decimals is None, intervals and decimals is None
        shared = in_words((key, frame[key].iloc[0]) for key in keys if key not in varying)
        self.caption = ", ".join([caption, *shared, *(["(quoted): from the paper"] if values["quoted"].any() else [])])
        self.notes = _notes(frame)
        self.caption = "; ".join([self.caption, *self.notes])
        if decimals is None:
            self.caption += f"; {_over_seeds(values.groupby(['row', 'column'])['seed'].count(), intervals)}"

    @cached_property
    def cells(self) -> pd.DataFrame:
        """One line a cell: the keys of its place, "method", "quoted", "row" and "column", and numbers over seeds.

        These are "mean", "n" (how many seeds; 0 for a number that is of none, such as a quoted one), and for two seeds
        or more "deviation", that of a sample (n - 1), and "interval", half the width of the 95% interval of the mean
        by Student's t.
        """
        groups: Any = self.values.groupby(["row", "quoted", "method", "column", *self.keys], sort=False)
        cells = groups.agg(mean=("value", fmean), deviation=("value", "std"), n=("seed", "count"))
        factor = stdtrit(cells["n"] - 1, (1 + CONFIDENCE) / 2) / cells["n"] ** 0.5
        return cells.assign(interval=factor * cells["deviation"]).reset_index()

    def shown(self, bold: Callable[[str], str]) -> list[list[str]]:
        """The labels and numbers of every row as text; `bold` marks the best. An empty cell is ""."""
        cells, decimals = self.cells, self.cells["column"].map(self.decimals)
        text = [f"{mean:.{n}f}" for mean, n in zip(cells["mean"], decimals)]
        ours = pd.Series(text).astype(float).where(~cells["quoted"])
        best = self.bold & (ours == ours.groupby([cells[key] for key in ("column", *self.keys)]).transform("max"))
        if self.intervals:
            around = [f" ± {half:.{n}f}" if half >= 0 else "" for half, n in zip(cells["interval"], decimals)]
            text = [mean + half for mean, half in zip(text, around)]
        text = [bold(one) if is_best else one for one, is_best in zip(text, best)]
        cells = cells.assign(text=pd.Series(text, dtype=object))  # the bold ones may be a kind of str of their own
        wide = cells.set_index(["row", "column"])["text"].unstack(fill_value="")
        numbers = wide.reindex(columns=list(self.columns), fill_value="").to_numpy().tolist()
        return [[*labels, *of_row] for labels, of_row in zip(self.labels, numbers)]


def in_words(place: Iterable[tuple[str, Any]]) -> list[str]:
    """What a caption says of keys of a place and their values; that a protocol is inductive goes without saying."""
    told = (one for one in place if one != (PROTOCOL, INDUCTIVE))
    return [f"{value} shots" if key == "shots" else str(value) for key, value in told]


def _notes(frame: pd.DataFrame) -> list[str]:
    """Notes about classes that have fewer training images than the number of shots."""
    short = frame[frame["fewest"].notna()] if "fewest" in frame else frame[:0]
    found = grouped(short, ["shots"]) if len(short) else []
    return [f"{shots} shots: as few as {rows['fewest'].min()} in a class" for (shots,), rows in found]


def _over_seeds(counts: pd.Series, intervals: bool) -> str:
    """Says what the numbers are, and over how many seeds; a number that is of none, such as a quoted one, counts 0."""
    fewest, most = counts[counts > 0].min(), counts.max()
    if most <= 1:
        return "1 seed"
    n = f"{most}" if fewest == most else f"{fewest} to {most}"
    half = " ± half-width of its 95% interval (Student's t)" if intervals else ""
    return f"mean{half} over n = {n} seeds"


def markdown(table: Table) -> str:
    """The caption, and below it a table of GitHub's Markdown."""
    heads = [*table.heads, *table.columns.values()]
    return f"{table.caption}\n\n{pipes(heads, len(table.heads), table.shown('**{}**'.format))}"


def pipes(heads: Sequence[str], labels: int, rows: Iterable[Sequence[str]]) -> str:
    """A table of GitHub's Markdown, whose first columns are labels, and the others numbers."""
    ruler = ["---"] * labels + ["---:"] * (len(heads) - labels)
    lines = ([text.replace("|", r"\|") for text in line] for line in (heads, ruler, *rows))
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


_TEX = str.maketrans({character: rf"\{character}" for character in "&%$#_{}"})
_TEX |= str.maketrans({"\\": r"\textbackslash ", "±": r"$\pm$", "~": r"\textasciitilde ", "^": r"\textasciicircum "})


def latex(table: Table) -> str:
    """A `table` environment with its caption; it needs no LaTeX package."""
    labels = len(table.heads)
    heads = [text.translate(_TEX) for text in (*table.heads, *table.columns.values())]
    lines = [
        r"\begin{table}",
        rf"\caption{{{table.caption.translate(_TEX)}}}",
        rf"\begin{{tabular}}{{{'l' * labels}{'r' * len(table.columns)}}}",
        r"\hline",
        rf"{' & '.join(heads)} \\",
    ]
    for _, rows in groupby(table.shown(r"\textbf{{{}}}".format), key=lambda row: row[: labels - 1]):
        lines.append(r"\hline")
        for row in rows:
            numbers = [text.replace("±", r"$\pm$") for text in row[labels:]]
            lines.append(rf"{' & '.join([*(text.translate(_TEX) for text in row[:labels]), *numbers])} \\")
    return "\n".join([*lines, r"\hline", r"\end{tabular}", r"\end{table}"]) + "\n"


def as_csv(table: Table) -> str:
    """Numbers that are not rounded: per column the mean, the half-width of its interval, and the number of seeds."""
    measures = {"mean": "", "interval": " ±", "n": " n"} if table.intervals else {"mean": "", "n": " n"}
    cells = table.cells.set_index("row")
    cells["n"] = cells["n"].where(cells["n"] > 0).astype("Int64")
    parts = [pd.DataFrame(table.labels, columns=list(table.heads))]
    for column, head in table.columns.items():
        of_column = cells.loc[cells["column"] == column, list(measures)]
        parts.append(of_column.rename(columns={key: f"{head}{measure}" for key, measure in measures.items()}))
    return pd.concat(parts, axis=1).to_csv(index=False, lineterminator="\n")


def as_text(table: Table) -> str:
    """For each place and column a block: the mean of every method, its deviation, and the value of each seed."""
    blocks = []
    for place, there in grouped(table.cells, table.keys):
        for column, head in table.columns.items():
            words = in_words([*zip(table.keys, place), (table.by, head)])
            if len(cells := there[there["column"] == column]):
                blocks.append(_block(", ".join(words), cells, table))
    return "\n".join([*blocks, *(f"{note}\n" for note in table.notes)])


FORMATS: dict[str, Callable[[Table], str]] = {"markdown": markdown, "latex": latex, "csv": as_csv, "text": as_text}


def _block(title: str, cells: pd.DataFrame, table: Table) -> str:
    """One experiment in plain text: a title, a line of heads, and a line for each of the methods of some cells."""
    values = table.values.merge(cells[["row", "column"]])
    sizes, seeds = set(values["num_test"].dropna()), sorted(values["seed"].dropna().unique())
    images = f"{sizes.pop()} test images" if sizes else "test"
    names = [table.labels[row][-1] for row in cells["row"]]
    width = max(NAME_WIDTH, *map(len, names))
    lines = [
        f"{title}, accuracy on {images} (%)",
        f"  {'':{width}}  {'mean':>6}  {'std':>5}  seeds {', '.join(map(str, seeds))}",
    ]
    for name, row, mean, deviation in zip(names, cells["row"], cells["mean"], cells["deviation"]):
        of_seeds = dict(values.loc[values["row"] == row, ["seed", "value"]].to_numpy())
        each = "  ".join(f"{of_seeds[seed]:<5.2f}" if seed in of_seeds else " " * 5 for seed in seeds)
        shown = "-" if math.isnan(deviation) else f"{deviation:.2f}"
        lines.append(f"  {name:{width}}  {mean:6.2f}  {shown:>5}  {each}".rstrip())
    return "\n".join(lines) + "\n"
