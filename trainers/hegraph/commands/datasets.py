"""The command `datasets`, which checks and downloads data sets."""

import argparse
import os
import random
import shlex
from collections import Counter
from dataclasses import replace
from itertools import combinations
from typing import TYPE_CHECKING

from ..datasets.groups import PATTERN_HELP
from ..utils.command_line import Parser, command, echo, run_cli
from ..utils.errors import UserError, unknown
from ..utils.files import absolute
from ..utils.text import printable

if TYPE_CHECKING:
    from ..datasets.base import Dataset
    from ..datasets.groups import SharedGroups

SHOTS = (1, 2, 4, 8, 16)  # common numbers
MAX_CLASSES = 10  # classes listed on a line
MAX_PAIRS = 5  # labels, or pairs of labels, listed on a line

# Whether a data set is ready; lines on its content, on problems and their remedies
CheckResult = tuple[bool, list[str]]


NAMES = """\
DATASET is a name such as Caltech101, a file name in configs/datasets such as dtd, or a common short name such as pets.
Case, `_` and `-` are ignored. `check --root DIR` and `check folder --root DIR` check your own images in DIR.
"""


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = Parser("datasets", "Check whether data sets are complete, or download them.", epilog=NAMES)
    parser.examples = ("check --root data", "download dtd --root data")
    check = parser.add_command("check", "check whether data sets are complete")
    check.examples = ("--root data", "dtd pets --root data")
    default = "data set, or `folder` for your own images (default: all if DATA contains one, else your own images)"
    check.add_argument("datasets", nargs="*", metavar="DATASET", help=default)
    parser.set_defaults(group_pattern="", backbone="")
    check.add_argument("--group-pattern", default="", metavar="REGEX", help=PATTERN_HELP)
    backbone = "encode your own images, such as with mini, and list classes whose names say nothing to this backbone"
    check.add_argument("--backbone", default="", metavar="NAME", help=backbone)
    fetch = parser.add_command("download", "download missing files")
    fetch.examples = ("dtd --root data", "dtd pets eurosat --root data")
    parser.failure = check.failure = fetch.failure = "a data set is incomplete"
    fetch.add_argument("datasets", nargs="+", metavar="DATASET", help="data set to download")
    for each in (check, fetch):
        each.add_argument("--root", required=True, metavar="DATA", help="folder of the data sets or of your own images")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; exit code 1 if a data set is incomplete, 2 for an error."""
    return run_cli(lambda: run(parse_arguments(arguments)))


def run(args: argparse.Namespace) -> int:
    from ..datasets.loading import NOT_OWN, OWN  # slow to import, as the modules below
    from ..datasets.registry import ENTRIES, canonical_name, stored_datasets

    known = stored_datasets()
    names = [canonical_name(name) for name in args.datasets] or list(known)
    if wrong := next((name for name in names if name not in (*known, OWN)), ""):
        if wrong in ENTRIES:
            raise UserError(f"{wrong} is embedded in this package and needs no files; name another data set")
        raise unknown("data set", wrong, (*known, OWN))
    if OWN in names and (args.command == "download" or len(names) > 1):
        raise UserError(f"{OWN} means your own images: check them without other data sets; they cannot be downloaded")
    if args.backbone and args.datasets not in ([], [OWN]):
        raise UserError(f"--backbone encodes your own images only: leave out {' '.join(args.datasets)}")
    if args.command == "download":
        from ..datasets.download import download

        errors = []
        for name in names:
            try:
                download(name, known[name].sources, absolute(args.root) / known[name].folder)
            except UserError as error:  # the other data sets may have other mirrors
                errors.append(str(error))
        if errors:
            raise UserError("; ".join(errors))
    # URLs of shards may be too long for `Path.is_dir`
    has_data_sets = any(os.path.isdir(absolute(args.root) / entry.folder) for entry in known.values())
    if OWN in names or not (args.datasets or has_data_sets):
        try:
            result = check_own_images(args.root, args.group_pattern, args.backbone)
        except UserError as error:
            name = command(f"datasets check caltech101 --root {shlex.quote(args.root)}")
            advice = [f"to check a data set, name it, as in: {name}"] if error.code == NOT_OWN else []
            result = (False, [str(error), *advice])
        return show(OWN, result)
    return max([show(name, check_dataset(name, args.root, args.group_pattern)) for name in names])


def show(name: str, result: CheckResult) -> int:
    """Print the result of a check, and return its exit code: 0 if the data set is ready, else 1."""
    ready, lines = result
    first, *more = map(printable, lines)
    echo(f"{name:20} {'ready' if ready else 'not ready':10} {first}\n")
    echo("".join(f"{'':31} {line}\n" for line in more))
    return int(not ready)


# --- data sets in the data root


def check_dataset(name: str, root: str, group_pattern: str = "") -> CheckResult:
    """Check whether a data set of `stored_datasets` is complete, without opening images or writing files.

    `group_pattern` finds the group of an image in its path (default: the one of the data set, if it has one).
    """
    from ..datasets.groups import SharedGroups, groups_in_paths
    from ..datasets.loading import read_stored
    from ..datasets.registry import Sizes, stored_datasets
    from ..datasets.splits import SPLITS, read_random_split

    entry = stored_datasets()[name]
    folder = absolute(root) / entry.folder
    split_file = folder / entry.split_file  # the folder itself if the split is official
    download = command(f"datasets download {name} --root {shlex.quote(root)}")
    remedy = [f"to download it: {download}"] if entry.sources else []
    if entry.by_hand:
        remedy.append(f"by hand: {entry.by_hand}")
    try:
        if not (folder / entry.images).is_dir():
            return (False, [f"missing images: expected in {folder / entry.images}", *remedy])
        pools, names = read_stored(entry, folder, seed=1, rng=random.Random(1), write=False)
        record = read_random_split(split_file) if split_file.is_file() else None
    except UserError as error:
        return (False, [f"missing or damaged: {error}", *remedy])
    paths = {item.path for split in SPLITS for item in pools[split]}
    absent = sorted(path for path in paths if not (folder / path).is_file())
    if absent:
        return (False, [f"missing images: {len(absent)} of {len(paths)}, such as {folder / absent[0]}", *remedy])
    sizes = Sizes(len(pools["train"]), len(pools["val"]), len(pools["test"]), len(names))
    lines = [str(sizes)] if sizes == entry.sizes else [str(sizes), f"published sizes: {entry.sizes}"]
    if pattern := group_pattern or entry.group_pattern:
        group_of = groups_in_paths(sorted(paths), pattern)
        groups = {}
        for split in SPLITS:
            groups[split] = [group_of.get(item.path, item.path) for item in pools[split]]
        lines += lines_of_groups(SharedGroups.of(**groups))
    published = any(entry.split_file in source.targets for source in entry.sources)
    if published and (record or not split_file.is_file()):
        problem = f"is a random split with seed {record.seed}" if record else "is missing: runs generate a random split"
        lines += [f"{split_file} {problem}, not the split of published results", *remedy]
    return (True, lines)


# --- own images


def check_own_images(root: str, group_pattern: str = "", backbone: str = "") -> CheckResult:
    """Check own images by decoding all of them in parallel.

    Images that cannot be read, and copies in two splits, are problems in the result. `group_pattern`
    is DATASET.GROUP_PATTERN. `backbone` judges the class names, if there are no problems; "" does not.

    Raises:
        UserError: If the files or folders cannot be listed as a data set, it has fewer than two classes, or the
            backbone cannot be loaded or does not suit the data set.
    """
    from ..datasets.base import check_classes
    from ..datasets.loading import load_own_images

    dataset = load_own_images(root, group_pattern=group_pattern)
    check_classes(len(dataset.classnames))
    problems = dataset.unreadable_images()
    lines = [f"{len(problems)} of {len(dataset.paths())} images cannot be read:"] if problems else []
    lines += [f"  {path}: {problem}" for path, problem in problems.items()]
    for split, other, files in dataset.without(problems).copies():  # runs refuse those of test images
        count = f"{len(files)} of {len(dataset.splits[split])} {split} images"
        kind = "training" if other == "train" else other
        lines.append(f"{count} are {kind} images as well; keep one copy of each, in {split} or in {other}:")
        lines += [f"  {file}" for file in files]
    if lines:
        next_step = f"after correcting this, check again: {dataset.check_command}"
        return (False, [*_lines_of_counts(dataset), *lines, next_step])
    if backbone:
        lines.append(line_of_names(root, backbone, group_pattern))
    flag = f" --backbone {shlex.quote(backbone)}" if backbone else ""
    train = command(f"train {shlex.quote(root)}{flag}")
    return (True, [*_lines_of_counts(dataset), *lines, f"train: {train}"])


def line_of_names(root: str, backbone: str, group_pattern: str = "") -> str:
    """Say which class names say nothing to a backbone, judged on the training images that `train` would sample.

    Arguments as in `check_own_images`.

    Raises:
        UserError: If the backbone cannot be loaded or has no text, or an image has several labels.
    """
    from ..config_files import load_cfg
    from ..experiments.image_task import ImageTask
    from ..experiments.opening import load_dataset
    from ..features.backbones.identity import method_config
    from ..method.head.trust import trust_text
    from ..models.saved import TextTrustRecord
    from ..utils.devices import choose_device

    keys = {"DATASET.ROOT": root, "DATASET.GROUP_PATTERN": group_pattern, "MODEL.BACKBONE.NAME": backbone}
    cfg = load_cfg("folder", method_config(backbone), keys, [])
    seed = max(cfg.run.seed, 0)
    device = choose_device("", "--device")
    dataset = replace(load_dataset(cfg, seed), val=[], test=[])
    if dataset.multilabel:
        raise UserError("--backbone judges class names of images with one label each; these images have several")
    task = ImageTask(dataset, cfg, seed, device)
    if task.images_only:
        raise UserError(f"--backbone {backbone} encodes images only, so that it knows no class names; name another one")
    bank = task.bank()
    trust = trust_text(bank.cache_keys(), bank.train_labels, bank.known_text, task.backbone.logit_scale).trust
    images = bank.train_labels.bincount(minlength=len(bank.classnames)).tolist()
    sentence = TextTrustRecord.of(trust).sentence(bank.classnames, images)
    return sentence or f"{task.backbone.name} knows the names of all {len(images)} classes"


def _lines_of_counts(dataset: "Dataset") -> list[str]:
    """List the numbers of images, and the classes with too few training images for common numbers of shots."""
    from ..datasets.base import abbreviate
    from ..datasets.registry import Sizes
    from ..datasets.splits import SPLITS

    names = dataset.classnames
    sizes = Sizes(len(dataset.train), len(dataset.val), len(dataset.test), len(names))
    lines = [str(sizes), f"classes: {abbreviate(names, MAX_CLASSES)}"]
    counts: dict[str, Counter[str]] = {split: Counter() for split in dataset.splits}
    for split, items in dataset.splits.items():
        for item in items:
            counts[split].update(names[label] for label in item.labels)
    for split in SPLITS:
        per_class = [counts[split][name] for name in names]
        lines.append(f"{split} images per class: {min(per_class)} to {max(per_class)}")
    for shots in SHOTS:
        if small := [name for name in names if counts["train"][name] < shots]:
            few = f"{len(small)} of {len(names)} classes have fewer training images, all of which are used"
            lines.append(f"--shots {shots}: {few}: {abbreviate(small, MAX_CLASSES)}")
    if (shared := dataset.shared_groups()) is not None:
        lines += lines_of_groups(shared)
    return lines + (_lines_of_label_sets(dataset) if dataset.multilabel else [])


def lines_of_groups(shared: "SharedGroups") -> list[str]:
    """List the number of groups, and the images of val and test whose groups occur in train."""
    lines = [f"groups: {shared.groups}"]
    if shared.warning:
        lines.append(f"warning: {shared.warning}")
    return lines


def _lines_of_label_sets(dataset: "Dataset") -> list[str]:
    """List the numbers of labels per image, and the pairs of labels that occur together most often."""
    from ..datasets.base import abbreviate

    sets = [item.labels for items in dataset.splits.values() for item in items]
    sizes = [len(labels) for labels in sets]
    pairs = Counter(pair for each in sets for pair in combinations(each, 2))
    names = dataset.classnames
    counts = Counter(label for labels in sets for label in labels).most_common()
    counted = [f"{names[label]} ({count})" for label, count in counts]
    frequent = abbreviate(counted, MAX_PAIRS)
    rare = abbreviate(counted[::-1], MAX_PAIRS)
    together = [f"{names[a]} and {names[b]} ({count})" for (a, b), count in pairs.most_common(MAX_PAIRS)]
    return [
        f"labels per image: {min(sizes)} to {max(sizes)}, mean {sum(sizes) / len(sizes):.2f}; "
        f"{sizes.count(0)} images without any label",
        f"most frequent labels: {frequent}; rarest: {rare}",
        f"images with two labels, the most frequent of {len(pairs)} pairs: {abbreviate(together, MAX_PAIRS) or 'none'}",
    ]
