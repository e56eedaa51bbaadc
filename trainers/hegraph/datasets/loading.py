"""Load data sets by name, and few-shot tasks sampled with a seed or stored by CoOp.

Splits are read from CoOp's split file. If it is missing, a random split is generated from the seed and written, as by
CoOp. A second file (`.drawn`) records the seed and the state of the random generator afterwards, so later runs with
this seed sample the same few-shot task as the first.
"""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from ..utils.errors import UserError, first_line, unknown
from ..utils.files import absolute
from ..utils.locks import Locked, lock_replacement
from ..utils.reading import validate
from . import splits
from .annotations import read_annotations
from .base import Dataset, check_command, class_names
from .digits import load_digit_scenes, load_digits_dataset
from .folder import read_folders_or_table, read_table, read_unsplit_folders, split_at_random, why_not_own
from .groups import groups_in_paths
from .images import is_image, open_below
from .layouts import class_ids, list_names
from .own_images import LAYOUT, OWN, OwnImages, build_dataset, with_groups
from .packed import read_hugging_face, read_shards
from .readable import Unreadable, readable
from .registry import ENTRIES, Entry, find_entry
from .shots import shots_of_classes
from .splits import SPLITS, Item, Pools, read_coop_pickle, read_random_split, read_split_file, sample_few_shot

logger = logging.getLogger(__name__)

DRAWING_WAIT = 600.0  # seconds to wait for another process that lists the images of a data set to split them
NOT_WRITTEN = "%s; each seed will have its own random split and test set"  # warning, after the reason
NOT_OWN = "images.layout"  # code of the error for a folder without own images

# Own images by the arguments of `load_own_images`, in a block of `listing_own_images_once`
_listed: ContextVar[dict[tuple[str, str, bool, str], Dataset] | None] = ContextVar("_listed", default=None)


def load_dataset(
    name: str, root: str = "", seed: int = 1, rng: Random | None = None, group_pattern: str = ""
) -> Dataset:
    """Load a data set with its full splits, without opening an image.

    Args:
        name: Name or alias of the data set.
        root: Folder of the data sets, or of own images.
        seed: Seed of a random split, if no split file exists.
        rng: Generator with this seed, which is advanced by splitting (default: a new one).
        group_pattern: Regular expression with one group in parentheses, which finds the group of an image in its path;
            "" for the groups of the data.

    Examples:
        >>> from hegraph import load_dataset
        >>> digits = load_dataset("Digits")
        >>> {split: len(items) for split, items in digits.splits.items()}
        {'train': 698, 'val': 200, 'test': 899}
    """
    entry = find_entry(validate(str, name, "name"))
    validate(Path, root, "root", convert=True)
    if entry is None:
        raise unknown("data set", name, ENTRIES)
    if entry.name == OWN:
        return load_own_images(root, entry.name, group_pattern=group_pattern)
    if entry.loader:
        dataset = LOADERS[entry.loader](root, entry.name)
    else:
        dataset = _load_stored(entry, root, seed, rng or Random(seed))
    if group_pattern:
        dataset = replace(dataset, groups=groups_in_paths(dataset.paths(), group_pattern))
    return dataset


def load_few_shot(
    name: str,
    root: str,
    shots: int,
    seed: int,
    subsample: str = "all",
    pool: bool = False,
    shots_per_class: str = "",
    group_pattern: str = "",
    unreadable: Unreadable = "",
) -> Dataset:
    """Load the few-shot task of CoOp's protocol, and check that all image files exist.

    Args:
        name, root: As for `load_dataset`.
        shots: Number of training images per class, or -1 for all.
        seed: Seed of the protocol.
        subsample: "all", "base" or "new" classes.
        pool: Whether to list the images that are not sampled as `Dataset.pool`.
        shots_per_class: Unequal numbers of training images, as in DATASET.SHOTS_PER_CLASS, in place of `shots`.
        group_pattern: As for `load_dataset`. Groups stay whole (see `splits.sample_few_shot`).
        unreadable: What to do with own images that cannot be read: "leave out" them, with a warning, or "refuse" them.
            "" opens no image.

    Examples:
        >>> from hegraph import load_few_shot
        >>> digits = load_few_shot("Digits", root="", shots=4, seed=1)
        >>> len(digits.train), digits.train[0].classname
        (40, 'zero')
        >>> image = digits.open(digits.train[0].path)  # a PIL image
    """
    shots = validate(int, shots, "shots", convert=True)
    seed = validate(int, seed, "seed", convert=True)
    shots_per_class = validate(str, shots_per_class, "shots_per_class")
    if seed < 0:
        raise UserError(f"the few-shot protocol needs a seed from 0, got {seed}", "seed")
    rng = Random(seed)
    whole = readable(load_dataset(name, root, seed, rng, group_pattern), unreadable)
    check_trainable(whole)
    sample: dict[str, Any] | None = None if shots_per_class else read_coop_sample(whole, shots, seed)
    if sample:
        dataset = replace(whole, **sample)
    else:
        train_labels = [item.label for item in whole.train]
        val_labels = [item.label for item in whole.val]
        numbers = shots_of_classes(shots, shots_per_class, len(whole.classnames), rng)
        groups = whole.groups_of(whole.train), whole.groups_of(whole.val)
        dataset = whole.select(sample_few_shot(train_labels, val_labels, numbers, rng, *groups))
    dataset = dataset.subsample(subsample)
    dataset.check_files()
    if pool:
        used = {item.path for item in (*dataset.train, *dataset.test)}
        rest = whole.subsample(subsample)
        items = [*rest.train, *([] if rest.val_is_test else rest.val)]
        dataset = replace(dataset, pool=[item for item in items if item.path not in used])
    return dataset


