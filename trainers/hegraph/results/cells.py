"""From records to the cells of a table, each the mean over seeds of one method's runs.

All runs of a cell have the same configuration and package versions, are tested on the same images, and have different
seeds; anything else is refused. A cell for which there are no records does not exist.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ..utils.errors import UserError
from ..utils.files import hash_json
from .differences import differing_keys, shortest_names
from .methods import OURS, TEXT, ZERO_SHOT, Place, method
from .records import SAME_CLASSES
from .table import Cell, average

MEAN = "mean"  # the column of a row's mean
SOURCE = "source"  # in a comparison by target, the column of the data set that the runs were trained on

ZERO_SHOT_TOLERANCE = 1e-6  # by how many percent zero-shot accuracies of one cell may differ

Key = tuple[Place, str, object]  # place, method, column


class TestSet(NamedTuple):
    """What was tested on, and how; None for what a record does not tell.

    Attributes:
        num_test, num_classes: Numbers of images and classes.
        rule: How a model was tested on another data set than it was trained on.
        trained_on: That data set.
    """

    num_test: int | None
    num_classes: int | None
    rule: str | None
    trained_on: str | None

    @classmethod
    def of(cls, scores: dict) -> TestSet:
        """What a record, or one of its "targets", was tested on."""
        return cls(*(scores.get(name) for name in cls._fields))

    def __str__(self) -> str:
        classes = f"{self.num_classes} classes" if self.num_classes is not None else None
        source = f"trained on {self.trained_on}" if self.trained_on else None
        return ", ".join(filter(None, (f"{self.num_test} images", classes, self.rule, source)))


class Observation(NamedTuple):
    """One accuracy that one run tells.

    Attributes:
        key: The cell that it belongs to.
        seed: The seed of the run.
        value: The accuracy in percent.
        test: What the run was tested on.
        record: The record of the run.
        own: Whether the run was made for this row. A full run also tells the accuracy of its text classifier, which is
            what a run of the variant T trains; such observations have own=False. A cell takes one kind only: the own
            ones, or the others if they are more.
    """

    key: Key
    seed: int
    value: float
    test: TestSet
    record: dict
    own: bool = True


def observe(record: dict, where: Place, column: object, scores: dict | None = None) -> list[Observation]:
    """The accuracies that one test of a run tells: of its method, of zero-shot CLIP, of a full run's text classifier.

    On other domains of its classes, a full run is tested with the text classifier alone, so it counts as the variant T.
    On other classes it has no second classifier either, but its text nodes are not those of the training, so it counts
    as the method.

    Args:
        record: The record of a run, or of a test of its model on another data set, which has a "rule".
        where: The place of the cells.
        column: The column of the cells.
        scores: The test: one of the record's "targets", or None for the test that the record itself describes.
    """
    scores, name = record if scores is None else scores, method(record)
    rule = scores.get("rule")
    found = [(name, "accuracy", True), (ZERO_SHOT, "accuracy_zero_shot", True)]
    if name == OURS and rule == SAME_CLASSES:
        found[0] = (TEXT, "accuracy", False)
    elif name == OURS and not rule:
        found.append((TEXT, "accuracy_text", False))
    test = TestSet.of(scores)
    return [
        Observation((where, name, column), record["seed"], scores[key], test, record, own)
        for name, key, own in found
        if scores.get(key) is not None
    ]


def make_cells(observations: Iterable[Observation]) -> dict[Key, Cell]:
    """The cells of all observations, in the order of their places.

    Raises:
        UserError: If a cell would mix runs that must not be averaged.
    """
    by_key: dict[Key, list[Observation]] = {}
    for observation in observations:
        by_key.setdefault(observation.key, []).append(observation)
    return {key: _make_cell(found) for key, found in sorted(by_key.items(), key=lambda item: item[0][0])}


def add_mean_column(cells: dict[Key, Cell], columns: Sequence) -> None:
    """Adds the mean over several columns to every row that has a cell in each of them."""
    for where, name in list(dict.fromkeys(key[:2] for key in cells)):
        if mean := average(cells.get((where, name, column)) for column in columns):
            cells[where, name, MEAN] = mean


def add_mean_place(cells: dict[Key, Cell], position: int) -> None:
    """Adds places that are means over data sets, named after their number, such as "mean of 3".

    Places that differ in the data set alone are averaged, if there are several. A column is averaged over the data sets
    that have it for any method, so a bank of four images a class leaves the means at 16 shots to the others, in a row
    of their own. A row and column has a mean only if every one of these data sets has the cell.

    Args:
        cells: The cells, to which the means are added.
        position: Where the data set stands in a place.
    """
    having: dict[tuple[Place, object], set[str]] = {}
    for where, _, column in cells:
        having.setdefault((where[:position] + where[position + 1 :], column), set()).add(where[position])
    for where, name, column in list(cells):
        before, after = where[:position], where[position + 1 :]
        datasets = sorted(having[before + after, column])
        mean = average(cells.get(((*before, dataset, *after), name, column)) for dataset in datasets)
        if mean and len(datasets) > 1:
            cells[(*before, f"mean of {len(datasets)}", *after), name, column] = mean


def check_same(records: Sequence[dict], what: str) -> None:
    """Checks that runs have one configuration, one set of package versions and one test set, as far as they tell it.

    Args:
        records: The runs.
        what: What they were to be averaged for, as it stands in the error.

    Raises:
        UserError: If they have not.
    """
    if len({record.get("test_set") for record in records} - {None}) > 1:
        raise UserError(
            f"{what}: tested on different classes or images, as data sets of your own are, which have one name; name "
            "runs of one"
        )
    if len({record.get("config_hash") for record in records}) > 1:
        keys = {key for record in records for key in record.get("config") or {}}
        names = list(shortest_names(differing_keys(records), keys).values())
        few = [*names[:4], "..."][: len(names)]
        named = f" (they differ in {', '.join(few)})" if few else ""
        raise UserError(f"{what}: runs of different configurations{named}; name runs of one, or compare --by setting")
    if len({hash_json(record.get("versions")) for record in records}) > 1:
        packages = differing_keys(records, "versions")
        raise UserError(f"{what}: runs with different versions of {', '.join(packages)}; name runs with the same")


def check_averaged(records: Sequence[dict], what: str) -> None:
    """Checks that runs may be averaged: that `check_same` finds nothing, and no seed is there twice.

    Args:
        records: The runs.
        what: What they were to be averaged for, as it stands in the error.

    Raises:
        UserError: If they may not.
    """
    check_same(records, what)
    seeds: set[int] = set()
    for record in records:
        if record["seed"] in seeds:
            raise UserError(f"{what}: seed {record['seed']} is there more than once; name each run once")
        seeds.add(record["seed"])


def check_zero_shot(one: float, other: float, what: str, tolerance: float = ZERO_SHOT_TOLERANCE) -> None:
    """Raises UserError if two runs of one cell say different things about zero-shot CLIP."""
    if abs(one - other) > tolerance:
        raise UserError(
            f"{what}: the runs disagree about zero-shot CLIP ({one:.2f} and {other:.2f}), so they have other prompts, "
            "weights or test images; name runs with the same"
        )


def _make_cell(found: list[Observation]) -> Cell:
    where, name, column = found[0].key
    what = ", ".join(map(str, (*where, name, column)))
    test = found[0].test
    if any(o.test != test for o in found):
        tests = ", ".join(sorted({str(o.test) for o in found}))
        if len({o.test.num_test for o in found}) > 1 or all(o.test.trained_on is None for o in found):
            raise UserError(f"{what}: tested on different images ({tests}); name runs with one test set")
        raise UserError(
            f"{what}: tests of models that were trained on different data sets, or by different rules ({tests}); name "
            "runs of one kind"
        )
    values = _zero_shot_values(found, what) if name == ZERO_SHOT else _method_values(found, what)
    return Cell.over(values, test.num_test)


def _zero_shot_values(found: list[Observation], what: str) -> dict[int, float]:
    """Seed -> accuracy of zero-shot CLIP. Runs of any method tell it, and those of one seed must agree."""
    by_seed: dict[int, float] = {}
    for o in found:
        check_zero_shot(by_seed.setdefault(o.seed, o.value), o.value, what)
    return by_seed


def _method_values(found: list[Observation], what: str) -> dict[int, float]:
    """Seed -> accuracy of one method."""
    # The cache shares no parameter with the text classifier, so a full run's is as good as that of a run of variant T
    found = max([o for o in found if o.own], [o for o in found if not o.own], key=len)
    check_averaged([o.record for o in found], what)
    return {o.seed: o.value for o in found}
