"""Means over data sets, and tables of scores over seeds as Markdown, LaTeX, CSV and plain text."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from itertools import groupby
from statistics import fmean
from typing import Any

import pandas as pd
from scipy.special import stdtrit

from ..utils.option import describe_shots
from .scores import DEFAULT_PLACE, MEAN_OF, PLACE, TABLE_FORMATS, grouped, method_order

CONFIDENCE = 0.95
MIN_NAME_WIDTH = 18  # characters of the methods' column in plain text


# Means over data sets or columns: the second rule of `scores.py`


def add_means(
    frame: pd.DataFrame, over: str, keys: Sequence[str], names: Sequence = (), title: str = "", mean: Callable = fmean
) -> pd.DataFrame:
    """Append rows with the mean of each method over values of a column, such as over data sets.

    The mean is computed for each seed if all values have the same seeds. Otherwise it is the mean of the means over
    seeds, and its seed is None.

    Args:
        frame: Cells of a table.
        over: Column of the frame, such as "dataset".
        keys: Columns that, with the method, have equal values in all cells of a mean.
        names: Values of `over`; by default all values of any method. A method without one of them gets no mean, and
            neither does a single value.
        title: Value of `over` in the appended rows (default: such as "mean of 3").
        mean: Function from a sequence of numbers to their mean.
    """
    parts = [frame]
    for _, group in grouped(frame, keys):
        averaged = list(names or group[over].unique())
        for _, part in grouped(group[group[over].isin(averaged)], ["method"]):
            if len(averaged) == 1 or part[over].nunique() < len(averaged):
                continue
            shared = part.iloc[:1].drop(columns=["seed", "value"]).assign(num_test=None, split=None)
            shared[over] = title or f"{MEAN_OF}{len(averaged)}"
            if part.groupby(over)["seed"].agg(frozenset).nunique() > 1:
                part = part.groupby(over, sort=False)["value"].agg(fmean).reset_index().assign(seed=None)
            means = part.groupby("seed", sort=False, dropna=False)["value"].agg(mean).reset_index()
            parts.append(shared.merge(means, how="cross").astype(object))
    return pd.concat(parts, ignore_index=True)


def add_mean_places(frame: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """Append means over data sets.

    Each column is averaged over the data sets with a score of any method. A data set with four images per class, for
    example, is not part of the means at 16 shots, which are then a row of their own.
    """
    return add_means(frame, "dataset", [*(key for key in keys if key != "dataset"), "column"])


# Tables


class Table:
    """Table of scores over seeds.

    Attributes:
        heads: Headers of the label columns; the last one is the method.
        labels: Labels of every row.
        values: Frame with one line per score and seed, with the number of its "row" and its "column".
        notes: Notes about the training images, which end the caption.
        caption, columns, decimals, intervals, keys, by: As in `__init__`.
        bold: Whether the best score of a column is bold.
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
        """Create a table from cells.

        Args:
            caption: Name of the scores. Values that all rows share and an explanation of the intervals are appended.
            keys: Keys of `scores.PLACE`. Keys with several values become labels of the rows.
            frame: Cells from `scores.cells`, with quoted numbers, which have rows of their own.
            columns: Column of the cells -> header; by default the keys of `decimals`.
            decimals: Number of decimals of each column, for scores that are no accuracies. These have no intervals,
                and none is bold.
            intervals: Whether to print means with their intervals.
            by: Key of the records whose values are the columns; "" if there is none.
            cases: Names of rows that are cases of a sweep, in order.
        """
        names = sorted(frame["method"].unique(), key=lambda name: method_order(name, cases))
        ranks = {"place": frame.groupby(list(keys), sort=False).ngroup(), "rank": frame["method"].map(names.index)}
        values = frame.astype({"value": float, "quoted": bool}).assign(**ranks)
        values = values.sort_values(["place", "quoted", "rank"], kind="stable", ignore_index=True)
        values["row"] = values.groupby(["place", "quoted", "rank"]).ngroup()
        rows = values.drop_duplicates("row")
        varying = [key for key in keys if frame[key].nunique() > 1]
        titles = rows["method"] + rows["quoted"].map({True: " (quoted)", False: ""})
        self.labels = list(zip(*(rows[key].map(str) for key in varying), titles))
        self.heads = (*(PLACE.get(key, key) for key in varying), "method")
        self.columns = columns or {column: column for column in decimals or ()}
        self.decimals = decimals or dict.fromkeys(self.columns, 2)
        self.keys = list(keys)
        self.values = values
        self.by = by
        self.bold = decimals is None
        self.intervals = intervals and decimals is None
        shared = place_text((key, frame[key].iloc[0]) for key in keys if key not in varying)
        quoted = ["(quoted): from the paper"] if values["quoted"].any() else []
        self.notes = _notes(frame)
        self.caption = "; ".join([", ".join([caption, *shared, *quoted]), *self.notes])
        if decimals is None:
            self.caption += f"; {_seeds_text(values.groupby(['row', 'column'])['seed'].count(), intervals)}"

    @cached_property
    def cells(self) -> pd.DataFrame:
        """Statistics of every cell.

        Columns: `keys`, "method", "quoted", "row", "column", "mean", "n" (number of seeds; 0 for a score without a
        seed, such as a quoted one), and from two seeds on "deviation" (of a sample, with n - 1) and "interval" (half
        the width of the 95% interval of the mean by Student's t).
        """
        groups: Any = self.values.groupby(["row", "quoted", "method", "column", *self.keys], sort=False)
        cells = groups.agg(mean=("value", fmean), deviation=("value", "std"), n=("seed", "count"))
        factor = stdtrit(cells["n"] - 1, (1 + CONFIDENCE) / 2) / cells["n"] ** 0.5
        return cells.assign(interval=factor * cells["deviation"]).reset_index()

    def text_rows(self, bold: Callable[[str], str]) -> list[list[str]]:
        """Labels and scores of every row as text; an empty cell is "".

        Args:
            bold: Function that marks the text of the best score.

        A cell with fewer seeds than another one of the table ends with their number.
        """
        cells = self.cells
        decimals = cells["column"].map(self.decimals)
        text = [f"{mean:.{n}f}" for mean, n in zip(cells["mean"], decimals)]
        measured = pd.Series(text).astype(float).where(~cells["quoted"])
        groups = measured.groupby([cells[key] for key in ("column", *self.keys)])
        best = self.bold & (measured == groups.transform("max"))
        if self.intervals:
            widths = [f" ± {width:.{n}f}" if width >= 0 else "" for width, n in zip(cells["interval"], decimals)]
            text = [mean + width for mean, width in zip(text, widths)]
        text = [cell + seeds for cell, seeds in zip(text, _fewer_seeds(cells))]
        text = [bold(cell) if is_best else cell for cell, is_best in zip(text, best)]
        cells = cells.assign(text=pd.Series(text, dtype=object))  # `bold` may return a subclass of str
        wide = cells.set_index(["row", "column"])["text"].unstack(fill_value="")
        scores = wide.reindex(columns=list(self.columns), fill_value="").to_numpy().tolist()
        return [[*labels, *row] for labels, row in zip(self.labels, scores)]


