"""Scores of records as rows of a pandas frame, and the two rules for averages.

1. Only comparable runs are averaged and ranked. The runs of a cell have equal values of `RUN_KEYS` and `PLACE`, and
   different seeds. The cells of all methods with one place and column have equal values of `TEST_KEYS`. `check_equal`
   and `check_averaged` raise an error otherwise. One more key in `PLACE` separates a new kind of run in all tables.
2. A mean has no missing value. `cells` drops a cell if one of its runs lacks the score, and `table.add_means` computes
   no mean if a data set or column is missing.

The paper's numbers, copied from its tables into `paper.csv`, are rows as well.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..baselines import ALL_BASELINES
from ..utils.errors import UserError
from ..utils.files import hash_json
from ..utils.option import NODE, OUR_METHOD, describe_shots
from ..utils.text import shortened

if TYPE_CHECKING:  # pandas is slow to import, and the parser of the command line does not need it
    import pandas as pd

TEXT = f"{OUR_METHOD}(T)"  # text classifier without the cache
MACRO = "macro_accuracy"  # record key
ZERO_SHOT = "zero-shot"  # CLIP without training; every run has its accuracy

PAPER = f"{OUR_METHOD}(paper)"  # the full variant with the paper's recipe, a configuration *_paper
# Options that only the paper's recipe combines: the whole of `W` with Glorot initialisation, no noise, no closed-form
# head
PAPER_OPTIONS = {"TEXT_W": True, "WEIGHT_INIT": "xavier", "NOISE": 0.0, "CLOSED_FORM.OMEGA": 0.0}

ON_ZERO_SHOT = f"{OUR_METHOD}(zero-shot)"  # zero-shot CLIP, adapted to unlabelled images without labelled ones

# Order of rows: baselines as in their registry, then methods in neither tuple, then variants of HeGraphAdapter
BASELINES = tuple(ZERO_SHOT if name == "ZeroShot" else name for name in ALL_BASELINES)
PARTIAL = [f"{OUR_METHOD}({variant})" for variant in ("base", "training-free", "T-N", "T-P")]
VARIANTS = (ON_ZERO_SHOT, *PARTIAL, PAPER, TEXT, OUR_METHOD)

# Record keys that distinguish experiments of one method, each with its table header
PROTOCOL = "protocol"
PER_CLASS = "shots_per_class"
PLACE = {
    "dataset": "data set", "backbone": "backbone", "shots": "shots", PER_CLASS: "shots per class",
    PROTOCOL: "protocol",
}  # fmt: skip
BY = (*PLACE, "target", "setting")  # choices for the columns of a comparison
TABLE_FORMATS = ("markdown", "latex", "csv", "text")  # `table.TABLE_WRITERS` has a function for each
# Values of records without the key
INDUCTIVE = "inductive"
EQUAL = "equal"
DEFAULT_PLACE = {PROTOCOL: INDUCTIVE, PER_CLASS: EQUAL}

# Record keys with equal values: `TEST_KEYS` for the runs of all methods in one place, `RUN_KEYS` for the runs of a cell
TEST_KEYS = ("num_test", "num_classes", "rule", "trained_on", "test_set")
RUN_KEYS = ("config", "versions")

CASE = "case"  # record key with the name of a case of a sweep
# Column of a row's mean, and column of the training data set in a comparison by target; no data set has such a name
MEAN, SOURCE = "\x1fmean", "\x1fsource"
MEAN_OF = "mean of "  # prefix of the name of a mean over data sets

PAPER_FILE = Path(__file__).parent / "paper.csv"
QUOTED = ("1", "2", "3", "4", "5", "fig2")  # tables and figures of the paper in `PAPER_FILE`
QUOTE_KEYS = ["dataset", "backbone", "shots", "setting", "metric"]  # equal values for a quoted number and its cell
AVERAGE = "average"  # in the paper's tables, the mean of all other columns
# Normalised name in CoOp -> name in the paper, for data sets whose names differ
PAPER_NAMES = {"describabletextures": "dtd", "oxfordflowers": "flowers102"}


def method(record: dict) -> str:
    """Name of the row of a run: its case if it has one, else its method and the variant or recipe."""
    if CASE in record:
        return record[CASE]
    if record["trainer"] == "ZeroShot":
        return ON_ZERO_SHOT if record.get(PROTOCOL) else ZERO_SHOT
    config = record.get("config") or {}
    name = record["trainer"]
    if name != OUR_METHOD:
        on_zero_shot = config.get(f"TRAINER.{name.upper()}.BASE") == "ZeroShot"  # a transductive method
        return f"{name}(zero-shot)" if on_zero_shot else name
    if record["variant"] != "full":
        return f"{OUR_METHOD}({record['variant'].replace('_', '-')})"
    is_paper = all(config.get(f"{NODE}.{key}") == value for key, value in PAPER_OPTIONS.items())
    return PAPER if is_paper else OUR_METHOD


def method_order(name: str, cases: Sequence[str] = ()) -> tuple[int, int, str]:
    """Sort key of the name of a row; cases are last, in their order."""
    for rank, names in ((3, cases), (2, VARIANTS), (0, BASELINES)):
        if name in names:
            return rank, names.index(name), name
    return 1, 0, name


def data_set(record: dict) -> str:
    """Name of the data set that a run was tested on; of a user's own images, the name of their folder, if known."""
    return record.get("source") or record["dataset"]


