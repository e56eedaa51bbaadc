"""From records to the cells of a comparison, each the mean over seeds of one method's runs.

A cell holds runs of one configuration, with one set of package versions, tested on the same images, each seed once;
anything else is refused. What is not among the records has no cell.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ..utils.errors import UserError
from ..utils.files import hash_json
from .differences import differing_keys, shortest_names
from .render import Cell, Row, Table, average

OURS = "HeGraphAdapter"
TEXT = f"{OURS}(T)"
ZERO_SHOT = "zero-shot"

# Rows stand in this order; a method of another name stands between the two
FIRST = (
    ZERO_SHOT, "LinearProbe", "CoOp", "CLIPAdapter", "TaskRes", "TipAdapter", "TipAdapterF", "GraphAdapter",
    "ProtoCLIP", "LPPlusPlus", "APE", "APET",
)  # fmt: skip
LAST = (f"{OURS}(base)", f"{OURS}(T-N)", f"{OURS}(T-P)", TEXT, OURS)

# What tells experiments of one method apart, and the heads of these columns
PLACE = {"dataset": "data set", "backbone": "backbone", "shots": "shots"}

MEAN = "mean"  # the column of a row's mean
SOURCE = "source"  # the column of the data set that runs with targets were trained on

SAME_CLASSES = "same classes"  # the "rule" of a target that is another domain

Place = tuple  # the values of some keys of PLACE
Key = tuple[Place, str, object]  # place, method, column


class Observation(NamedTuple):
    """One number of one run.

    Attributes:
        key: The cell it belongs to.
        seed: Of the run.
        value: The number.
        test: What was tested on, the same for every run of a cell.
        record: Of the run.
        own: False for the text classifier of a full run, which counts where there are fewer runs of that variant.
    """

    key: Key
    seed: int
    value: float
    test: object
    record: dict
    own: bool = True


def method(record: dict) -> str:
    """What a run's row is called."""
    if record["trainer"] == "ZeroShot":
        return ZERO_SHOT
    if record["trainer"] != OURS:
        return record["trainer"]
    return OURS if record["variant"] == "full" else f"{OURS}({record['variant']})"


def method_order(name: str) -> tuple:
    """Sorts methods as rows."""
    if name in LAST:
        return 2, LAST.index(name), name
    return (0, FIRST.index(name), name) if name in FIRST else (1, 0, name)


def place(record: dict, keys: Iterable[str]) -> Place:
    return tuple(record[key] for key in keys)


def observe(record: dict, where: Place, column: object, scores: dict | None = None) -> list[Observation]:
    """What one test of a run tells: its method, zero-shot CLIP, and of a full run the text classifier.

    In other domains of its classes, a full run is tested with its text classifier alone, and counts as that.

    Args:
        record: Of the run.
        where: The place of the cells.
        column: Of the cells.
        scores: Of the test: one of the record's "targets"; None: the record itself.
    """
    scores, name = record if scores is None else scores, method(record)
    found = [(name, "accuracy", True), (ZERO_SHOT, "accuracy_zero_shot", True)]
    if name == OURS and scores.get("rule") == SAME_CLASSES:
        found[0] = (TEXT, "accuracy", False)
    elif name == OURS:
        found.append((TEXT, "accuracy_text", False))
    test = [scores.get(key) for key in ("num_test", "num_classes", "rule")]
    return [
        Observation((where, name, column), record["seed"], scores[key], test, record, own)
        for name, key, own in found
        if scores.get(key) is not None
    ]


def make_cells(observations: Iterable[Observation]) -> dict[Key, Cell]:
    """The cells, those of one place together, places in order.

    Raises:
        UserError: If a cell would mix runs.
    """
    by_key: dict[Key, list[Observation]] = {}
    for observation in observations:
        by_key.setdefault(observation.key, []).append(observation)
    return {key: _make_cell(found) for key, found in sorted(by_key.items(), key=lambda item: item[0][0])}


def add_mean_column(cells: dict[Key, Cell], columns: Sequence) -> None:
    """Adds to every row that has all of several columns their mean."""
    for where, name in list(dict.fromkeys(key[:2] for key in cells)):
        if mean := average([cells.get((where, name, column)) for column in columns]):
            cells[where, name, MEAN] = mean


def add_mean_place(cells: dict[Key, Cell], position: int) -> None:
    """Adds places that are means over data sets: over all those at places that are the same otherwise, if several.

    Args:
        cells: Of any places; a mean is of what all of its data sets have.
        position: Of the data set in a place.
    """
    alike: dict[Place, set[str]] = {}
    for where, _, _ in cells:
        alike.setdefault(where[:position] + where[position + 1 :], set()).add(where[position])
    for where, name, column in list(cells):
        before, after = where[:position], where[position + 1 :]
        datasets = sorted(alike[before + after])
        mean = average([cells.get(((*before, dataset, *after), name, column)) for dataset in datasets])
        if mean and len(datasets) > 1:
            cells[(*before, f"mean of {len(datasets)}", *after), name, column] = mean


