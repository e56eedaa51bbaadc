"""Records as rows of a pandas frame, one for each run and score, and the two rules of what may be averaged.

First, never average unlike runs: those of a cell are alike in `OF_TEST` and `OF_RUN`, stand at one `PLACE` and have
different seeds; `check_alike` and `check_averaged` refuse anything else. Second, a mean has nothing missing: `cells`
drops a cell where one of its runs lacks the number, and `add_means` of `table.py` has no mean where a data set or
column is missing. A new kind of run is kept apart in all tables by one more row of `PLACE`.

The paper's own numbers, typed from its tables into `paper.csv` beside this file, become rows as well.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..baselines import ALL_BASELINES
from ..utils.errors import UserError, shortened
from ..utils.files import hash_json
from ..utils.option import OUR_METHOD

if TYPE_CHECKING:  # it takes as long to import as all that the parser of a command needs
    import pandas as pd

TEXT = f"{OUR_METHOD}(T)"  # our text classifier without the cache
ZERO_SHOT = "zero-shot"  # CLIP without training; every run tells its accuracy

PAPER = f"{OUR_METHOD}(paper)"  # the full variant by the paper's recipe, a configuration *_paper
# What no recipe of ours has at once: all of `W` from Glorot's start, no noise and no messages in closed form
OF_THE_PAPER = {"TEXT_W": True, "WEIGHT_INIT": "xavier", "NOISE": 0.0, "CLOSED_FORM.OMEGA": 0.0}

ON_ZERO_SHOT = f"{OUR_METHOD}(zero-shot)"  # our unlabelled nodes on zero-shot CLIP, without a labelled image

# Rows stand in this order: the other methods as in their registry, a method that neither tuple names, our variants
BASELINES = tuple(ZERO_SHOT if name == "ZeroShot" else name for name in ALL_BASELINES)
VARIANTS = (
    ON_ZERO_SHOT,
    f"{OUR_METHOD}(base)",
    f"{OUR_METHOD}(training-free)",
    f"{OUR_METHOD}(T-N)",
    f"{OUR_METHOD}(T-P)",
    PAPER,
    TEXT,
    OUR_METHOD,
)

# The keys of a record that tell experiments of one method apart, each with the head of its column in a table
PROTOCOL = "protocol"
PLACE = {"dataset": "data set", "backbone": "backbone", "shots": "shots", PROTOCOL: "protocol"}
BY = (*PLACE, "target", "setting")  # what the columns of a comparison can be
INDUCTIVE = "inductive"  # the protocol of records that name none

# The keys of a record in which tests and runs of one cell are alike. Every method is tested alike, so zero-shot CLIP is
# averaged over the tests of all of them; the rest holds for the runs of one method
OF_TEST = ("num_test", "num_classes", "rule", "trained_on")
OF_RUN = ("test_set", "config", "versions")

CASE = "case"  # the key of a record that names the case of a sweep it belongs to
# Columns that no data set is called like: that of a row's mean, and by target that of the data set of the training
MEAN, SOURCE = "\x1fmean", "\x1fsource"
MEAN_OF = "mean of "  # begins the place of means over data sets

FILE = Path(__file__).parent / "paper.csv"
QUOTED = ("1", "2", "3", "4", "5", "fig2")  # the paper's tables and figures whose numbers are there
FITTING = ["dataset", "backbone", "shots", "setting", "metric"]  # in which a number has to fit one of ours
AVERAGE = "average"  # in the paper's tables, the mean of all other columns
# The data sets whose names in CoOp are not the paper's: CoOp's name -> the paper's, both without capitals and signs
OTHER_NAMES = {"describabletextures": "dtd", "oxfordflowers": "flowers102"}


def method(record: dict) -> str:
    """The name of the row of a run: its case if it has one, else its method and HeGraphAdapter's variant or recipe."""
    if CASE in record:
        return record[CASE]
    if record["trainer"] == "ZeroShot":
        return ON_ZERO_SHOT if record.get(PROTOCOL) else ZERO_SHOT
    config = record.get("config") or {}
    if (name := record["trainer"]) != OUR_METHOD:
        on_zero_shot = config.get(f"TRAINER.{name.upper()}.BASE") == "ZeroShot"  # a transductive method
        return f"{name}(zero-shot)" if on_zero_shot else name
    if record["variant"] != "full":
        return f"{OUR_METHOD}({record['variant'].replace('_', '-')})"
    return PAPER if all(config.get(f"TRAINER.HEGRAPHADAPTER.{k}") == v for k, v in OF_THE_PAPER.items()) else OUR_METHOD


