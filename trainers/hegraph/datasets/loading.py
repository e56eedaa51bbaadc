"""Loading a data set by its name, and the few-shot task that a seed, or CoOp itself before, selects from it.

A split is read from CoOp's split file. Where that is missing, the split is drawn from the seed and written there, as
CoOp does. A file beside it (`.drawn`) keeps the seed and the state of the random generator after drawing, so that a
later run with this seed selects what the first run did.

The classes of the user's own images are in the order of their form, or else sorted, with numbers first, by value.
"""

from __future__ import annotations

import logging
import random
import re
import shlex
from collections.abc import Callable, Collection
from dataclasses import replace
from functools import partial
from pathlib import Path

from ..utils.errors import UserError, command, first_line, unknown
from ..utils.files import absolute
from ..utils.reading import check
from .base import Dataset, abbreviate, class_names
from .digits import load_digits_dataset
from .folder import class_name, read_class_folders, read_files, read_table
from .images import is_image, open_below
from .layouts import class_ids, list_names
from .packed import read_hugging_face, read_shards
from .registry import ENTRIES, Entry, find_entry
from .splits import (
    SPLITS,
    Item,
    Pools,
    read_coop_pickle,
    read_random_split,
    read_split_file,
    sample_few_shot,
    write_random_split,
)

logger = logging.getLogger(__name__)

OWN = "ImageFolder"  # the name of the user's own images
LAYOUT = (
    "expected ROOT/train/<class>/*.jpg (and val, test), ROOT/<class>/*.jpg, or a CSV file with the columns "
    "path,label[,split]"
)


class NoOwnImages(UserError):
    """A folder holds images in none of the forms of docs/data.md."""


def load_dataset(name: str, root: str = "", seed: int = 1, rng: random.Random | None = None) -> Dataset:
    """Loads a data set with its full splits. No image is opened. A missing split is drawn from `rng`, which was made
    from `seed` and goes on after that; None makes one.
    """
    entry = find_entry(check(str, name, "name"))
    check(Path, root, "root", convert=True)
    if entry is None:
        raise unknown("data set", name, ENTRIES)
    if entry.loader:
        return LOADERS[entry.loader](root, entry.name)
    return _load_stored(entry, root, seed, rng or random.Random(seed))


def load_few_shot(name: str, root: str, shots: int, seed: int, subsample: str = "all") -> Dataset:
    """Loads the few-shot task that CoOp's protocol selects. All image files exist then; none was opened.

    `shots` are training images per class, -1 for all; `subsample` is "all", "base" or "new" classes.
    """
    shots, seed = check(int, shots, "shots", convert=True), check(int, seed, "seed", convert=True)
    if seed < 0:
        raise UserError(f"the few-shot protocol needs a seed from 0, got {seed}")
    rng = random.Random(seed)
    dataset = load_dataset(name, root, seed, rng)
    check_trainable(dataset)
    if drawn := read_coop_sample(dataset, shots, seed):
        dataset = dataset.with_splits(drawn)
    else:
        train_labels, val_labels = ([item.label for item in items] for items in (dataset.train, dataset.val))
        dataset = dataset.select(sample_few_shot(train_labels, val_labels, shots, rng))
    dataset = dataset.subsample(subsample)
    dataset.check_files()
    return dataset


def load_test_images(name: str, root: str, seed: int, subsample: str = "all") -> Dataset:
    """Load the test images of a data set, without its others; as `load_few_shot`. UserError if there is none."""
    dataset = replace(load_dataset(name, root, seed).subsample(subsample), train=[], val=[])
    if not dataset.test:
        raise UserError(f"{name} has no test images, so no model can be tested on it")
    dataset.check_files()
    return dataset


def load_pool(name: str, root: str, seed: int, subsample: str, used: Collection[str]) -> Dataset:
    """The training and validation images of a data set as test images, without those whose paths are `used`; otherwise
    as `load_few_shot`. Where the validation images are the test images, as ImageNet's, they are not taken.
    """
    whole = load_dataset(name, root, seed).subsample(subsample)
    items = [*whole.train, *([] if whole.val_is_test else whole.val)]
    return replace(whole, train=[], val=[], test=[item for item in items if item.path not in used])


