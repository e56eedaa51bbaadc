"""The paper's own numbers, typed from its tables into `results/paper.csv`, to be shown beside ours."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from ..utils.errors import UserError, unknown
from .cells import MEAN, SOURCE, Key
from .render import Cell

FILE = Path(__file__).parent / "paper.csv"

# The data sets that CoOp calls otherwise than the paper
OTHER_NAMES = {"describabletextures": "dtd", "oxfordflowers": "flowers102"}

AVERAGE = "Average"  # the paper's, of all other columns of a table


class Quote(NamedTuple):
    """One number of the paper's, in its own words; `setting` is KEY=VALUE with a key of ours."""

    table: str
    dataset: str
    method: str
    backbone: str
    shots: int
    setting: str
    metric: str
    value: float


def read_quotes(table: str) -> list[Quote]:
    """The numbers of one of the paper's tables, "1" to "5", or of its "fig2".

    Raises:
        UserError: If there is no such table, or the file is not here: a copy inside CoOp has none.
    """
    try:
        lines = FILE.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"cannot read the paper's numbers: {error}; they are in the repository only") from error
    rows = [Quote(**row | {"shots": int(row["shots"]), "value": float(row["value"])}) for row in csv.DictReader(lines)]
    if table not in (tables := {row.table for row in rows}):
        raise unknown("table of the paper", table, tables)
    return [row for row in rows if row.table == table]


def quote_cells(
    quotes: Sequence[Quote], cells: Iterable[Key], keys: Sequence[str], by: str, columns: Iterable, over: Sequence = ()
) -> dict[Key, Cell]:
    """The paper's numbers that belong into a table: of the same data set, backbone, shots and setting.

    Args:
        quotes: To choose from.
        cells: Of the table; their places count.
        keys: Of a place.
        by: What the columns are.
        columns: Of the table.
        over: The columns that a mean is taken of; the paper's average is quoted if it is over the same.
    """
    quoted = {}
    for where in dict.fromkeys(key[0] for key in cells):
        there = dict(zip(keys, where))
        for column in columns:
            wanted = there | _meaning(by, column)
            for quote in quotes:
                if _belongs(quote, wanted):
                    quoted[where, quote.method, column] = Cell(quote.value)
        if is_average_over(quotes, over):
            for quote in quotes:
                if quote.dataset == AVERAGE and _belongs(quote._replace(dataset=over[0]), there | {"dataset": over[0]}):
                    quoted[where, quote.method, MEAN] = Cell(quote.value)
    return quoted


def _meaning(by: str, column: object) -> dict[str, object]:
    if by == "target":
        return {} if column == SOURCE else {"dataset": column}
    return {by: column}


def _belongs(quote: Quote, wanted: dict[str, object]) -> bool:
    return (
        same_dataset(quote.dataset, wanted["dataset"])
        and same_backbone(quote.backbone, wanted["backbone"])
        and quote.shots == wanted["shots"]
        and quote.setting == wanted.get("setting", "")
        and quote.metric == wanted.get("metric", "accuracy")
    )


def is_average_over(quotes: Sequence[Quote], datasets: Sequence[str]) -> bool:
    """Whether the average among quotes is over just these data sets; that of table 1 is over its source too."""
    theirs = {quote.dataset for quote in quotes} - {AVERAGE}
    return len(theirs) == len(datasets) and all(any(same_dataset(t, name) for t in theirs) for name in datasets)


def same_dataset(paper: str, ours: str) -> bool:
    """Whether the paper's and our name mean one data set: "OxfordPets" is our "oxford_pets"."""
    return _plain(paper) == OTHER_NAMES.get(_plain(ours), _plain(ours))


def same_backbone(paper: str, ours: str) -> bool:
    """Whether the paper's name and ours, such as "RN50-quickgelu/openai", mean one backbone with OpenAI's weights."""
    name, _, weights = ours.rpartition("/")
    return weights == "openai" and _plain(paper).replace("resnet", "rn") == _plain(name.removesuffix("-quickgelu"))


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