def load_test_images(
    name: str, root: str, seed: int, subsample: str = "all", group_pattern: str = "", unreadable: Unreadable = ""
) -> Dataset:
    """Load the test images of a data set; arguments as for `load_few_shot`, UserError if there are none."""
    dataset = load_dataset(name, root, seed, group_pattern=group_pattern).subsample(subsample).only_test()
    dataset.check_files()
    return readable(dataset, unreadable)


def load_unlabelled(source: Path) -> Dataset:
    """Load unlabelled images as the test images of a data set without classes; no image is opened.

    Args:
        source: Folder, searched with its subfolders except hidden ones; or CSV file with the column `path`, relative to
            its folder.

    Raises:
        UserError: If there is no image, or an image is missing.
    """
    if source.is_dir():
        base = source
        paths = sorted(_images_below(source))
    else:
        base = source.parent
        column, rows = read_table(source)
        paths = [row[column] for row in rows]
    if not paths:
        raise UserError(f"{source} contains no image")
    items = [Item(path, 0, "") for path in paths]
    images = OwnImages([], absolute(base))
    dataset = Dataset(str(source), [], [], [], items, images.open, images.root, source=images.source)
    dataset.check_files()
    return dataset


def _images_below(base: Path, folder: str = "") -> Iterator[str]:
    """Iterate over the images below a folder by `list_names`, so without hidden ones; links to folders are skipped."""
    for name in list_names(base / folder):
        path = os.path.join(folder, name)
        if (base / path).is_dir():
            if not (base / path).is_symlink():
                yield from _images_below(base, path)
        elif is_image(name):
            yield path


def check_trainable(dataset: Dataset) -> None:
    """Raise UserError, with the data set to train on instead, if a data set has only test images."""
    if not dataset.train:
        name = dataset.name
        entry = find_entry(dataset.name)
        source = entry.train_on if entry and entry.train_on else "another data set"
        raise UserError(f"{name} has only test images: train on {source} with --target-domains {name}")


# --- the user's own images


@contextmanager
def listing_own_images_once() -> Iterator[None]:
    """Context in which `load_own_images` lists the same images once, so that its messages appear once."""
    token = _listed.set({})
    try:
        yield
    finally:
        _listed.reset(token)


def load_own_images(root: str, name: str = OWN, split_folders: bool = True, group_pattern: str = "") -> Dataset:
    """Load the own images at `root`, in one of the forms of docs/guides/data.md, without opening an image.

    Class folders directly below `root` are split into train, val and test if `split_folders`. `group_pattern` is that
    of `load_dataset`.
    """
    listed = _listed.get()
    if listed is None:
        return _list_own_images(root, name, split_folders, group_pattern)
    key = root, name, split_folders, group_pattern
    if key not in listed:
        listed[key] = _list_own_images(*key)
    return listed[key]


def _list_own_images(root: str, name: str, split_folders: bool, group_pattern: str) -> Dataset:
    """List own images; arguments as for `load_own_images`."""
    if not root:
        raise UserError(f"{OWN} needs --root, your folder or CSV file; {LAYOUT}")
    # Each function returns None for images in another form
    images = read_annotations(root) or read_folders_or_table(root) or read_hugging_face(root) or read_shards(root)
    is_split = images is not None
    images = images or read_unsplit_folders(root)
    if images is None:
        raise UserError(why_not_own(root), NOT_OWN)
    images = with_groups(images, group_pattern, images.root or root)
    if split_folders and not is_split:
        images = split_at_random(images)
    return build_dataset(images, name, root)


# Data sets without a folder in the data root: name in `entries.yaml` -> function of `DATASET.ROOT` and the name
LOADERS: dict[str, Callable[[str, str], Dataset]] = {
    "digits": load_digits_dataset, "scenes": load_digit_scenes, "own": load_own_images,
}  # fmt: skip


# --- data sets with a folder in the data root