def method_order(name: str, cases: Sequence[str] = ()) -> tuple[int, int, str]:
    """The key by which the names of rows are sorted; cases stand last, in their order."""
    for rank, names in ((3, cases), (2, VARIANTS), (0, BASELINES)):
        if name in names:
            return rank, names.index(name), name
    return 1, 0, name


def place(record: dict) -> dict[str, Any]:
    """The place of a run: its values of `PLACE`."""
    return {key: record.get(key) or INDUCTIVE if key == PROTOCOL else record[key] for key in PLACE}


def score(record: dict, name: str, column: object, value: Any, test: dict | None = None, own: bool = True) -> dict:
    """One number that a run tells of the method `name`, or None, as a row for `cells`.

    `test` is the one of the record's "targets" that gave it, None for the record's own. `own` says whether the run was
    made for this method: a full run also tells the accuracy of its text classifier, which is what a run of the variant
    T trains. A cell takes one kind only, the own ones, or the others if more.
    """
    row = {"method": name, "column": column, "seed": record["seed"], "value": value, "own": own, "quoted": False}
    fewest = min(record.get("images_per_class") or [math.inf])
    row["fewest"] = fewest if fewest < record["shots"] else None  # images of a class, where that is below the shots
    told = {key: (test or record).get(key) for key in OF_TEST} | {key: record.get(key) for key in OF_RUN}
    return place(record) | row | told


def accuracies(record: dict, column: object, test: dict | None = None) -> list[dict]:
    """The accuracies that one test of a run tells: of its method, of zero-shot CLIP, of a full run's text classifier.

    On other domains of its classes, a full run is tested with the text classifier alone, so it counts as the variant T.
    On other classes it has no second classifier either, but its text nodes are not those of the training, so it counts
    as the method.
    """
    from .records import SAME_CLASSES

    scores, name = test or record, method(record)
    found = [(name, "accuracy", True), (ZERO_SHOT, "accuracy_zero_shot", True)]
    if name == OUR_METHOD and scores.get("rule") == SAME_CLASSES:
        found[0] = (TEXT, "accuracy", False)
    elif name == OUR_METHOD and not scores.get("rule"):
        found.append((TEXT, "accuracy_text", False))
    told = [one for one in found if scores.get(one[1]) is not None]
    return [score(record, row, column, scores[key], test, own) for row, key, own in told]


def grouped(frame: pd.DataFrame, keys: Sequence[str]) -> list[tuple[tuple[Any, ...], pd.DataFrame]]:
    """The rows of each combination of values of some columns, in the order in which they come first."""
    found: Any = frame.groupby(list(keys), sort=False)
    return list(found)


# The first rule: what stands in a cell


def cells(rows: Iterable[dict], keys: Sequence[str], tolerance: float = 0.005) -> pd.DataFrame:
    """The rows of a table's cells, one for each seed, in the order of their places.

    A cell is the values of `keys`, a method and a column. Its runs may differ by `tolerance` about zero-shot CLIP: half
    of what is printed. Raises UserError if it would mix runs that must not be averaged.
    """
    import pandas as pd

    found: dict[tuple, list[dict]] = {}
    for row in sorted(rows, key=lambda row: [row[key] for key in keys if key in PLACE]):
        found.setdefault(tuple(row[key] for key in (*keys, "method", "column")), []).append(row)
    kept: list[dict] = []
    for cell, of_cell in found.items():
        of_seeds = _kept(of_cell, ", ".join(filter(None, (str(part).strip("\x1f") for part in cell))), tolerance)
        kept += of_seeds if all(row["value"] is not None for row in of_seeds) else ()
    return pd.DataFrame(kept, dtype=object)


def _kept(rows: Sequence[dict], what: str, tolerance: float) -> Sequence[dict]:
    """The rows that stay in a cell, one for each seed."""
    check_alike(rows, OF_TEST, what)
    if rows[0]["method"] == ZERO_SHOT:  # runs of any method tell it, and those of one seed must agree
        first: dict[int, dict] = {}
        for row in rows:
            one, other = first.setdefault(row["seed"], row)["value"], row["value"]
            if None not in (one, other) and abs(one - other) > tolerance:
                told = f"disagree about zero-shot CLIP ({one:.2f} and {other:.2f})"
                raise UserError(f"{what}: the runs {told}, so prompts, weights or images differ; name runs of one kind")
        return list(first.values())
    # The cache shares no parameter with the text classifier, so a full run's is as good as that of a run of variant T
    kept = max(([row for row in rows if row["own"] is own] for own in (True, False)), key=len)
    check_averaged(kept, what)
    return kept