def place_text(place: Iterable[tuple[str, Any]]) -> list[str]:
    """Text of keys and their values, such as "4 shots"; the values of `DEFAULT_PLACE` are left out."""
    named = (pair for pair in place if pair not in DEFAULT_PLACE.items())
    return [describe_shots(value) if key == "shots" else str(value) for key, value in named]


def _notes(frame: pd.DataFrame) -> list[str]:
    """Notes about classes with fewer training images than shots, and about seeds with one sample of training images."""
    short = frame[frame["fewest"].notna()] if "fewest" in frame else frame[:0]
    by_shots = grouped(short, ["shots"]) if len(short) else []
    notes = [f"{describe_shots(shots)}: as few as {rows['fewest'].min()} in a class" for (shots,), rows in by_shots]
    named = frame[frame["split"].notna()] if "split" in frame else frame[:0]
    shared: dict[str, None] = {}
    for (dataset, shots, _), rows in grouped(named, ["dataset", "shots", "method"]) if len(named) else []:
        if rows["split"].nunique() < rows["seed"].nunique():
            shared[f"{dataset} with {describe_shots(shots)}"] = None
    if shared:
        notes.append(f"several seeds have the same training images: {', '.join(shared)}")
    return notes


def _seeds_text(counts: pd.Series, intervals: bool) -> str:
    """Text such as "mean over n = 3 seeds", from the number of seeds of each cell, which is 0 for a quoted score.

    Cells with fewer seeds than others name theirs (`_fewer_seeds`).
    """
    fewest = counts[counts > 0].min()
    most = counts.max()
    if most <= 1:
        return "1 seed"
    n = f"{most}" if fewest == most else f"{fewest} to {most}"
    interval = " ± half-width of its 95% interval for these test images (Student's t)" if intervals else ""
    return f"mean{interval} over n = {n} seeds"


def _fewer_seeds(cells: pd.DataFrame) -> list[str]:
    """Text such as " (n = 2)" for each cell with fewer seeds than others, " (unequal seeds)" for a mean of them."""
    most = cells["n"].max()
    texts = []
    for n, is_quoted in zip(cells["n"], cells["quoted"]):
        text = " (unequal seeds)" if n == 0 else f" (n = {n})"
        texts.append("" if is_quoted or n == most else text)
    return texts


def markdown(table: Table) -> str:
    """Caption and table in GitHub's Markdown."""
    heads = [*table.heads, *table.columns.values()]
    return f"{table.caption}\n\n{markdown_table(heads, table.text_rows('**{}**'.format), len(table.heads))}"