def _load_stored(entry: Entry, root: str, seed: int, rng: Random) -> Dataset:
    """Load a data set from its folder in the data root; arguments as for `load_dataset`."""
    name = entry.name
    base = absolute(root)
    folder = base / entry.folder
    hint = f"see {check_command(name, root or '.')}"
    if not folder.is_dir():
        raise UserError(f"{name} is not in {folder}; set --root to the folder with {entry.folder}/, or {hint}")
    try:
        pools, names = read_stored(entry, folder, seed, rng)
        ids = class_ids(folder, entry.class_ids) if entry.class_ids else ()
    except UserError as error:
        raise UserError(f"{name}: {error}; {hint}", "dataset.incomplete") from error
    below_root: Pools = {}
    for split in SPLITS:
        below_root[split] = [item._replace(path=f"{entry.folder}/{item.path}") for item in pools[split]]
    open_stored = partial(open_below, base, as_stored=True)
    return Dataset(name, names, below_root["train"], below_root["val"], below_root["test"], open_stored, base, ids)


def read_stored(entry: Entry, folder: Path, seed: int, rng: Random, write: bool = True) -> tuple[Pools, list[str]]:
    """Read the full splits of a data set, and its class names in label order.

    A missing split is generated from `rng`, which was seeded with `seed`, and written if `write`. One process at a time
    does so, and the others read what it has written. If the split file was generated with this seed, `rng` is set to
    the state that it had afterwards.

    Returns:
        Items by split, with paths relative to `folder`; and class names.
    """
    split_file = folder / entry.split_file  # the folder itself if the split is official
    if split_file.is_file() or not (entry.split_file and write):
        return _read_or_draw(entry, folder, seed, rng)
    with _drawing(split_file) as may_write:
        exists = split_file.is_file()  # another process was faster, perhaps with another seed
        pools, names = _read_or_draw(entry, folder, seed, rng)
        if may_write and not exists:
            _write_drawn(entry, folder, pools, seed, rng)
    return pools, names


@contextmanager
def _drawing(split_file: Path) -> Iterator[bool]:
    """Hold the lock of a split file that is missing. The value is False, with a warning, if it cannot be written.

    Raises:
        Locked: If another process still holds the lock after `DRAWING_WAIT` seconds.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(lock_replacement(split_file, DRAWING_WAIT))
        except Locked:
            raise
        except UserError as error:
            logger.warning(NOT_WRITTEN, error)
            yield False
        else:
            yield True


def _read_or_draw(entry: Entry, folder: Path, seed: int, rng: Random) -> tuple[Pools, list[str]]:
    """Read the splits of a data set, or generate a missing one; arguments and results as for `read_stored`."""
    split_file = folder / entry.split_file
    if split_file.is_file():
        record = read_random_split(split_file)
        if record is not None and record.seed == seed:
            rng.setstate(record.state)
        pools = read_split_file(split_file, _prefix(entry))
    else:
        try:
            pools = entry.read(folder, rng)
        except UserError:  # a ValueError that names the file and the remedy
            raise
        except (LookupError, TypeError, ValueError) as error:  # raised for lists of another structure
            missing = f"{split_file} is missing, and " if entry.split_file else ""
            raise UserError(f"{missing}cannot split the images of {folder}: {first_line(error)}") from error
    needed = ("test",) if entry.train_on else SPLITS
    if empty := next((split for split in needed if split != "val" and not pools[split]), ""):
        raise UserError(f"there is no {empty} image")
    return pools, class_names(*(pools[split] for split in needed))


def _write_drawn(entry: Entry, folder: Path, pools: Pools, seed: int, rng: Random) -> None:
    """Write a generated split, with a warning. If it cannot be written, the warning says so."""
    split_file = folder / entry.split_file
    try:
        splits.write_split(split_file, _prefix(entry), pools, seed, rng.getstate())
    except UserError as error:
        logger.warning(NOT_WRITTEN, error)
        return
    hint = check_command(entry.name, str(folder.parent))
    warning = "%s was missing: wrote a random split with seed %d, as CoOp does, not the published split: %s"
    logger.warning(warning, split_file, seed, hint)


def _prefix(entry: Entry) -> str:
    """Beginning of the paths of a data set's images, which its split file omits."""
    return f"{entry.images}/" if entry.images else ""


def read_coop_sample(dataset: Dataset, shots: int, seed: int) -> Pools | None:
    """Read the few-shot sample that CoOp stored in this data root for these shots and this seed; None without one.

    CoOp stores samples as pickles in the folder of the data set, and uses them in all later runs.

    Raises:
        UserError: If the sample is of another split than the current one.
    """
    entry = find_entry(dataset.name)
    if entry is None or not entry.folder or dataset.root is None:
        return None
    path = dataset.root / entry.folder / "split_fewshot" / f"shot_{shots}-seed_{seed}.pkl"
    if not path.is_file():
        return None
    logger.info("%s: using CoOp's few-shot sample", path)
    sample = read_coop_pickle(path, entry.folder)
    classes = set(enumerate(dataset.classnames))
    test = {item.path for item in dataset.test}
    problem = "" if "val" in sample or dataset.val_is_test else "it has no val"
    for item in (item for items in sample.values() for item in items):
        if item[1:] not in classes or item.path in test:
            problem = f"{item.path} is {'a test image' if item.path in test else repr(item.classname)}"
    if problem:
        raise UserError(f"{path} was sampled from another split; delete it to sample again ({problem})", "split.sample")
    return sample
