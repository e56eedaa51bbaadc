"""CoOp's few-shot protocol, split files, and CoOp's pickles of few-shot samples.

The protocol visits the classes in order of first appearance, first in train, then in val. `random.sample` chooses
`shots` items of each class of train, and `min(shots, 4)` of val, with Python's generator, seeded as by Dassl's
`set_random_seed`. All items of a smaller class are taken, in split order, without a call of the generator. With the
same split file, shots and seed, the sample equals CoOp's, item for item. `shots.py` has unequal numbers of shots, and
`groups.py` groups of images, which stay whole. For CoCoOp's base-to-new protocol, the classes are split into two halves
by label after sampling. `_sample_per_label` is the protocol of several labels per image.

Pickles are read without running any code in them.
"""

import io
import logging
import math
import pickle
import posixpath
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Sequence
from pathlib import Path, PurePosixPath
from random import Random
from typing import Annotated, Any, NamedTuple

from pydantic import Field

from ..utils.errors import UserError, unknown
from ..utils.files import atomic_path, hash_file, write_json
from ..utils.reading import Count, Finite, LenientModel, read_json, reading, validate
from .groups import Group, sample_groups, shared_groups_only
from .shots import SHOTS_PER_CLASS

logger = logging.getLogger(__name__)

MAX_VAL_SHOTS = 4
RECORD_SUFFIX = ".drawn"  # of the file that records how a split file was generated
SPLITS = ("train", "val", "test")
# Accepted names of splits, as in Hugging Face's `datasets` -> our name
SPLIT_NAMES = {
    "train": "train", "training": "train",
    "val": "val", "validation": "val", "valid": "val", "dev": "val",
    "test": "test", "testing": "test", "eval": "test", "evaluation": "test",
}  # fmt: skip


def split_of(name: str) -> str:
    """Return the split, one of `SPLITS`, that a name such as "Validation" stands for; "" for another name."""
    return SPLIT_NAMES.get(name.lower(), "")


class Item(NamedTuple):
    """A labelled image, with its path relative to the data root.

    With several labels per image, `label` is a sorted tuple of all labels, perhaps (), and `classname` joins the names
    by `|`.
    """

    path: str
    label: Any  # an int, or a tuple of ints
    classname: str

    @property
    def labels(self) -> tuple[int, ...]:
        """All labels of the image."""
        return self.label if isinstance(self.label, tuple) else (self.label,)


Pools = dict[str, list[Item]]  # split, one of `SPLITS` -> all items of the split
ShotsOf = Callable[[int], int]  # label -> number of items to sample


class FewShotSample(NamedTuple):
    """Positions of the sampled items in train and val, in sampling order."""

    train: list[int]
    val: list[int]


def sample_few_shot(
    train_labels: Sequence,
    val_labels: Sequence,
    shots: int | Sequence[int],
    rng: Random,
    train_groups: Sequence[Group] | None = None,
    val_groups: Sequence[Group] | None = None,
) -> FewShotSample:
    """Sample few-shot training and validation sets by CoOp's protocol, or by that of several labels per image.

    With groups, whole groups of a class are sampled until it has enough items, and items of val whose group is in the
    training sample are left out, with a warning.

    Args:
        train_labels: Labels of all training items, in split order; for several labels per image, tuples.
        val_labels: Labels of all validation items, in split order.
        shots: Number of training items per class, or -1 for all items; or the number of each class, in label order.
        rng: `Random(seed)`, perhaps after generating a split.
        train_groups, val_groups: Group of each item; None without groups.
    """
    if shots == -1:
        train = list(range(len(train_labels)))
        return FewShotSample(train, _val_of_other_groups(len(val_labels), train, train_groups, val_groups))
    if isinstance(shots, int) and shots < 1:
        raise UserError(f"shots must be at least 1, or -1 for all, got {shots}", "shots")
    multilabel = any(isinstance(label, tuple) for label in train_labels[:1])
    counts = Counter(label for labels in train_labels for label in labels) if multilabel else Counter(train_labels)

    def shots_of(label: int) -> int:
        return shots if isinstance(shots, int) else shots[label]

    def val_shots_of(label: int) -> int:
        return min(shots_of(label), MAX_VAL_SHOTS)

    if small := [label for label, count in counts.items() if count < shots_of(label)]:
        fewer = f"fewer than {shots} training images"
        if not isinstance(shots, int):
            fewer = f"fewer training images than {SHOTS_PER_CLASS}"
        warning = "%d of %d classes have %s (minimum: %d), all of which are used"
        logger.warning(warning, len(small), len(counts), fewer, min(counts.values()))
    sample = _sample_per_label if multilabel else _sample_per_class
    train = sample(train_labels, shots_of, rng, shared_groups_only(train_groups))
    candidates = _val_of_other_groups(len(val_labels), train, train_groups, val_groups)
    groups = None if val_groups is None else [val_groups[row] for row in candidates]
    candidate_labels = [val_labels[row] for row in candidates]
    sampled = sample(candidate_labels, val_shots_of, rng, shared_groups_only(groups))
    return FewShotSample(train, [candidates[position] for position in sampled])


