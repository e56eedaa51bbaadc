"""Tables of what runs tell beside accuracy: costs of training, honesty of probabilities, what a threshold keeps."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..utils.errors import UserError
from .paper import Quote, with_quotes
from .records import KEEP
from .scores import MEAN_OF, PLACE, ZERO_SHOT, add_mean_place, cells, method, score
from .table import Table, tabulate

# Columns, each with the decimals that it shows
COSTS = {
    "epochs": 0, "seconds per epoch": 3, "seconds in all": 2, "trained parameters": 0, "peak memory (MB)": 0,
}  # fmt: skip
HONESTY = {
    "accuracy": 2, "macro F1": 2, "NLL": 3, "NLL at T": 3, "Brier": 3, "Brier at T": 3, "ECE": 2, "ECE at T": 2, "T": 2,
}  # fmt: skip
SCORES = {"accuracy": "accuracy", "macro F1": "macro_f1", "NLL": "nll", "Brier": "brier", "ECE": "ece"}  # in a record
AT_T = " at T"  # ends the column of a score after calibration
ZERO_SHOT_TOLERANCE = 0.005  # by how much two runs may differ in a number of zero-shot CLIP: half of what is printed


def complexity(records: Sequence[dict], quotes: Sequence[Quote] = ()) -> Table:
    """What training took, as means over seeds. All runs must have been timed on one kind of machine.

    Seconds are those of training alone, since features are encoded once for all methods. A method without epochs has
    "seconds in all" only. A method that chose on val has no seconds per epoch: its seconds are those of all candidates,
    its epochs those of the one that was chosen. Memory is the peak of the whole process. A number that not all runs of
    a row have is not shown. Runs without times, and those that tested another run's adapter, are left out. Raises
    UserError if no run has times, the machines differ, or a row would mix runs.
    """
    timed = [record for record in records if has_times(record) and not record.get("adapter_from")]
    if not timed:
        raise UserError("the records hold no times of training (`collect` leaves them out); name output folders")
    machines = {machine(record) for record in timed}
    if len(machines) > 1:
        raise UserError(f"times on different machines ({'; '.join(sorted(machines))}); name runs on one")
    keys = list(PLACE)
    frame = cells((row for record in timed for row in _costs(record)), keys, math.inf)
    known = frame.groupby([*keys, "method", "column"])["value"].transform(lambda values: values.notna().all())
    frame = with_quotes(frame[known.astype(bool)], quotes, keys, "metric", list(COSTS))
    caption = f"What training takes, means over seeds, {machines.pop()}"
    return tabulate(caption, keys, frame, {column: column for column in COSTS}, decimals=list(COSTS.values()))


def has_times(record: dict) -> bool:
    """Whether a record tells how long the training took."""
    return "training" in (record.get("seconds") or {})


def machine(record: dict) -> str:
    """The machine of a run, as far as its times depend on it: device and number of threads."""
    return f"{record.get('device')}, {record.get('threads')} threads"


def _costs(record: dict) -> list[dict]:
    """The numbers of one run; NaN for a number that it does not have."""
    epochs, seconds = record.get("epochs"), record["seconds"]["training"]
    each = seconds / epochs if epochs and record["selected_on"] != "val" else None
    values = (epochs or None, each, seconds, record.get("num_parameters"), record.get("peak_memory_mb"))
    numbers = (math.nan if value is None else value for value in values)
    return [score(record, method(record), column, number) for column, number in zip(COSTS, numbers)]


def calibration_table(records: Sequence[dict]) -> Table:
    """The scores of each method before and after calibration, as means over seeds and data sets.

    Raises UserError if no run tells them, or a row would mix runs.
    """
    # Of one place and seed, the numbers of zero-shot CLIP are those of the method `ZeroShot`, or else of the first run
    known = sorted(with_calibration(records), key=lambda record: method(record) != ZERO_SHOT)
    keys = list(PLACE)
    frame = cells((row for record in known for row in _honesty(record)), keys, ZERO_SHOT_TOLERANCE)
    frame = add_mean_place(frame, keys)
    # Means over data sets stand for the data sets themselves, which stay where there is no mean of them
    is_mean = frame["dataset"].str.startswith(MEAN_OF).astype(bool)
    others = [key for key in keys if key != "dataset"]
    averaged = is_mean.groupby([frame[key] for key in others]).transform("any").astype(bool)
    frame = frame[is_mean | ~averaged].sort_values([*others, "dataset"], kind="stable")
    caption = "Probabilities on test: accuracy, macro F1 and ECE (15 bins) in %, NLL in nats; T is the temperature"
    return tabulate(caption, keys, frame, {column: column for column in HONESTY}, decimals=list(HONESTY.values()))


def with_calibration(records: Sequence[dict]) -> list[dict]:
    """The records that tell how honest the probabilities on test are; raises UserError if there is none."""
    known = [record for record in records if has_calibration(record)]
    if not known:
        raise UserError(
            "no record holds calibration, which runs of earlier versions did not measure; run the experiment again"
        )
    return known


def has_calibration(record: dict) -> bool:
    """Whether a record tells how honest the probabilities of its method and of zero-shot CLIP are."""
    found = record.get("calibration") or {}
    return all(found.get(part) is not None for part in ("before", "after", "zero_shot"))


def _honesty(record: dict) -> list[dict]:
    """The numbers that a run tells about its method, and about zero-shot CLIP without a temperature."""
    found, name = record["calibration"], method(record)
    rows = [score(record, name, "T", found["temperature"])]
    for column, key in SCORES.items():
        rows.append(score(record, ZERO_SHOT, column, found["zero_shot"][key]))
        if name != ZERO_SHOT:
            rows.append(score(record, name, column, found["before"][key]))
        if f"{column}{AT_T}" in HONESTY:
            rows.append(score(record, name, f"{column}{AT_T}", found["after"][key]))
    return rows


def kept_table(records: Sequence[dict]) -> Table:
    """What the threshold for `KEEP` of the images of known classes keeps of the test images, which are all of them.

    It is all that records tell about the threshold: they know no image of other classes. Raises UserError if no run
    tells it, or a row would mix runs.
    """
    told = [record for record in records if has_threshold(record)]
    if not told:
        raise UserError("no record tells what a threshold keeps, which runs of earlier versions did not measure")
    frame = cells((score(record, method(record), "kept", record["rejection"]["kept"]) for record in told), list(PLACE))
    caption = f"Test images, all of known classes, that are kept by the threshold for {KEEP:.0%} of such images, in %"
    return tabulate(caption, list(PLACE), frame, {"kept": "kept"}, decimals=[2])


def has_threshold(record: dict) -> bool:
    """Whether a record tells what the threshold of its model keeps of the test images."""
    return (record.get("rejection") or {}).get("kept") is not None
