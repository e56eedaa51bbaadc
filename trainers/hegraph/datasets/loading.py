"""Loading a data set that has a folder below the data root, and the few-shot task that CoOp selected from it before."""

from __future__ import annotations

import logging
import random
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ..utils.commands import command
from ..utils.errors import UserError
from ..utils.files import absolute
from .base import Dataset
from .entry import DatasetEntry
from .images import open_image
from .pickles import read_coop_pickle
from .pools import MALFORMED, pools_class_names, read_pools
from .splits import SPLITS, Pools

if TYPE_CHECKING:
    from PIL import Image

logger = logging.getLogger(__name__)


def load_pools(entry: DatasetEntry, root: str, seed: int, rng: random.Random) -> Dataset:
    """Loads a data set with its full splits. No image is opened.

    Args:
        entry: The data set.
        root: The folder of all data sets.
        seed: The seed that `rng` was made from.
        rng: The generator that a missing split is drawn from. The few-shot protocol draws from it afterwards.

    Raises:
        UserError: If something is missing. The message says what, and how to find out more.
    """
    name = entry.name
    base = absolute(root)
    folder = base / entry.folder
    check = command(f"datasets check {name} --root {root or '.'}")
    hint = f"see {check}"
    if not folder.is_dir():
        raise UserError(f"{name} is not in {folder}; set --root to the folder that holds {entry.folder}/, or {hint}")
    try:
        pools = read_pools(entry, folder, seed, rng)
        classnames = pools_class_names(entry, pools)
        ids = entry.class_ids(folder) if entry.class_ids else ()
    except (UserError, *MALFORMED) as error:
        reason = str(error) if isinstance(error, UserError) else f"a file there has another structure ({error!r})"
        raise UserError(f"{name}: {reason}; {hint}") from error
    items = {split: [item._replace(path=f"{entry.folder}/{item.path}") for item in pools[split]] for split in SPLITS}
    if pools["val"] is pools["test"]:
        items["val"] = items["test"]
    train, val, test = (items[split] for split in SPLITS)
    return Dataset(name, classnames, train, val, test, open=partial(open_stored, base), root=base, class_ids=ids)


def read_coop_selection(dataset: Dataset, folder: str, shots: int, seed: int) -> Pools | None:
    """The few-shot task that CoOp selected in this data root for these shots and this seed; None if it did not.

    CoOp keeps its selection as a pickle and takes it in every later run, so it is taken here as well.

    Args:
        dataset: The data set with its full splits.
        folder: Its folder below the data root.
        shots: Training images per class.
        seed: The seed of the selection.

    Raises:
        UserError: If the pickle is damaged, or was drawn from another split than the one that is here.
    """
    if shots < 1 or dataset.root is None:
        return None  # CoOp keeps no selection of all images
    path = dataset.root / folder / "split_fewshot" / f"shot_{shots}-seed_{seed}.pkl"
    if not path.is_file():
        return None
    logger.info("%s: CoOp's own few-shot selection is used", path)
    drawn = read_coop_pickle(path, folder)
    remedy = f"{path} was drawn from another split; delete it to draw anew"
    if "val" not in drawn and not dataset.val_is_test:
        raise UserError(f"{remedy} (it has no val)")
    names, test = dict(enumerate(dataset.classnames)), {item.path for item in dataset.test}
    for item in (item for items in drawn.values() for item in items):
        if names.get(item.label) != item.classname:
            raise UserError(f"{remedy} ({item.path} has label {item.label}, {item.classname!r})")
        if item.path in test:
            raise UserError(f"{remedy} ({item.path} is a test image)")
    return drawn


def open_stored(base: Path, path: str) -> Image.Image:
    """Opens an image below the data root, as Dassl reads it."""
    return open_image(base / path, as_stored=True)
