"""Images that CoOp's loaders sample, as a data set of this package."""

import os
import pickle
import random
from functools import partial
from pathlib import Path
from typing import Any

from ..config import Config
from ..datasets.base import Dataset
from ..datasets.images import open_below
from ..datasets.loading import load_dataset, read_coop_sample
from ..datasets.registry import stored_datasets
from ..datasets.splits import Item, path_from
from ..utils.errors import UserError
from ..utils.files import absolute, atomic_path
from .host import DataManager, Datum

IMAGENET = "ImageNet"


def read_before_coop(cfg: Config, seed: int) -> Dataset | None:
    """Read the data set before CoOp's loader does, and seed Python's generator for it; None if it is Dassl's alone.

    The files are checked, and a sample that CoOp stored: it may hold test images, and unpickling it can run code. Files
    that CoOp writes if they are missing, a split and ImageNet's list of images, are written here, in an order that does
    not depend on the file system.

    Raises:
        UserError: If images or lists are missing, or a stored sample is of another split.
    """
    if cfg.data.name not in stored_datasets():
        return None
    rng = random.Random(seed)
    dataset = load_dataset(cfg.data.name, cfg.data.root, seed, rng)
    read_coop_sample(dataset, cfg.data.shots, seed)
    if dataset.name == IMAGENET:
        write_imagenet_list(dataset)
    random.setstate(rng.getstate())
    return dataset


def write_imagenet_list(dataset: Dataset) -> None:
    """Write CoOp's `preprocessed.pkl` of ImageNet, unless it exists: CoOp would list the images in the disk's order."""
    root = absolute(str(dataset.root))
    path = root / stored_datasets()[IMAGENET].folder / "preprocessed.pkl"
    if path.exists():
        return
    dataset.check_files()

    def items(split: list[Item]) -> list:
        return [Datum(impath=str(root / path), label=label, classname=name) for path, label, name in split]

    content = {"train": items(dataset.train), "test": items(dataset.test)}
    with atomic_path(path) as temporary:
        temporary.write_bytes(pickle.dumps(content, protocol=pickle.HIGHEST_PROTOCOL))


def load_with_coop(cfg: Any, settings: Config, stored: Dataset | None, **transforms: Any) -> DataManager:
    """Have Dassl's DataManager and CoOp's loader sample the images.

    Args:
        cfg: Dassl's configuration.
        settings: The same as a configuration of this package.
        stored: Result of `read_before_coop`.
        transforms: Custom transforms of the DataManager.

    Raises:
        UserError: If the loader fails.
    """
    try:
        return DataManager(cfg, **transforms)
    except (AssertionError, LookupError, OSError, ValueError) as error:
        if stored is not None:
            stored.check_files()  # names missing files, which CoOp's assertions do not
        place = absolute(settings.data.root)
        raise UserError(f"{settings.data.name}: CoOp's loader cannot read {place} ({error!r})") from error


def sampled_dataset(manager: DataManager, cfg: Config, stored: Dataset | None) -> Dataset:
    """Return the images that a DataManager sampled, with paths relative to a folder.

    CoOp stores samples as pickles, whose paths may be of another folder or machine. `stored` is the data set as this
    package reads it: it has the ids of the classes, and the order of the test images.

    Raises:
        UserError: If an image is missing.
    """
    source = manager.dataset
    if stored is None:
        return foreign_dataset(source, cfg)
    folder = stored_datasets()[cfg.data.name].folder

    def items(data: list | None) -> list[Item]:
        return [Item(path_from(folder, datum.impath), datum.label, datum.classname) for datum in data or ()]

    ours = stored.subsample(cfg.data.classes)
    positions = {item.path: position for position, item in enumerate(ours.test)}
    test = items(source.test)
    if all(item.path in positions for item in test):
        test.sort(key=lambda item: positions[item.path])
    val = test if source.val is source.test else items(source.val)
    ids = ours.class_ids if list(ours.classnames) == list(source.classnames) else ()
    root = absolute(cfg.data.root)
    opened = partial(open_below, root, as_stored=True)
    dataset = Dataset(cfg.data.name, source.classnames, items(source.train_x), val, test, opened, root, ids)
    dataset.check_files()
    return dataset


def foreign_dataset(source: Any, cfg: Config) -> Dataset:
    """Return a data set that only Dassl knows, such as a class of the user, below the common folder of its images."""
    val = source.val or ()
    test = source.test or ()
    paths = [os.path.abspath(datum.impath) for datum in (*source.train_x, *val, *test)]
    root = Path(os.path.commonpath([os.path.dirname(path) for path in paths]))

    def items(data: Any) -> list[Item]:
        relative = [os.path.relpath(os.path.abspath(datum.impath), root) for datum in data]
        return [Item(path, datum.label, datum.classname) for path, datum in zip(relative, data)]

    opened = partial(open_below, root, as_stored=True)
    of_test = items(test)
    of_val = of_test if source.val is source.test else items(val)
    return Dataset(cfg.data.name, source.classnames, items(source.train_x), of_val, of_test, opened, root)


def no_images(cfg: Config) -> Dataset:
    """Return the configured data set without images and classes, for a task that is only asked for its backbone."""
    return Dataset(cfg.data.name, [], [], [], [], partial(open_below, Path()))