def shots_of(record: dict) -> str:
    """Number of shots of a run in words, with the sampled images of its classes if they are fewer."""
    return describe_shots(record["shots"], record.get("images_per_class"))


def place(record: dict) -> dict[str, Any]:
    """Return what identifies the table cell of a run apart from its method: the values of the keys `PLACE`."""
    values = {key: record.get(key) or DEFAULT_PLACE.get(key) for key in PLACE}
    return values | {"dataset": data_set(record)}


def score(record: dict, name: str, column: object, value: Any, test: dict | None = None, own: bool = True) -> dict:
    """Row for `cells` with one score of a run.

    Args:
        record: Record of the run.
        name: Method that the score belongs to.
        column: Column of the cell.
        value: The score, or None.
        test: Entry of the record's "targets" with the score; None for the test on the run's own data set.
        own: Whether the run trained this method. A full run also has the accuracy of its text classifier, which runs
            of the variant T train. A cell takes rows of one kind: the own ones, unless there are more of the other.
    """
    row = {"method": name, "column": column, "seed": record["seed"], "value": value, "own": own, "quoted": False}
    fewest = min(record.get("images_per_class") or [math.inf])
    row["fewest"] = fewest if fewest < record["shots"] else None  # images of the smallest class, if below the shots
    row["split"] = record.get("split_hash")
    scores = record if test is None else test
    compared = {key: scores.get(key) for key in TEST_KEYS} | {key: record.get(key) for key in RUN_KEYS}
    return place(record) | row | compared


def is_multilabel(record: dict) -> bool:
    """Whether the images of a run have several labels each, so that its main score is the mAP."""
    return record.get("map") is not None


def metric(records: Iterable[dict]) -> str:
    """Name of the main score of records, "accuracy" or "mAP"; UserError if they have different ones."""
    several = set(map(is_multilabel, records))
    if len(several) > 1:
        raise UserError("some runs have one label per image and others several; name runs of one kind")
    return "mAP" if True in several else "accuracy"


def title(records: Iterable[dict]) -> str:
    """Name of the main score of records at the beginning of a caption; UserError if they have different ones."""
    return metric(records).replace("accuracy", "Accuracy")


def _tested_method(record: dict, scores: dict) -> tuple[str, bool]:
    """Return the method that a test of a run scored, and whether the run trained it, as for `score`.

    On other domains of its classes, a full run is tested with the text classifier only, so it counts as the variant T.
    On other classes, it counts as the full method: its text nodes are computed from the texts of these classes.
    """
    from .records import SAME_CLASSES

    name = method(record)
    is_text = name == OUR_METHOD and scores.get("rule") == SAME_CLASSES
    return (TEXT, False) if is_text else (name, True)


def macro_accuracies(record: dict, column: object) -> list[dict]:
    """Rows with the macro accuracies of a run: of its method, and of zero-shot CLIP if there are class texts."""
    name, own = _tested_method(record, record)
    rows = [score(record, name, column, record.get(MACRO), own=own)]
    zero_shot = record.get(f"{MACRO}_zero_shot")
    return rows if zero_shot is None else [*rows, score(record, ZERO_SHOT, column, zero_shot)]


