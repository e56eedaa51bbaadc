"""Says whether data sets are whole, or downloads them.

DATASET is a name such as Caltech101, the name of its file in configs/datasets, such as dtd, or a common short name,
such as pets. Case, `_` and `-` are ignored. `check --root DIR` and `check folder --root DIR` read your own
images in DIR.
"""

from __future__ import annotations

import argparse
import random
import shlex
import sys
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING

from ..utils.errors import Parser, UserError, command, printable, report, say, unknown
from ..utils.files import absolute

if TYPE_CHECKING:
    from .base import Dataset

SHOTS = (1, 2, 4, 8, 16)  # that are common
MAX_CLASSES = 10  # a line names at most so many classes


State = tuple[bool, list[str]]  # whether a data set can be used; what there is, or is missing, and how to get it


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = Parser(prog=command("datasets"), description=__doc__)
    commands = parser.add_subparsers()
    check = commands.add_parser("check", help="say what is ready and what is missing")
    whose = "default: your own images where DATA is their folder, else all fifteen; folder: your own images"
    check.add_argument("datasets", nargs="*", metavar="DATASET", help=whose)
    fetch = commands.add_parser("download", help="fetch what is missing")
    fetch.add_argument("datasets", nargs="+", metavar="DATASET")
    for subparser in (check, fetch):
        add = subparser.add_argument
        add("--root", required=True, metavar="DATA", help="folder that holds the data sets; of folder, your images")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Runs a command; the exit code is 1 if something is missing, also after a download, or 2 for a mistake."""
    return report(lambda: run(parse_arguments(arguments)))


def run(args: argparse.Namespace) -> int:
    from .loading import OWN, NoOwnImages  # what reads images takes long to import, here and below
    from .registry import canonical_name, stored_datasets

    known = stored_datasets()
    names = [canonical_name(name) for name in args.datasets] or list(known)
    if strange := next((name for name in names if name not in (*known, OWN)), ""):
        raise unknown("data set", strange, (*known, OWN))
    if OWN in names and (args.command == "download" or len(names) > 1):
        raise UserError(f"{OWN} is your own images: they are not downloaded, and are checked without other data sets")
    if not args.datasets and not any((absolute(args.root) / entry.folder).is_dir() for entry in known.values()):
        with suppress(NoOwnImages):
            return show(OWN, check_own_images(args.root))
    if args.command == "download":
        from .download import download

        for name in names:
            download(name, known[name].sources, absolute(args.root) / known[name].folder)
    if OWN in names:
        try:
            return show(OWN, check_own_images(args.root))
        except NoOwnImages as error:
            return show(OWN, (False, [str(error)]))
    return max([show(name, check_dataset(name, args.root)) for name in names])


def show(name: str, state: State) -> int:
    """Prints the state of a data set; returns 0 if it can be used, and else 1."""
    ready, lines = state
    first, *more = map(printable, lines)
    say(f"{name:20} {'ready' if ready else 'not ready':10} {first}\n")
    say("".join(f"{'':31} {line}\n" for line in more))
    return int(not ready)


# --- data sets below the data root


def check_dataset(name: str, root: str) -> State:
    """Finds out whether a data set, one of `stored_datasets`, is whole. No image is opened and nothing is written."""
    from .loading import read_stored
    from .registry import Sizes, stored_datasets
    from .splits import SPLITS, read_random_split

    entry = stored_datasets()[name]
    folder = absolute(root) / entry.folder
    split_file = folder / entry.split_file  # the folder itself where the split is official
    remedy = [f"get it: {command(f'datasets download {name} --root {root}')}"] if entry.sources else []
    if entry.by_hand:
        remedy.append(f"by hand: {entry.by_hand}")
    try:
        if not (folder / entry.images).is_dir():
            return (False, [f"missing: the images, expected in {folder / entry.images}", *remedy])
        pools, names = read_stored(entry, folder, seed=1, rng=random.Random(1), write=False)
        drawn = read_random_split(split_file) if split_file.is_file() else None
    except UserError as error:
        return (False, [f"missing or damaged: {error}", *remedy])
    paths = {item.path for split in SPLITS for item in pools[split]}
    absent = sorted(path for path in paths if not (folder / path).is_file())
    if absent:
        return (False, [f"missing: {len(absent)} of {len(paths)} images, {folder / absent[0]}", *remedy])
    sizes = Sizes(len(pools["train"]), len(pools["val"]), len(pools["test"]), len(names))
    lines = [str(sizes)] if sizes == entry.sizes else [str(sizes), f"published are {entry.sizes}"]
    published = any(entry.split_file in source.targets for source in entry.sources)
    if published and (drawn or not split_file.is_file()):
        how = f"was drawn here with seed {drawn.seed}; delete it for another" if drawn else "is missing: runs draw one"
        lines += [f"{split_file} {how}, which is not the split of published numbers", *remedy]
    return (True, lines)


# --- own images


def check_own_images(root: str) -> State:
    """Finds out whether own images are whole. Every image is decoded, by all cores, and nothing is written.

    Raises NoOwnImages if `root` holds none.
    """
    from ..backbones.identity import DEFAULT_BACKBONE
    from .base import check_classes
    from .loading import NoOwnImages, load_own_images

    try:
        dataset = load_own_images(root)
        check_classes(len(dataset.classnames))
    except NoOwnImages:
        raise
    except UserError as error:
        return (False, [str(error)])
    problems = dataset.unreadable_images()
    found = [f"{len(problems)} of {len(dataset.paths())} images cannot be read:"] if problems else []
    found += [f"  {path}: {problem}" for path, problem in problems.items()]
    for split, files in dataset.without(problems).copies_in_test().items():  # which a run refuses
        number = f"{len(files)} of {len(dataset.splits[split])} {split} images"
        found.append(f"{number} are test images as well; keep one copy of each, in {split} or in test:")
        found += [f"  {file}" for file in files]
    flags = f"--dataset-config-file folder --root {shlex.quote(root)} --shots {max(SHOTS)}"
    train = command(f"{flags} --config-file {DEFAULT_BACKBONE.config} --output-dir OUT")
    last = f"mend this, and look again: {dataset.check_command}" if found else f"train: {train}"
    return (not found, [*_lines_of_counts(dataset), *found, last])


def _lines_of_counts(dataset: Dataset) -> list[str]:
    """What there is; and for each common number of shots, the classes that have fewer training images."""
    from .base import abbreviate
    from .registry import Sizes
    from .splits import SPLITS

    names = dataset.classnames
    sizes = Sizes(len(dataset.train), len(dataset.val), len(dataset.test), len(names))
    lines = [str(sizes), f"classes: {abbreviate(names, MAX_CLASSES)}"]
    numbers = {split: Counter(item.classname for item in items) for split, items in dataset.splits.items()}
    for split in SPLITS:
        each = [numbers[split][name] for name in names]
        lines.append(f"{split}, images per class: {min(each)} to {max(each)}")
    for shots in SHOTS:
        if small := [name for name in names if numbers["train"][name] < shots]:
            few = f"{len(small)} of {len(names)} classes have fewer training images"
            lines.append(f"--shots {shots}: {few}, and are taken whole: {abbreviate(small, MAX_CLASSES)}")
    return lines


if __name__ == "__main__":
    sys.exit(main())
