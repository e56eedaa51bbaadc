"""What a data set below the data root still needs, and whether own images can be trained on, in words for the user."""

from __future__ import annotations

import random
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

from tqdm import tqdm

from ..utils.commands import command
from ..utils.errors import UserError, printable
from ..utils.files import absolute
from ..utils.threads import MAX_THREADS, cores, in_batches
from .base import Dataset, check_classes
from .entry import DatasetEntry, Sizes
from .images import reason
from .layouts import is_folder
from .loading import MALFORMED, pools_class_names, read_pools
from .own import copies_in_test, load_own_images
from .registry import stored_datasets
from .split_files import read_drawn
from .splits import SPLITS, Item, Pools

SHOTS = (1, 2, 4, 8, 16)  # that are common
BATCH = 64  # images between two steps of the progress bar
MAX_CLASSES = 10  # a line names at most so many classes


@dataclass(frozen=True)
class State:
    """Whether a data set can be used; and what there is, or what is missing, where, and how to get it."""

    ready: bool
    lines: list[str]


def check_dataset(name: str, root: str) -> State:
    """Finds out whether a data set, one of `stored_datasets`, is whole. No image is opened and nothing is written."""
    entry = stored_datasets()[name]
    folder = absolute(root) / entry.folder
    remedy = [f"get it: {command(f'datasets download {name} --root {root}')}"] if entry.sources else []
    if entry.by_hand:
        remedy.append(f"by hand: {entry.by_hand.instruction}")
    try:
        if not is_folder(folder / entry.images):
            return State(False, [f"missing: the images, expected in {folder / entry.images}", *remedy])
        pools = read_pools(entry, folder, seed=1, rng=random.Random(1), write=False)
        pools_class_names(entry, pools)
        warning = _split_warning(entry, folder)
    except UserError as error:
        return State(False, [f"missing or damaged: {error}", *remedy])
    except MALFORMED as error:
        return State(False, [f"damaged: a file in {folder} has another structure ({error!r})", *remedy])
    paths = {item.path for split in SPLITS for item in pools[split]}
    absent = sorted(path for path in paths if not (folder / path).is_file())
    if absent:
        return State(False, [f"missing: {len(absent)} of {len(paths)} images, {folder / absent[0]}", *remedy])
    return State(True, [*_lines_of_sizes(entry, pools), *([warning, *remedy] if warning else [])])


def _lines_of_sizes(entry: DatasetEntry, pools: Pools) -> list[str]:
    num_classes = len({item.label for item in pools["test"]})
    sizes = Sizes(len(pools["train"]), len(pools["val"]), len(pools["test"]), num_classes)
    return [str(sizes)] if sizes == entry.sizes else [str(sizes), f"published are {entry.sizes}"]


def _split_warning(entry: DatasetEntry, folder: Path) -> str:
    """What to say of a split that is not the published one; "" if it is, or if none was published."""
    if entry.split_file is None or not entry.publishes_split:
        return ""
    split_file = folder / entry.split_file
    if not split_file.is_file():
        return (
            f"without {split_file}: the first run will draw a split and write it, as CoOp does, but it is not the "
            "split of published numbers"
        )
    drawn = read_drawn(split_file)
    if drawn is None:
        return ""
    return (
        f"{split_file} was drawn here with seed {drawn['seed']}: it is not the split of published numbers; to "
        "get that, delete the file"
    )


def check_own_images(root: str) -> State:
    """Finds out whether own images are whole. Every image is decoded, by all cores, and nothing is written."""
    try:
        dataset = load_own_images(root)
    except UserError as error:
        return State(False, [printable(str(error))])
    problems = _unreadable(dataset)
    found = [*_lines_of_problems(dataset, problems), *_lines_of_copies(dataset, problems)]
    try:
        check_classes(len(dataset.classnames))
    except UserError as error:
        found.append(str(error))
    flags = f"--dataset-config-file folder --root {shlex.quote(root)} --shots {max(SHOTS)}"
    train = command(f"{flags} --config-file vit_b16 --output-dir OUT")
    last = f"mend this, and look again: {dataset.check_command}" if found else f"train: {train}"
    return State(not found, [*_lines_of_counts(dataset), *found, last])


def _unreadable(dataset: Dataset) -> dict[str, str]:
    """The path of every image that cannot be read -> why."""
    paths = dataset.paths()
    problems: dict[str, str] = {}
    with tqdm(total=len(paths), desc="reading images", unit="img", disable=None) as bar:
        for batch, found in in_batches(partial(_problem_of, dataset), paths, BATCH, min(cores(), MAX_THREADS)):
            problems |= {path: problem for path, problem in zip(batch, found) if problem}
            bar.update(len(batch))
    return problems


def _problem_of(dataset: Dataset, path: str) -> str:
    """Why an image cannot be read; "" if it can."""
    try:
        dataset.open(path)
    except Exception as error:  # on damaged bytes, Pillow raises whatever they lead to
        return reason(error)
    return ""


def _lines_of_counts(dataset: Dataset) -> list[str]:
    """What there is; and for each common number of shots, the classes that have fewer training images."""
    lines = [
        str(Sizes(len(dataset.train), len(dataset.val), len(dataset.test), len(dataset.classnames))),
        f"classes: {_some(dataset.classnames)}",
    ]
    for split, items in dataset.splits.items():
        lines.append(f"{split}, images per class: {_spread(_images_of_classes(items, dataset.classnames))}")
    numbers = _images_of_classes(dataset.train, dataset.classnames)
    for shots in SHOTS:
        small = [name for name, number in numbers.items() if number < shots]
        if small:
            few = f"{len(small)} of {len(numbers)} classes have fewer training images"
            lines.append(f"--shots {shots}: {few}, and are taken whole: {_some(small)}")
    return lines


def _images_of_classes(items: Sequence[Item], classnames: Sequence[str]) -> dict[str, int]:
    counts = Counter(item.label for item in items)
    return {name: counts[label] for label, name in enumerate(classnames)}


def _spread(numbers: dict[str, int]) -> str:
    """The fewest, the median and the most of the numbers of images that classes have."""
    fewest, most = min(numbers, key=numbers.__getitem__), max(numbers, key=numbers.__getitem__)
    if numbers[fewest] == numbers[most]:
        return str(numbers[most])
    return (
        f"{numbers[fewest]} to {numbers[most]}, median {median(numbers.values()):g}; "
        f"fewest: {printable(fewest)}, most: {printable(most)}"
    )


def _lines_of_problems(dataset: Dataset, problems: dict[str, str]) -> list[str]:
    if not problems:
        return []
    lines = [f"  {printable(path)}: {printable(problem)}" for path, problem in problems.items()]
    return [f"{len(problems)} of {len(dataset.paths())} images cannot be read:", *lines]


def _lines_of_copies(dataset: Dataset, problems: dict[str, str]) -> list[str]:
    """The files that a run refuses since test has them too. Those that cannot be read are not compared."""
    lines = []
    for split, files in copies_in_test(dataset.without(problems)).items():
        if files:
            number = f"{len(files)} of {len(dataset.splits[split])} {split} images"
            lines.append(f"{number} are test images as well; take them out of {split} or out of test:")
            lines += [f"  {printable(str(file))}" for file in files]
    return lines


def _some(names: Sequence[str]) -> str:
    return ", ".join([*map(printable, names[:MAX_CLASSES]), *(["..."] if len(names) > MAX_CLASSES else [])])