def accuracies(record: dict, column: object, test: dict | None = None) -> list[dict]:
    """Rows with the accuracies of a test of a run: of its method, zero-shot CLIP, and a full run's text classifier."""
    scores = record if test is None else test
    name, own = _tested_method(record, scores)
    key = "map" if is_multilabel(record) else "accuracy"
    rows = [(name, key, own), (ZERO_SHOT, f"{key}_zero_shot", True)]
    if name == OUR_METHOD and not scores.get("rule"):
        rows.append((TEXT, "accuracy_text", False))
    rows = [row for row in rows if scores.get(row[1]) is not None]
    return [score(record, row, column, scores[key], test, own) for row, key, own in rows]


def grouped(frame: pd.DataFrame, keys: Sequence[str]) -> list[tuple[tuple[Any, ...], pd.DataFrame]]:
    """Split a frame by the values of several columns, in order of first occurrence."""
    groups: Any = frame.groupby(list(keys), sort=False)
    return list(groups)


# Cells: the first rule


def cells(rows: Iterable[dict], keys: Sequence[str], tolerance: float = 0.005) -> pd.DataFrame:
    """Sort rows by place and reduce them to one row per cell and seed.

    Args:
        rows: Rows from `score`.
        keys: Keys that, with the method and the column, identify a cell.
        tolerance: Largest difference between runs in a score of zero-shot CLIP. The default is half of the last
            printed digit.

    Raises:
        UserError: If runs of a cell are not comparable, or no cell has a score.
    """
    import pandas as pd

    ordered = sorted(rows, key=lambda row: [row[key] for key in keys if key in PLACE])
    for test, test_rows in _split(ordered, (*keys, "column")).items():
        check_equal(test_rows, TEST_KEYS, _cell_title(test))
    selected: list[dict] = []
    for cell, cell_rows in _split(ordered, (*keys, "method", "column")).items():
        title = _cell_title(cell)
        seed_rows = _rows_by_seed(cell_rows, title, tolerance)
        selected += seed_rows if all(row["value"] is not None for row in seed_rows) else ()
    if not selected:
        raise UserError("expected runs with scores for this table, got none; name other runs")
    return pd.DataFrame(selected, dtype=object)


def _split(rows: Iterable[dict], keys: Sequence[str]) -> dict[tuple, list[dict]]:
    """Split rows by the values of some keys, in order of first occurrence."""
    parts: dict[tuple, list[dict]] = {}
    for row in rows:
        parts.setdefault(tuple(row[key] for key in keys), []).append(row)
    return parts


def _cell_title(cell: Iterable[object]) -> str:
    """Name of a cell in an error message."""
    return ", ".join(filter(None, (str(part).strip("\x1f") for part in cell)))


def _rows_by_seed(rows: Sequence[dict], title: str, tolerance: float) -> Sequence[dict]:
    """Select the rows of a cell, one for each seed."""
    if rows[0]["method"] == ZERO_SHOT:  # runs of all methods have it, and must agree for each seed
        first: dict[int, dict] = {}
        for row in rows:
            one = first.setdefault(row["seed"], row)["value"]
            other = row["value"]
            if None not in (one, other) and abs(one - other) > tolerance:
                differs = f"the runs disagree about zero-shot CLIP ({one:.2f} and {other:.2f})"
                raise UserError(f"{title}: {differs}; name runs with equal prompts, weights and images")
        return list(first.values())
    # The cache shares no parameter with the text classifier, so full runs and runs of the variant T train the same one
    own = [row for row in rows if row["own"]]
    of_full_runs = [row for row in rows if not row["own"]]
    largest = own if len(own) >= len(of_full_runs) else of_full_runs
    check_averaged(largest, title)
    return largest


def check_averaged(runs: Sequence[Mapping[str, Any]], title: str) -> None:
    """Raise UserError if runs of one method differ in `RUN_KEYS`, or two have the same seed."""
    check_equal(runs, RUN_KEYS, title)
    seed, times = Counter(run["seed"] for run in runs).most_common(1)[0]
    if times > 1:
        raise UserError(f"{title}: {times} runs have seed {seed}; name each run once")


def check_equal(runs: Sequence[Mapping[str, Any]], keys: Sequence[str], title: str) -> None:
    """Raise UserError if runs differ in one of the record keys; `title` names their mean in the message.

    A record of an earlier version has no test set, which counts as equal to any.
    """
    for key in keys:
        values = {hash_json(run.get(key)): run.get(key) for run in runs}
        if key == "test_set":
            values.pop(hash_json(None), None)
        if len(values) > 1:
            advice = ", or compare --by setting" if key == "config" else ""
            differs = f"different {key}: {_difference(list(values.values()))}"
            raise UserError(f"{title}: {differs}; name runs of one kind{advice}")


