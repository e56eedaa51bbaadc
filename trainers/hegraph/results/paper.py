"""The paper's own numbers, typed from its tables into `paper.csv` beside this file, to be shown beside ours."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..utils.errors import UserError, unknown
from .cells import MEAN, SOURCE, Key
from .table import Cell

FILE = Path(__file__).parent / "paper.csv"

# The data sets whose names in CoOp are not the paper's: CoOp's name -> the paper's, both without capitals and signs
OTHER_NAMES = {"describabletextures": "dtd", "oxfordflowers": "flowers102"}

AVERAGE = "Average"  # the paper's name for the mean of all other columns of a table


class Quote(NamedTuple):
    """One number of the paper.

    Attributes:
        table: The table or figure that it is from: "1" to "5", or "fig2".
        dataset: The data set, as the paper names it, or `AVERAGE`.
        method: The method, as the paper names it.
        backbone: The backbone, as the paper names it.
        shots: Training images per class.
        setting: "" or, in a sweep, "KEY=VALUE" with a configuration key of ours.
        metric: "accuracy", or a column of `costs.COLUMNS`.
        value: The number.
    """

    table: str
    dataset: str
    method: str
    backbone: str
    shots: int
    setting: str
    metric: str
    value: float


def read_quotes(table: str) -> list[Quote]:
    """Reads the numbers of one of the paper's tables.

    Args:
        table: "1" to "5", or "fig2".

    Raises:
        UserError: If there is no such table, or the file of the numbers cannot be read.
    """
    try:
        lines = FILE.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"cannot read the paper's numbers: {error}; copy the file from the repository") from error
    quotes = [_quote(row) for row in csv.DictReader(lines)]
    if table not in (tables := {quote.table for quote in quotes}):
        raise unknown("table of the paper", table, tables)
    return [quote for quote in quotes if quote.table == table]


def quote_cells(
    quotes: Sequence[Quote],
    cells: Iterable[Key],
    keys: Sequence[str],
    by: str,
    columns: Sequence[Any],
    averaged: Sequence[str] = (),
) -> dict[Key, Cell]:
    """The paper's numbers that belong into a table of ours: those of the same data set, backbone, shots and setting.

    Args:
        quotes: The numbers to choose from.
        cells: The keys of the table's cells. Numbers are quoted at their places only.
        keys: The keys of a place, some of `PLACE`.
        by: What the columns are: one of `comparison.BY`, or "metric".
        columns: The columns.
        averaged: The data sets that the table's column of means is over. The paper's average is quoted there if it is
            over the same ones.
    """
    quoted: dict[Key, Cell] = {}
    for where in dict.fromkeys(key[0] for key in cells):
        there = dict(zip(keys, where))
        for column in columns:
            wanted = there | _meaning(by, column)
            for quote in quotes:
                if _belongs(quote, wanted):
                    quoted[where, quote.method, column] = Cell(quote.value)
        if averaged and is_average_over(quotes, averaged):
            some = averaged[0]  # an average belongs where the number of any of its data sets would
            for quote in quotes:
                if quote.dataset == AVERAGE and _belongs(quote._replace(dataset=some), there | {"dataset": some}):
                    quoted[where, quote.method, MEAN] = Cell(quote.value)
    return quoted


def _quote(row: dict[str, str]) -> Quote:
    row = dict(row)
    shots, value = int(row.pop("shots")), float(row.pop("value"))
    return Quote(**row, shots=shots, value=value)


def _meaning(by: str, column: Any) -> dict[str, Any]:
    """What a column says about its numbers, beside what their place says."""
    if by == "target":
        return {} if column == SOURCE else {"dataset": column}
    return {by: column}


def _belongs(quote: Quote, wanted: dict[str, Any]) -> bool:
    return (
        same_dataset(quote.dataset, wanted["dataset"])
        and same_backbone(quote.backbone, wanted["backbone"])
        and quote.shots == wanted["shots"]
        and quote.setting == wanted.get("setting", "")
        and quote.metric == wanted.get("metric", "accuracy")
    )


def is_average_over(quotes: Sequence[Quote], datasets: Sequence[str]) -> bool:
    """Whether the paper's average is over exactly these data sets, which are named as we name them.

    The average in the paper's Table 1 is over the source and its targets, so it is not the mean over our targets.
    """
    theirs = {quote.dataset for quote in quotes} - {AVERAGE}
    return len(theirs) == len(datasets) and all(any(same_dataset(t, name) for t in theirs) for name in datasets)


def same_dataset(paper: str, ours: str) -> bool:
    """Whether the paper's name and ours mean the same data set, such as "OxfordPets" and "oxford_pets"."""
    return _plain(paper) == OTHER_NAMES.get(_plain(ours), _plain(ours))


def same_backbone(paper: str, ours: str) -> bool:
    """Whether the paper's name and ours mean the same backbone, such as "ResNet-50" and "RN50-quickgelu/openai".

    The paper's backbones have OpenAI's weights; ours with other weights are never the same.
    """
    name, _, weights = ours.rpartition("/")
    return weights == "openai" and _plain(paper).replace("resnet", "rn") == _plain(name.removesuffix("-quickgelu"))


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
