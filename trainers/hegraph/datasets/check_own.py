"""Whether own images can be trained on, in words for the user: all of them are read, as training would read them."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence
from functools import partial
from statistics import median

from tqdm import tqdm

from ..utils.commands import command
from ..utils.errors import UserError, printable
from ..utils.threads import MAX_THREADS, cores, in_batches
from .base import Dataset, check_classes
from .check import State, describe_sizes
from .copies import copies_in_test
from .entry import Sizes
from .images import reason
from .own import load_own_images
from .splits import Item

SHOTS = (1, 2, 4, 8, 16)  # that are common
BATCH = 64  # images between two steps of the progress bar
MAX_CLASSES = 10  # a line names at most so many classes


def check_own_images(root: str) -> State:
    """Finds out whether own images are whole. Every image is decoded, by all cores, and nothing is written.

    Args:
        root: As for training; see `load_own_images`.
    """
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
    sizes = Sizes(len(dataset.train), len(dataset.val), len(dataset.test), len(dataset.classnames))
    per_class = [
        f"{split}, images per class: {_spread(_images_of_classes(items, dataset.classnames))}"
        for split, items in dataset.splits.items()
    ]
    return [
        describe_sizes(sizes),
        f"classes: {_some(dataset.classnames)}",
        *per_class,
        *_lines_of_shots(dataset),
    ]


def _spread(numbers: dict[str, int]) -> str:
    """The fewest, the median and the most of the numbers of images that classes have."""
    fewest, most = min(numbers, key=numbers.__getitem__), max(numbers, key=numbers.__getitem__)
    if numbers[fewest] == numbers[most]:
        return str(numbers[most])
    return (
        f"{numbers[fewest]} to {numbers[most]}, median {median(numbers.values()):g}; "
        f"fewest: {printable(fewest)}, most: {printable(most)}"
    )


def _lines_of_shots(dataset: Dataset) -> list[str]:
    """For each common number of shots, the classes that have fewer training images. A run takes these whole."""
    numbers = _images_of_classes(dataset.train, dataset.classnames)
    lines = []
    for shots in SHOTS:
        small = [name for name, number in numbers.items() if number < shots]
        if small:
            few = f"{len(small)} of {len(numbers)} classes have fewer training images"
            lines.append(f"--shots {shots}: {few}, and are taken whole: {_some(small)}")
    return lines


def _images_of_classes(items: Sequence[Item], classnames: Sequence[str]) -> dict[str, int]:
    counts = Counter(item.label for item in items)
    return {name: counts[label] for label, name in enumerate(classnames)}


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