def _difference(values: Sequence[Any]) -> str:
    """Up to three keys in which dictionaries differ; for other values, the values."""
    if not any(isinstance(value, dict) for value in values):
        return ", ".join(shortened(str(value or "none"), 40) for value in sorted(values, key=str))
    keys = sorted(set().union(*(value or {} for value in values)))
    different = []
    for key in keys:
        hashes = {hash_json((value or {}).get(key)) for value in values}
        if len(hashes) > 1:
            different.append(key)
    return ", ".join([*different[:3], "..."][: len(different)])


# Numbers of the paper


def read_quotes(*tables: str) -> pd.DataFrame:
    """Read the numbers of tables of the paper, each one of `QUOTED`.

    Returns:
        Columns "table", "method", "dataset" (from `paper_name`), "backbone" (from `paper_backbone`), "shots",
        "setting" ("", or "KEY=VALUE" in a sweep), "metric" ("accuracy", or a column of `comparison.COSTS`) and "value".
    """
    import pandas as pd

    quotes = pd.read_csv(PAPER_FILE, dtype={"table": str}, keep_default_na=False)
    quotes["dataset"] = quotes["dataset"].map(paper_name)
    quotes["backbone"] = quotes["backbone"].map(_normalised).str.replace("resnet", "rn")
    return quotes[quotes["table"].isin(tables)]


def with_quotes(frame: pd.DataFrame, quotes: Any, keys: Sequence[str], by: str, columns: Iterable) -> pd.DataFrame:
    """Append the paper's numbers with the data set, backbone, shots and setting of a cell.

    The average of the paper is quoted for a mean over the same data sets. The average of its Table 1 includes the
    source, so it is not quoted for the mean over targets.

    Args:
        frame: Cells of a table.
        quotes: Numbers from `read_quotes`; None appends nothing.
        keys: Keys of `PLACE` that identify a row of the table.
        by: Key of the columns, one of `BY` or "metric".
        columns: Columns of the table.

    Raises:
        UserError: If there are quotes, and none is of a cell.
    """
    import pandas as pd

    if quotes is None:
        return frame
    names = set(frame["column" if by == "dataset" else "dataset"])
    datasets = {paper_name(name) for name in names if name != MEAN and not name.startswith(MEAN_OF)}
    same_datasets = set(quotes["dataset"]) - {AVERAGE} == datasets
    averages = {MEAN, f"{MEAN_OF}{len(datasets)}"} if same_datasets else set()
    rows = []
    for row in frame[[*keys]].drop_duplicates().to_dict("records"):
        if row.get(PER_CLASS, EQUAL) != EQUAL:  # the paper has equal numbers of training images
            continue
        for column in columns:
            # In a comparison by target, the row has the data set of training
            cell = {"setting": "", "metric": "accuracy"} | row
            if column != SOURCE:
                cell["dataset" if by == "target" else by] = column
            cell["dataset"] = AVERAGE if cell["dataset"] in averages else paper_name(cell["dataset"])
            cell["backbone"] = paper_backbone(cell["backbone"])
            matches = quotes[QUOTE_KEYS].eq(pd.Series(cell)[QUOTE_KEYS]).all(axis=1)
            quoted = quotes.loc[matches, ["method", "value"]].to_dict("records")
            rows += [row | quote | {"column": column, "quoted": True} for quote in quoted]
    if not rows:
        problem = "the paper has no number with the data set, backbone, shots and setting of these runs"
        raise UserError(f"{problem} in this table; name another table, or leave out --quote")
    return pd.concat([frame, pd.DataFrame(rows, dtype=object)], ignore_index=True)


def paper_name(dataset: str) -> str:
    """Name of a data set in the paper, in lower case without punctuation: "oxfordpets" for "oxford_pets"."""
    return PAPER_NAMES.get(_normalised(dataset), _normalised(dataset))


def paper_backbone(title: str) -> str | None:
    """Name of a backbone in the paper, such as "rn50" for "RN50-quickgelu/openai".

    The paper uses OpenAI's weights, so a backbone with other weights has none (None).
    """
    name, _, weights = title.rpartition("/")
    return _normalised(name.removesuffix("-quickgelu")) if weights == "openai" else None


def _normalised(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