def markdown_table(heads: Sequence[str], rows: Iterable[Sequence[str]], labels: int = 1) -> str:
    """Table in GitHub's Markdown; the first `labels` columns are left-aligned, the others right-aligned.

    The cells are not padded, as `pandas.DataFrame.to_markdown` does, so that one new score changes one line of a page.
    """
    ruler = ["---"] * labels + ["---:"] * (len(heads) - labels)
    lines = []
    for cells in (heads, ruler, *rows):
        escaped = [text.replace("|", r"\|") for text in cells]
        lines.append(f"| {' | '.join(escaped)} |\n")
    return "".join(lines)


_TEX = str.maketrans({character: rf"\{character}" for character in "&%$#_{}"})
_TEX |= str.maketrans({"\\": r"\textbackslash ", "±": r"$\pm$", "~": r"\textasciitilde ", "^": r"\textasciicircum "})


def latex(table: Table) -> str:
    """LaTeX `table` environment with its caption.

    It needs no LaTeX package; the rules of pandas' `Styler.to_latex` need booktabs.
    """
    labels = len(table.heads)
    heads = [text.translate(_TEX) for text in (*table.heads, *table.columns.values())]
    alignment = "l" * labels + "r" * len(table.columns)
    lines = [r"\begin{table}", rf"\caption{{{table.caption.translate(_TEX)}}}", rf"\begin{{tabular}}{{{alignment}}}"]
    lines += [r"\hline", rf"{' & '.join(heads)} \\"]
    for _, rows in groupby(table.text_rows(r"\textbf{{{}}}".format), key=lambda row: row[: labels - 1]):
        lines.append(r"\hline")
        for row in rows:
            scores = [text.replace("±", r"$\pm$") for text in row[labels:]]
            lines.append(rf"{' & '.join([*(text.translate(_TEX) for text in row[:labels]), *scores])} \\")
    return "\n".join([*lines, r"\hline", r"\end{tabular}", r"\end{table}"]) + "\n"


def as_csv(table: Table) -> str:
    """CSV with full precision: for each column the mean, the half-width of its interval, and the number of seeds."""
    measures = {"mean": "", "interval": " ±", "n": " n"} if table.intervals else {"mean": "", "n": " n"}
    cells = table.cells.set_index("row")
    cells["n"] = cells["n"].where(cells["n"] > 0).astype("Int64")
    parts = [pd.DataFrame(table.labels, columns=list(table.heads))]
    for column, head in table.columns.items():
        statistics = cells.loc[cells["column"] == column, list(measures)]
        parts.append(statistics.rename(columns={key: f"{head}{measure}" for key, measure in measures.items()}))
    return pd.concat(parts, axis=1).to_csv(index=False, lineterminator="\n")


def as_text(table: Table) -> str:
    """Plain text with a block per experiment: mean, standard deviation and scores by seed of every method."""
    blocks = []
    for place, place_cells in grouped(table.cells, table.keys):
        for column, head in table.columns.items():
            value = column if table.by == "shots" else head  # a header has no unit
            title = ", ".join(place_text([*zip(table.keys, place), (table.by, value)]))
            cells = place_cells[place_cells["column"] == column]
            if len(cells):
                blocks.append(_block(title, cells, table))
    return "\n".join([*blocks, *(f"{note}\n" for note in table.notes)])


TABLE_WRITERS: dict[str, Callable[[Table], str]] = dict(zip(TABLE_FORMATS, (markdown, latex, as_csv, as_text)))


def _block(title: str, cells: pd.DataFrame, table: Table) -> str:
    """Block of `as_text`: a title, a header, and a line for each method."""
    values = table.values.merge(cells[["row", "column"]])
    sizes = set(values["num_test"].dropna())
    seeds = sorted(values["seed"].dropna().unique())
    images = f"{sizes.pop()} test images" if sizes else "test"
    names = [table.labels[row][-1] for row in cells["row"]]
    width = max(MIN_NAME_WIDTH, *map(len, names))
    score_names = {"mAP": "mAP", "Macro": "macro accuracy"}
    score = score_names.get(table.caption.split(maxsplit=1)[0], "accuracy")
    head = f"  {'':{width}}  {'mean':>6}  {'std':>5}  seeds {', '.join(map(str, seeds))}"
    lines = [f"{title}, {score} on {images} (%)", head]
    for name, row, mean, deviation in zip(names, cells["row"], cells["mean"], cells["deviation"]):
        by_seed = dict(values.loc[values["row"] == row, ["seed", "value"]].to_numpy())
        scores = "  ".join(f"{by_seed[seed]:<5.2f}" if seed in by_seed else " " * 5 for seed in seeds)
        std = "-" if math.isnan(deviation) else f"{deviation:.2f}"
        lines.append(f"  {name:{width}}  {mean:6.2f}  {std:>5}  {scores}".rstrip())
    return "\n".join(lines) + "\n"