def _val_of_other_groups(
    num_val: int, train: Sequence[int], train_groups: Sequence[Group] | None, val_groups: Sequence[Group] | None
) -> list[int]:
    """Return the items of val whose groups are not those of the sampled items of train, all without groups."""
    if train_groups is None or val_groups is None:
        return list(range(num_val))
    trained = {train_groups[row] for row in train}
    others = [row for row, group in enumerate(val_groups) if group not in trained]
    if len(others) < num_val:
        logger.warning("left out %d of %d val images, whose groups are in train", num_val - len(others), num_val)
    return others


def _sample_rows(rows: Sequence[int], number: int, groups: Sequence[Group] | None, rng: Random) -> list[int]:
    """Sample `number` of some rows, by whole groups if there are groups."""
    return rng.sample(rows, number) if groups is None else sample_groups(rows, number, groups, rng)


def _sample_per_class(
    labels: Sequence[int], shots_of: ShotsOf, rng: Random, groups: Sequence[Group] | None = None
) -> list[int]:
    by_class: defaultdict[int, list[int]] = defaultdict(list)  # in order of first appearance
    for index, label in enumerate(labels):
        by_class[label].append(index)
    sample: list[int] = []
    for label, rows in by_class.items():
        sample += _sample_rows(rows, shots_of(label), groups, rng) if len(rows) >= shots_of(label) else rows
    return sample


def _sample_per_label(
    label_sets: Sequence[tuple[int, ...]], shots_of: ShotsOf, rng: Random, groups: Sequence[Group] | None = None
) -> list[int]:
    """Sample items with several labels until each label has its shots, or all of its items.

    Labels are visited from the rarest to the most frequent, so that few of them exceed `shots`. An item counts for all
    its labels. Items without any label are not sampled.
    """
    by_label: defaultdict[int, list[int]] = defaultdict(list)
    for index, labels in enumerate(label_sets):
        for label in labels:
            by_label[label].append(index)
    sample: dict[int, None] = {}  # in sampling order
    for label, rows in sorted(by_label.items(), key=lambda entry: (len(entry[1]), entry[0])):
        rest = [row for row in rows if row not in sample]
        missing = shots_of(label) - (len(rows) - len(rest))
        if 0 < missing < len(rest):
            rest = _sample_rows(rest, missing, groups, rng)
        if missing > 0:
            sample |= dict.fromkeys(rest)
    return list(sample)


def subsample_labels(labels: Collection[int], which: str) -> list[int]:
    """Return the sorted labels of "all" n classes, of the first `ceil(n / 2)` ("base") or of the others ("new").

    The new label of a class is its position in the list.
    """
    ordered = sorted(set(labels))
    middle = math.ceil(len(ordered) / 2)
    halves = {"all": ordered, "base": ordered[:middle], "new": ordered[middle:]}
    if which not in halves:
        raise unknown("subsample of the classes", which, halves)
    if not halves[which] and which != "all":
        raise UserError(f"SUBSAMPLE_CLASSES {which} is empty: there are {len(ordered)} classes with training images")
    return halves[which]


# --- split files: {"train"|"val"|"test": [[path, label, class name], ...]}

_Row = Annotated[tuple[str, Count, str], Field(strict=False)]  # a list in JSON, with entries of these types


class _SplitFile(LenientModel):
    train: list[_Row]
    val: list[_Row]
    test: list[_Row]


class RandomSplit(LenientModel):
    """Record of how this program generated a split file.

    Attributes:
        seed: Seed of the generator.
        sha256: Hash of the split file.
        state: State of the generator after splitting.
    """

    seed: int
    sha256: str
    state: tuple[int, tuple[int, ...], Finite | None]


