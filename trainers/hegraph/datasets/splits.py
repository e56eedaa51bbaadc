"""CoOp's few-shot protocol, and the files that hold its splits and selections.

The classes are visited in order of first appearance, first all of train and then all of val. For each, `random.sample`
draws `shots` items of train, or `min(shots, 4)` of val, from Python's generator seeded as Dassl's `set_random_seed`
does. A class that has fewer items is taken whole, in split order, and nothing is drawn for it. With the same split
file, shots and seed, the selection is CoOp's, item for item. For CoCoOp's base-to-new protocol, the classes are cut
into two halves by label, after the few-shot selection.

CoOp keeps selections as pickles. They are read without running any code that they hold.
"""

from __future__ import annotations

import io
import logging
import math
import pickle
import posixpath
import random
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, NamedTuple

from pydantic import Field

from ..utils.errors import UserError, unknown
from ..utils.files import hash_file, write_json
from ..utils.reading import Count, Finite, OpenPart, check, read_json, reading

logger = logging.getLogger(__name__)

MAX_VAL_SHOTS = 4
DRAWN = ".drawn"  # the ending of the file beside a split file that was drawn here
SPLITS = ("train", "val", "test")
# A folder, a file, a column or a split that other programs name otherwise; as Hugging Face's `datasets` knows them
SPLIT_NAMES = {
    "train": "train", "training": "train",
    "val": "val", "validation": "val", "valid": "val", "dev": "val",
    "test": "test", "testing": "test", "eval": "test", "evaluation": "test",
}  # fmt: skip


class Item(NamedTuple):
    """One labelled image: its path relative to the data root, its label, its class name."""

    path: str
    label: int
    classname: str


Pools = dict[str, list[Item]]  # split, one of `SPLITS` -> all its items


class FewShotSample(NamedTuple):
    """The positions in the pools of train and val that the protocol selects, in the order in which it draws them."""

    train: list[int]
    val: list[int]


def images_per_class(shots: int, counts: Sequence[int] | None) -> str:
    """Text after a number of shots, such as " (8 to 16 images per class)"; "" if each class has that many images.

    `counts` are the sampled images of each class, or the fewest and the most; None if they are unknown.
    """
    if shots == -1 or not counts or set(counts) == {shots}:
        return ""
    fewest, most = min(counts), max(counts)
    return f" ({f'{fewest} to ' if fewest < most else ''}{most} images per class)"


def sample_few_shot(
    train_labels: Sequence[int], val_labels: Sequence[int], shots: int, rng: random.Random
) -> FewShotSample:
    """Draws the few-shot training and validation sets from the labels of all items, in split order.

    -1 shots select everything. `rng` is `random.Random(seed)`, from which the split may have been drawn before.
    """
    if shots == -1:
        return FewShotSample(list(range(len(train_labels))), list(range(len(val_labels))))
    if shots < 1:
        raise UserError(f"shots must be at least 1, or -1 for all, got {shots}")
    counts = Counter(train_labels)
    if small := [label for label, count in counts.items() if count < shots]:
        said = "%d of %d classes have fewer than %d training images (fewest: %d); these are taken whole"
        logger.warning(said, len(small), len(counts), shots, min(counts.values()))
    train = _sample_per_class(train_labels, shots, rng)
    return FewShotSample(train, _sample_per_class(val_labels, min(shots, MAX_VAL_SHOTS), rng))


def _sample_per_class(labels: Sequence[int], shots: int, rng: random.Random) -> list[int]:
    by_class: defaultdict[int, list[int]] = defaultdict(list)  # keeps the order of first appearance
    for index, label in enumerate(labels):
        by_class[label].append(index)
    selected = []
    for indices in by_class.values():
        selected += rng.sample(indices, shots) if len(indices) >= shots else indices
    return selected


def subsample_labels(labels: Collection[int], which: str) -> list[int]:
    """The sorted labels of "all" classes, of "base", the first `ceil(n / 2)` of n, or of "new", the rest.

    The position in the list is a class's new label.
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

_Row = Annotated[tuple[str, Count, str], Field(strict=False)]  # a list in JSON; its entries are not converted


class _SplitFile(OpenPart):
    train: list[_Row]
    val: list[_Row]
    test: list[_Row]


class RandomSplit(OpenPart):
    """How a split file was drawn here: the seed, the SHA-256 of the file, the generator's state afterwards."""

    seed: int
    sha256: str
    state: tuple[int, tuple[int, ...], Finite | None]