def load_unlabelled(source: Path) -> Dataset:
    """Images without labels as the test images of a data set without classes; UserError if there is none. None is
    opened. `source` is a folder, which is walked into, or a CSV file with the column `path`, relative to its folder.
    """
    if source.is_dir():
        base = source
        found = (path for path in base.rglob("*") if is_image(path.name) and not path.is_dir())
        paths = sorted(path.relative_to(base).as_posix() for path in found)
    else:
        base = source.parent
        place, rows = read_table(source)
        paths = [row[place] for row in rows]
    if not paths:
        raise UserError(f"{source} holds no image")
    items = [Item(path, 0, "") for path in paths]
    dataset = Dataset(str(source), [], [], [], items, partial(open_below, base), absolute(base))
    dataset.check_files()
    return dataset


def check_trainable(dataset: Dataset) -> None:
    """Raises UserError if a data set has only test images. The message says what to train on instead."""
    if not dataset.train:
        name, entry = dataset.name, find_entry(dataset.name)
        source = entry.train_on if entry and entry.train_on else "another data set"
        raise UserError(f"{name} has only test images: train on {source} with --target-domains {name}")


# --- the user's own images


def load_own_images(root: str, name: str = OWN, split_folders: bool = True) -> Dataset:
    """Reads the data set that `--root` names, in one of the forms of docs/data.md. No image is opened.

    Class folders directly below `root` are split into train, val and test, unless `split_folders` is false.
    """
    if not root:
        raise UserError(f"{OWN} needs --root, your folder or CSV file; {LAYOUT}")
    # Each is None where the images are of another form
    images = read_files(root) or read_hugging_face(root) or read_shards(root) or read_class_folders(root, split_folders)
    if images is None:
        base = absolute(root)
        try:
            held = abbreviate(list_names(base)) or "nothing"
        except UserError as error:
            raise NoOwnImages(str(error)) from error
        raise NoOwnImages(
            f"{base} holds {held}, and neither class folders in a folder train nor one CSV file; {LAYOUT}"
        )
    where = images.root or root
    rows: dict[str, list[tuple[str, str]]] = {split: [] for split in SPLITS}
    for split, path, label in images.rows:
        called = class_name(label, f"{where}: {path}")
        if not called:
            raise UserError(f"{where}: {path} has no label; give it one, or leave it out")
        rows[split].append((path, called))
    trained = {called for _, called in rows["train"]}
    if not trained:
        raise UserError(f"{where} has no training image; {LAYOUT}")
    if untrained := sorted({called for split in ("val", "test") for _, called in rows[split]} - trained):
        raise UserError(
            f"{where}: {len(untrained)} classes of val or test have no training image: {abbreviate(untrained)}"
        )
    ordered = dict.fromkeys(class_name(each, root) for each in images.classnames)
    names = [called for called in ordered if called in trained]
    if len(names) < len(trained):
        names = sorted(trained, key=_class_order)
    if all(re.fullmatch(r"[-+]?\d+([.,]\d+)?", called) for called in names):
        said = '%s: all class names are numbers (%s), so prompts read "a photo of a %s."; give them names in words'
        logger.warning(said, where, abbreviate(names), names[0])
    labels = {called: label for label, called in enumerate(names)}
    train, val, test = ([Item(path, labels[called], called) for path, called in rows[split]] for split in SPLITS)
    check = command(f"datasets check folder --root {shlex.quote(root)}")
    return Dataset(name, names, train, val, test, images.open, images.root, (), images.version, check)


def _class_order(name: str) -> tuple[int, int, str]:
    """Sorts numbers by value before all other names. Python does not convert a number of many thousand digits."""
    return (0, int(name), name) if name.isdecimal() and len(name) <= 1000 else (1, 0, name)


# The data sets that need no folder below the data root: what loads them, given `DATASET.ROOT` and their name
LOADERS: dict[str, Callable[[str, str], Dataset]] = {"digits": load_digits_dataset, "own": load_own_images}


