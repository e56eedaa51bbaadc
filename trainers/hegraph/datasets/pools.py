"""The full splits of a data set below the data root: read from CoOp's split file, or drawn where that is missing.

A drawn split is written as the split file that was missing, as CoOp does. A file beside it (`.drawn`) keeps the seed
and the state of the random generator after drawing, so that a later run with this seed selects what the first run did.
"""

from __future__ import annotations

import logging
import random
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from ..utils.commands import command
from ..utils.errors import UserError, first_line
from ..utils.files import hash_file, read_json, write_json
from ..utils.schema import Finite, OpenPart, check
from .base import class_names
from .entry import DatasetEntry
from .splits import SPLITS, Pools, check_pools, read_split_file

logger = logging.getLogger(__name__)

MALFORMED = (KeyError, TypeError, ValueError, IndexError)  # what reading a file of an unexpected structure may raise


def read_pools(entry: DatasetEntry, folder: Path, seed: int, rng: random.Random, write: bool = True) -> Pools:
    """The full splits of a data set.

    Args:
        entry: The data set.
        folder: Its folder, which the paths of the items are relative to.
        seed: The seed that `rng` was made from.
        rng: The generator that a missing split is drawn from.
        write: Whether a split that had to be drawn is written to the split file.

    Raises:
        UserError: If something is missing or damaged.
    """
    if entry.split_file is None:
        return entry.read(folder, rng)
    split_file = folder / entry.split_file
    prefix = f"{entry.images}/" if entry.images else ""
    if split_file.is_file():
        _restore_generator(split_file, seed, rng)
        pools = read_split_file(split_file)
        return {split: [item._replace(path=prefix + item.path) for item in pools[split]] for split in SPLITS}
    try:
        pools = entry.read(folder, rng)
    except UserError as error:
        raise UserError(f"{split_file} is missing, and no split can be drawn instead: {error}") from error
    pools_class_names(entry, pools)  # checks the split before it is written
    check_pools(pools, str(folder))
    if write:
        remedy = command(f"datasets download {entry.name} --root {folder.parent}") if entry.publishes_split else ""
        _write_split(split_file, pools, prefix, seed, rng, remedy)
    return pools


def pools_class_names(entry: DatasetEntry, pools: Pools) -> list[str]:
    """The class names in label order.

    Raises:
        UserError: If a split is empty, or the three do not agree on what a label means.
    """
    needed = ("test",) if entry.train_on else ("train", "test")
    empty = next((split for split in needed if not pools[split]), None)
    if empty is not None:
        raise UserError(f"there is no {empty} image")
    if entry.train_on:
        return class_names(pools["test"])
    return class_names(pools["train"], pools["val"], pools["test"])


def read_drawn(split_file: Path) -> dict[str, Any] | None:
    """How this program drew a split file: "seed", "sha256" of the file, and "state" of the generator afterwards.

    None if it did not draw the file, or the file has been changed or replaced since.
    """
    path = _drawn_path(split_file)
    if not path.is_file():
        return None
    drawn = read_json(path)
    remedy = f"{path} is damaged; delete it, and the split file too to have it drawn anew"
    check(_Drawn, drawn, remedy)
    try:
        random.Random().setstate(_state(drawn))
    except (ValueError, TypeError, OverflowError) as error:
        raise UserError(f"{remedy}: {first_line(error)}") from error
    return drawn if drawn["sha256"] == hash_file(split_file) else None


def _restore_generator(split_file: Path, seed: int, rng: random.Random) -> None:
    """Sets `rng` to its state after drawing, if the split file was drawn with this seed."""
    drawn = read_drawn(split_file)
    if drawn is not None and drawn["seed"] == seed:
        rng.setstate(_state(drawn))


def _state(drawn: dict[str, Any]) -> tuple:
    version, state, gauss = drawn["state"]
    return version, tuple(state), gauss


class _Drawn(OpenPart):
    """How a split file was drawn; the state is that of Python's generator."""

    seed: int
    sha256: str
    state: Annotated[tuple[int, list[int], Finite | None], Field(strict=False)]


def _write_split(split_file: Path, pools: Pools, prefix: str, seed: int, rng: random.Random, remedy: str) -> None:
    """Writes a split that was drawn; `remedy` is the command that fetches the published one, "" if there is none."""
    rows = {s: [[item.path[len(prefix) :], item.label, item.classname] for item in pools[s]] for s in SPLITS}
    try:
        write_json(split_file, rows)
        drawn = {"seed": seed, "sha256": hash_file(split_file), "state": rng.getstate()}
        write_json(_drawn_path(split_file), drawn)
    except UserError as error:
        logger.warning("%s; every seed will draw a split, and a test set, of its own", error)
    else:
        more = f". It is not the split of published numbers; to get that, delete the file and run {remedy}"
        logger.warning(
            "%s was missing: drawn with seed %d and written, as CoOp does%s", split_file, seed, more if remedy else ""
        )


def _drawn_path(split_file: Path) -> Path:
    return split_file.with_name(split_file.name + ".drawn")
