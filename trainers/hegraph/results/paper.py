"""The paper's own numbers, typed from its tables into `paper.csv` beside this file, to be shown beside ours."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from ..utils.errors import unknown
from .scores import MEAN, SOURCE

FILE = Path(__file__).parent / "paper.csv"

# The data sets whose names in CoOp are not the paper's: CoOp's name -> the paper's, both without capitals and signs
OTHER_NAMES = {"describabletextures": "dtd", "oxfordflowers": "flowers102"}

_NAMED = {"target": "dataset"}  # what the columns are -> what a quote calls it, where it has another name

AVERAGE = "Average"  # the paper's name for the mean of all other columns of a table


class Quote(NamedTuple):
    """One number of the paper. Data set, method and backbone are named as there.

    Attributes:
        table: The table or figure that it is from: "1" to "5", or "fig2".
        dataset: The data set, or `AVERAGE`.
        shots: Training images per class.
        setting: "" or, in a sweep, "KEY=VALUE" with a configuration key of ours.
        metric: "accuracy", or a column of `costs.COSTS`.
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
    """Reads the numbers of one of the paper's tables: "1" to "5", or "fig2".

    Raises UserError if there is no such table.
    """
    rows: Any = pd.read_csv(FILE, dtype={"table": str}, keep_default_na=False).to_dict("records")
    quotes = [Quote(**row) for row in rows]
    if table not in (tables := {quote.table for quote in quotes}):
        raise unknown("table of the paper", table, tables)
    return [quote for quote in quotes if quote.table == table]


def with_quotes(
    frame: pd.DataFrame,
    quotes: Sequence[Quote],
    keys: Sequence[str],
    by: str,
    columns: Sequence[Any],
    averaged: Sequence[str] = (),
) -> pd.DataFrame:
    """A table's cells, and below them the paper's numbers of the same data set, backbone, shots and setting.

    Args:
        frame: The cells. Numbers are quoted at their places only.
        quotes: The numbers to choose from.
        keys: The keys of a place, some of `PLACE`.
        by: What the columns are: one of `comparison.BY`, or "metric".
        columns: The columns.
        averaged: The data sets of the table's column of means, where the paper's average over the same ones is quoted.
    """
    rows = []
    average = [quote for quote in quotes if quote.dataset == AVERAGE and is_average_over(quotes, averaged)]
    for place in dict.fromkeys(zip(*(frame[key] for key in keys))):
        there = dict(zip(keys, place))
        for column in columns:
            # In a comparison by target, the data set of the training is that of the place
            wanted = there if by == "target" and column == SOURCE else there | {_NAMED.get(by, by): column}
            rows += [there | _row(quote, column) for quote in quotes if _belongs(quote, wanted)]
        for quote in average:  # which belongs where the number of any of its data sets would
            if _belongs(quote._replace(dataset=averaged[0]), there | {"dataset": averaged[0]}):
                rows.append(there | _row(quote, MEAN))
    return pd.concat([frame, pd.DataFrame(rows, dtype=object)], ignore_index=True) if rows else frame


def _row(quote: Quote, column: object) -> dict[str, Any]:
    told = {"method": quote.method, "column": column, "value": quote.value}
    return told | {"quoted": True, "seed": None, "num_test": None}


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