def tabulate(
    caption: str,
    keys: Sequence[str],
    cells: dict[Key, Cell],
    columns: dict[object, str],
    quoted: dict[Key, Cell] | None = None,
    decimals: Sequence[int] | None = None,
) -> Table:
    """The table of cells: keys of the place that vary become columns of labels, the others go to the caption.

    Args:
        caption: What the numbers are.
        keys: Of the places.
        cells: Ours.
        columns: Column of a key -> its head.
        quoted: The paper's, below ours.
        decimals: Of each column, of numbers that are no accuracies.
    """
    places = list(dict.fromkeys(key[0] for key in cells))
    varying = [i for i in range(len(keys)) if len({where[i] for where in places}) > 1]
    constant = [
        f"{where} shots" if key == "shots" else str(where)
        for i, (key, where) in enumerate(zip(keys, places[0]))
        if i not in varying
    ]
    rows = []
    for where in places:
        labels = tuple(str(where[i]) for i in varying)
        for some, mark in ((cells, ""), (quoted or {}, " (quoted)")):
            names = sorted({key[1] for key in some if key[0] == where}, key=method_order)
            for name in names:
                numbers = [some.get((where, name, column)) for column in columns]
                rows.append(Row((*labels, f"{name}{mark}"), numbers, bool(mark)))
    if any(row.quoted for row in rows):
        constant.append("(quoted): from the paper")
    caption = ", ".join([caption, *constant])
    if decimals is None:
        caption = f"{caption}; {_over_seeds(cells.values())}"
    heads = (*(PLACE[keys[i]] for i in varying), "method")
    return Table(caption, heads, list(columns.values()), rows, decimals or [2] * len(columns), bold=decimals is None)


def check_same(records: Sequence[dict], what: str) -> None:
    """Checks that runs are of one configuration and one set of versions.

    Raises:
        UserError: If not.
    """
    if len({record.get("config_hash") for record in records}) > 1:
        names = shortest_names(
            differing_keys(records), {key for record in records for key in record.get("config") or {}}
        )
        few = [*list(names.values())[:4], "..."][: len(names)]
        named = f" (they differ in {', '.join(few)})" if few else ""
        raise UserError(f"{what}: runs of different configurations{named}; name runs of one, or compare --by setting")
    if len({hash_json(record.get("versions")) for record in records}) > 1:
        packages = differing_keys(records, "versions")
        raise UserError(f"{what}: runs with different versions of {', '.join(packages)}; name runs with the same")


def _make_cell(found: list[Observation]) -> Cell:
    where, name, column = found[0].key
    what = ", ".join(map(str, (*where, name, column)))
    if any(o.test != found[0].test for o in found):
        sizes = sorted({_test_size(o.test) for o in found})
        raise UserError(f"{what}: tested on different images ({', '.join(sizes)}); name runs with one test set")
    by_seed: dict[int, float] = {}
    if name == ZERO_SHOT:  # every run tells it, of whatever method
        for o in found:
            if abs(by_seed.setdefault(o.seed, o.value) - o.value) > 1e-6:
                raise UserError(
                    f"{what}: the runs disagree about zero-shot CLIP ({by_seed[o.seed]:.2f} and {o.value:.2f}), so "
                    "they have other prompts, weights or test images; name runs with the same"
                )
        return Cell.over(by_seed)
    # a variant's own runs, unless more full runs tell the same: the two classifiers share no parameter
    found = max([o for o in found if o.own], [o for o in found if not o.own], key=len)
    check_same([o.record for o in found], what)
    for o in found:
        if o.seed in by_seed:
            raise UserError(f"{what}: seed {o.seed} is there more than once; name each run once")
        by_seed[o.seed] = o.value
    return Cell.over(dict(sorted(by_seed.items())))


def _test_size(test: Sequence) -> str:
    images, classes, rule = test
    return ", ".join(
        [f"{images} images"] + [f"{classes} classes"] * (classes is not None) + [rule] * (rule is not None)
    )


def _over_seeds(cells: Iterable[Cell]) -> str:
    """Says what the intervals are, and over how many seeds."""
    counts = sorted({len(cell.by_seed) for cell in cells if cell.by_seed})
    if not counts or counts == [1]:
        return "1 seed, so no interval"
    n = f"n = {counts[0]}" if len(counts) == 1 else f"n = {counts[0]} to {counts[-1]}"
    alone = ", none for one seed" if counts[0] == 1 else ""
    return f"mean ± half-width of its 95% interval (Student's t) over {n} seeds{alone}"