# --- data sets that have a folder below the data root


def _load_stored(entry: Entry, root: str, seed: int, rng: random.Random) -> Dataset:
    """A data set below the folder of all data sets. A missing split is drawn from `rng`, which was made from `seed`."""
    name, base = entry.name, absolute(root)
    folder = base / entry.folder
    hint = "see " + command(f"datasets check {name} --root {root or '.'}")
    if not folder.is_dir():
        raise UserError(f"{name} is not in {folder}; set --root to the folder that holds {entry.folder}/, or {hint}")
    try:
        pools, names = read_stored(entry, folder, seed, rng)
        ids = class_ids(folder, entry.class_ids) if entry.class_ids else ()
    except UserError as error:
        raise UserError(f"{name}: {error}; {hint}") from error
    train, val, test = (
        [item._replace(path=f"{entry.folder}/{item.path}") for item in pools[split]] for split in SPLITS
    )
    return Dataset(name, names, train, val, test, partial(open_below, base, as_stored=True), base, ids)


def read_stored(
    entry: Entry, folder: Path, seed: int, rng: random.Random, write: bool = True
) -> tuple[Pools, list[str]]:
    """The full splits of a data set, with paths relative to its folder, and its class names in label order.

    A missing split is drawn from `rng`, which was made from `seed`, and written if `write`. If the split file was drawn
    with this seed, `rng` is set to its state after that.
    """
    split_file = folder / entry.split_file  # the folder itself where the split is official
    prefix = f"{entry.images}/" if entry.images else ""  # of paths, which the split file leaves out
    listed = split_file.is_file()
    if listed:
        drawn = read_random_split(split_file)
        if drawn is not None and drawn.seed == seed:
            rng.setstate(drawn.state)
        pools = read_split_file(split_file, prefix)
    else:
        try:
            pools = entry.read(folder, rng)
        except (LookupError, TypeError, ValueError) as error:  # what a list of another structure leads to
            missing = f"{split_file} is missing, and " if entry.split_file else ""
            raise UserError(f"{missing}no split can be made of what is in {folder}: {first_line(error)}") from error
    splits = ("test",) if entry.train_on else SPLITS
    if empty := next((split for split in splits if split != "val" and not pools[split]), ""):
        raise UserError(f"there is no {empty} image")
    names = class_names(*(pools[split] for split in splits))
    if entry.split_file and not listed and write:
        try:
            write_random_split(split_file, prefix, pools, seed, rng.getstate())
            look = command(f"datasets check {entry.name} --root {folder.parent}")
            said = "%s was missing: drawn with seed %d and written, as CoOp does. It is not the published split: %s"
            logger.warning(said, split_file, seed, look)
        except UserError as error:
            logger.warning("%s; every seed will draw a split, and a test set, of its own", error)
    return pools, names


def read_coop_sample(dataset: Dataset, shots: int, seed: int) -> Pools | None:
    """The few-shot task that CoOp selected in this data root for these shots and this seed; None if it did not.

    CoOp keeps its selection as a pickle in the folder of the data set and takes it in every later run, so it is taken
    here as well. One that was drawn from another split than the one that is here is an error.
    """
    entry = find_entry(dataset.name)
    if entry is None or not entry.folder or dataset.root is None:
        return None
    path = dataset.root / entry.folder / "split_fewshot" / f"shot_{shots}-seed_{seed}.pkl"
    if not path.is_file():
        return None
    logger.info("%s: CoOp's own few-shot selection is used", path)
    drawn = read_coop_pickle(path, entry.folder)
    known, test = set(enumerate(dataset.classnames)), {item.path for item in dataset.test}
    why = "" if "val" in drawn or dataset.val_is_test else "it has no val"
    for item in (item for items in drawn.values() for item in items):
        if item[1:] not in known or item.path in test:
            why = f"{item.path} is {'a test image' if item.path in test else repr(item.classname)}"
    if why:
        raise UserError(f"{path} was drawn from another split; delete it to draw anew ({why})")
    return drawn
