"""The paper's own numbers, typed from its tables into `paper.csv` beside this file, to be shown beside ours."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from ..utils.errors import UserError, unknown
from .scores import MEAN, SOURCE
from .table import Key

FILE = Path(__file__).parent / "paper.csv"

# The data sets whose names in CoOp are not the paper's: CoOp's name -> the paper's, both without capitals and signs
OTHER_NAMES = {"describabletextures": "dtd", "oxfordflowers": "flowers102"}

_NAMED = {"target": "dataset"}  # what the columns are -> what a quote calls it, where it has another name

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
        metric: "accuracy", or a column of `costs.COSTS`.
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
        UserError: If there is no such table.
    """
    try:
        rows = list(csv.DictReader(FILE.read_text(encoding="utf-8").splitlines()))
    except OSError as error:
        raise UserError(f"cannot read the paper's numbers: {error}; copy the file from the repository") from error
    converted: list[dict[str, Any]] = [row | {"shots": int(row["shots"]), "value": float(row["value"])} for row in rows]
    quotes = [Quote(**row) for row in converted]
    if table not in (tables := {quote.table for quote in quotes}):
        raise unknown("table of the paper", table, tables)
    return [quote for quote in quotes if quote.table == table]


def quote_cells(
    quotes: Sequence[Quote],
    frame: pd.DataFrame,
    keys: Sequence[str],
    by: str,
    columns: Sequence[Any],
    averaged: Sequence[str] = (),
) -> dict[Key, float]:
    """The paper's numbers that belong into a table of ours: those of the same data set, backbone, shots and setting.

    Args:
        quotes: The numbers to choose from.
        frame: The table's cells. Numbers are quoted at their places only.
        keys: The keys of a place, some of `PLACE`.
        by: What the columns are: one of `comparison.BY`, or "metric".
        columns: The columns.
        averaged: The data sets that the table's column of means is over. The paper's average is quoted there if it is
            over the same ones.
    """
    quoted: dict[Key, float] = {}
    for place in dict.fromkeys(zip(*(frame[key] for key in keys))):
        there = dict(zip(keys, place))
        for column in columns:
            # In a comparison by target, the data set of the training is that of the place
            wanted = there if by == "target" and column == SOURCE else there | {_NAMED.get(by, by): column}
            quoted |= {(place, quote.method, column): quote.value for quote in quotes if _belongs(quote, wanted)}
        if averaged and is_average_over(quotes, averaged):
            some = averaged[0]  # an average belongs where the number of any of its data sets would
            for quote in quotes:
                if quote.dataset == AVERAGE and _belongs(quote._replace(dataset=some), there | {"dataset": some}):
                    quoted[place, quote.method, MEAN] = quote.value
    return quoted


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