def read_split_file(path: Path, prefix: str) -> Pools:
    """Read a split file `split_zhou_*.json`, and prepend `prefix` to its paths."""
    form = "expected train, val and test, each a list of [path, label, class name]"
    content = validate(_SplitFile, read_json(path), f"{path} is not a split file: {form}")
    pools: Pools = {}
    for split in SPLITS:
        pools[split] = [Item(prefix + image, label, name) for image, label, name in getattr(content, split)]
    check_pools(pools, str(path))
    return pools


def check_pools(pools: Pools, where: str) -> None:
    """Raise UserError, with the prefix `where`, if an image is listed in two splits or with two labels."""
    seen: dict[str, tuple[str, int]] = {}
    for split, items in pools.items():
        for path, label, _ in items:
            before = seen.setdefault(posixpath.normpath(path), (split, label))
            if before != (split, label):
                twice = f"in {before[0]} with the label {before[1]} and in {split} with the label {label}"
                raise UserError(f"{where} lists {path} {twice}; an image has one split and one label")


def read_random_split(split_file: Path) -> RandomSplit | None:
    """Read how this program generated a split file; None for a file from elsewhere or one that has changed since."""
    path = Path(f"{split_file}{RECORD_SUFFIX}")
    if not path.is_file():
        return None
    with reading(path, "a record of a random split; delete it, and also the split file to split again"):
        record = RandomSplit.model_validate_json(path.read_bytes())  # converts JSON lists to tuples
        Random().setstate(record.state)
    return record if record.sha256 == hash_file(split_file) else None


def write_split(split_file: Path, prefix: str, pools: Pools, seed: int, state: tuple) -> None:
    """Write a generated split, with paths without `prefix`, and before it a record of how it was generated.

    A process that finds the split thus finds the record as well.
    """
    rows = {}
    for split in SPLITS:
        rows[split] = [[path.removeprefix(prefix), label, name] for path, label, name in pools[split]]
    record = Path(f"{split_file}{RECORD_SUFFIX}")
    with atomic_path(split_file) as temporary:
        write_json(temporary, rows)
        write_json(record, {"seed": seed, "sha256": hash_file(temporary), "state": state})


# --- CoOp's pickles


class _Datum:
    """Class without code in place of `dassl.data.datasets.base_dataset.Datum`, with the same attributes."""


class _DatumUnpickler(pickle.Unpickler):
    """Unpickler of `Datum` and Python's plain types only."""

    def find_class(self, module: str, name: str) -> type:
        if name == "Datum" and module in ("dassl.data.datasets.base_dataset", "dassl.data.datasets"):
            return _Datum
        raise pickle.UnpicklingError(f"it contains {module}.{name}; nothing in it was run")


def read_coop_pickle(path: Path, folder: str) -> Pools:
    """Read the items of CoOp's `split_fewshot/shot_<shots>-seed_<seed>.pkl` or ImageNet's `preprocessed.pkl`.

    Absolute paths, perhaps of another machine, are cut to begin with `folder`, the data set's folder in the data root.
    "val" and "test" are optional.
    """
    with reading(path, "a pickle of CoOp's items; delete it, and CoOp writes it again"):
        content = _DatumUnpickler(io.BytesIO(path.read_bytes())).load()
        if not isinstance(content, dict) or not content.get("train"):
            raise ValueError("it contains no training images")
        pools = {}
        for split in SPLITS:
            if split in content:
                pools[split] = [_item(datum, folder) for datum in content[split]]
    check_pools(pools, str(path))
    return pools


def _item(datum: Any, folder: str) -> Item:
    path = datum._impath
    label = datum._label
    name = datum._classname
    if not (isinstance(path, str) and isinstance(label, int) and isinstance(name, str)):
        raise ValueError("a Datum in it lacks path, label or name")
    return Item(path_from(folder, path), label, name)


def path_from(folder: str, path: str) -> str:
    """Cut a path, perhaps of another machine, to begin with `folder`; ValueError if it is not in such a folder."""
    parts = PurePosixPath(path.replace("\\", "/")).parts
    if folder not in parts or ".." in parts:
        raise ValueError(f"the path {path} is not in a folder {folder}")
    last = len(parts) - 1 - parts[::-1].index(folder)
    return "/".join(parts[last:])