def check_averaged(runs: Sequence[Mapping[str, Any]], what: str) -> None:
    """Raises UserError if runs of one method must not be averaged: if they are unlike, or a seed is there twice."""
    check_alike(runs, OF_RUN, what)
    seed, times = Counter(run["seed"] for run in runs).most_common(1)[0]
    if times > 1:
        raise UserError(f"{what}: seed {seed} is there more than once; name each run once")


def check_alike(runs: Sequence[Mapping[str, Any]], keys: Sequence[str], what: str) -> None:
    """Raises UserError if runs differ in one of these keys of a record; `what` they were to be averaged for is told.

    Records of earlier versions do not tell the test set, so they are like any other there.
    """
    for key in keys:
        told = {hash_json(run.get(key)): run.get(key) for run in runs}
        if key == "test_set":
            told.pop(hash_json(None), None)
        if len(told) > 1:
            aside = ", or compare --by setting" if key == "config" else ""
            differs = f"different {key}: {_difference(list(told.values()))}"
            raise UserError(f"{what}: {differs}; name runs of one kind{aside}")


def _difference(values: Sequence[Any]) -> str:
    """In what some values differ: the keys of dictionaries, a few of them, or else the values themselves."""
    if not any(isinstance(value, dict) for value in values):
        return ", ".join(shortened(str(value or "none"), 40) for value in sorted(values, key=str))
    keys = sorted(set().union(*(value or {} for value in values)))
    found = [key for key in keys if len({hash_json((value or {}).get(key)) for value in values}) > 1]
    return ", ".join([*found[:3], "..."][: len(found)])


# The paper's numbers


def read_quotes(*tables: str) -> pd.DataFrame:
    """The numbers of some of the paper's tables, each one of `QUOTED`, with data set and backbone as of `paper_name`.

    The other columns are "table", "method", "shots", "setting" ("", or in a sweep "KEY=VALUE" with a key of ours),
    "metric" ("accuracy", or a column of `comparison.COSTS`) and "value".
    """
    import pandas as pd

    quotes = pd.read_csv(FILE, dtype={"table": str}, keep_default_na=False)
    quotes["dataset"] = quotes["dataset"].map(paper_name)
    quotes["backbone"] = quotes["backbone"].map(_plain).str.replace("resnet", "rn")
    return quotes[quotes["table"].isin(tables)]


def with_quotes(
    frame: pd.DataFrame, quotes: pd.DataFrame | None, keys: Sequence[str], by: str, columns: Iterable
) -> pd.DataFrame:
    """A table's cells, and below them the paper's numbers of the same data set, backbone, shots and setting.

    Numbers from `read_quotes` are quoted at the places of the cells only, whose keys are `keys`. The `columns` are by
    one of `BY`, or by "metric". The paper's average stands beside a mean over the same data sets. That of
    its Table 1 is over the source and its targets, so it is not the mean over our targets.
    """
    import pandas as pd

    if quotes is None:
        return frame
    ours = set(frame["column" if by == "dataset" else "dataset"])
    known = {paper_name(name) for name in ours if name != MEAN and not name.startswith(MEAN_OF)}
    same = set(quotes["dataset"]) - {AVERAGE} == known
    averages = {MEAN, f"{MEAN_OF}{len(known)}"} if same else set()
    rows = []
    for there in frame[[*keys]].drop_duplicates().to_dict("records"):
        for column in columns:
            # In a comparison by target, the data set of the training is that of the place
            named = {} if column == SOURCE else {"dataset" if by == "target" else by: column}
            wanted = {"setting": "", "metric": "accuracy"} | there | named
            wanted["dataset"] = AVERAGE if wanted["dataset"] in averages else paper_name(wanted["dataset"])
            wanted["backbone"] = paper_backbone(wanted["backbone"])
            fits = quotes[FITTING].eq(pd.Series(wanted)[FITTING]).all(axis=1)
            found = quotes.loc[fits, ["method", "value"]].to_dict("records")
            rows += [there | quote | {"column": column, "quoted": True} for quote in found]
    return pd.concat([frame, pd.DataFrame(rows, dtype=object)], ignore_index=True) if rows else frame


def paper_name(dataset: str) -> str:
    """The paper's name of a data set of ours, in small letters without signs: that of "oxford_pets" is "oxfordpets"."""
    return OTHER_NAMES.get(_plain(dataset), _plain(dataset))


def paper_backbone(ours: str) -> str | None:
    """The paper's name of a backbone of ours, such as "rn50" of "RN50-quickgelu/openai".

    The paper's backbones have OpenAI's weights; ours with other weights are never the same, None.
    """
    name, _, weights = ours.rpartition("/")
    return _plain(name.removesuffix("-quickgelu")) if weights == "openai" else None


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