def read_split_file(path: Path, prefix: str) -> Pools:
    """The pools of a file `split_zhou_*.json`; `prefix` goes before the paths that it lists."""
    form = "it must hold train, val and test, each a list of [path, label, class name]"
    splits = check(_SplitFile, read_json(path), f"{path} is not a split file: {form}")
    pools = {split: [Item(prefix + image, *of) for image, *of in getattr(splits, split)] for split in SPLITS}
    check_pools(pools, str(path))
    return pools


def check_pools(pools: Pools, where: str) -> None:
    """Raises UserError, which begins with `where`, if an image is listed in two splits, or with two labels."""
    seen: dict[str, tuple[str, int]] = {}
    for split, items in pools.items():
        for path, label, _ in items:
            before = seen.setdefault(posixpath.normpath(path), (split, label))
            if before != (split, label):
                twice = f"in {before[0]} with the label {before[1]} and in {split} with the label {label}"
                raise UserError(f"{where} lists {path} {twice}; an image has one split and one label")


def read_random_split(split_file: Path) -> RandomSplit | None:
    """How this program drew a split file; None if it did not, or the file has been changed or replaced since."""
    path = Path(f"{split_file}{DRAWN}")
    if not path.is_file():
        return None
    with reading(path, "how a split was drawn; delete it, and the split file too to have it drawn anew"):
        drawn = RandomSplit.model_validate_json(path.read_bytes())  # in which lists are tuples
        random.Random().setstate(drawn.state)
    return drawn if drawn.sha256 == hash_file(split_file) else None


def write_random_split(split_file: Path, prefix: str, pools: Pools, seed: int, state: tuple) -> None:
    """Writes a split that was drawn, with paths without their `prefix`, and then how it was drawn."""
    write_json(split_file, {s: [[path.removeprefix(prefix), *of] for path, *of in pools[s]] for s in SPLITS})
    write_json(Path(f"{split_file}{DRAWN}"), {"seed": seed, "sha256": hash_file(split_file), "state": state})


# --- CoOp's pickles


class _Datum:
    """Takes the place of `dassl.data.datasets.base_dataset.Datum`, whose attributes it gets; it runs nothing."""


class _DatumUnpickler(pickle.Unpickler):
    """Accepts `Datum` and the plain types of Python, and refuses everything else."""

    def find_class(self, module: str, name: str) -> type:
        if name == "Datum" and module in ("dassl.data.datasets.base_dataset", "dassl.data.datasets"):
            return _Datum
        raise pickle.UnpicklingError(f"it holds {module}.{name}; nothing in it was run")


def read_coop_pickle(path: Path, folder: str) -> Pools:
    """The items of CoOp's `split_fewshot/shot_<shots>-seed_<seed>.pkl`, or of ImageNet's `preprocessed.pkl`.

    Its absolute paths, perhaps of another machine, are cut so that they begin with the `folder` of the data set below
    the data root. It may lack "val" and "test".
    """
    with reading(path, "a pickle of CoOp's items, which is made anew if you delete it"):
        content = _DatumUnpickler(io.BytesIO(path.read_bytes())).load()
        if not isinstance(content, dict) or not content.get("train"):
            raise ValueError("it holds no training images")
        pools = {split: [_item(datum, folder) for datum in content[split]] for split in SPLITS if split in content}
    check_pools(pools, str(path))
    return pools


def _item(datum: Any, folder: str) -> Item:
    path, label, name = datum._impath, datum._label, datum._classname
    if not (isinstance(path, str) and isinstance(label, int) and isinstance(name, str)):
        raise ValueError("a Datum in it has no path, label and name")
    return Item(path_from(folder, path), label, name)


def path_from(folder: str, path: str) -> str:
    """The part of a path, perhaps of another machine, that begins with the folder of its data set; else ValueError."""
    parts = PurePosixPath(path.replace("\\", "/")).parts
    if folder not in parts or ".." in parts:
        raise ValueError(f"it names {path}, which is not in a folder {folder}")
    last = len(parts) - 1 - parts[::-1].index(folder)
    return "/".join(parts[last:])
