"""Own images that cannot be read: found before anything is downloaded or encoded, and left out or refused."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal

from ..utils.errors import UserError
from ..utils.files import hash_json
from .base import Dataset
from .own_images import OWN

logger = logging.getLogger(__name__)

MAX_LISTED = 10  # images that a warning names
Unreadable = Literal["", "leave out", "refuse"]

_problems: dict[str, dict[str, str]] = {}  # hash of own images -> problems of the unreadable ones, by path
_left_out: ContextVar[set[str] | None] = ContextVar("_left_out", default=None)  # in a block of `counting_left_out`


@contextmanager
def counting_left_out() -> Iterator[set[str]]:
    """Context of the set of all images that `readable` leaves out."""
    paths: set[str] = set()
    token = _left_out.set(paths)
    try:
        yield paths
    finally:
        _left_out.reset(token)


def readable(dataset: Dataset, unreadable: Unreadable) -> Dataset:
    """Return a data set without the own images that cannot be read, with a warning that names them.

    Args:
        dataset: The data set. A published one is returned as it is.
        unreadable: "leave out", or "refuse" them; "" opens no image, and returns the data set as it is.

    Raises:
        UserError: If a file is missing, images are refused, or a class loses its training images or a split all images.
    """
    if dataset.name != OWN or not unreadable:
        return dataset
    dataset.check_files()
    key = hash_json([dataset.check_command, dataset.files_hash()])
    if key not in _problems:  # a sweep has many runs on the same images
        _problems[key] = dataset.unreadable_images()
    problems = _problems[key]
    if not problems:
        return dataset
    count = f"{len(problems)} of {len(dataset.paths())} images cannot be read"
    listed = [f"{path} ({problem})" for path, problem in problems.items()]
    hint = f"such as {listed[0]}; list all: {dataset.check_command}"
    if unreadable == "refuse":
        raise UserError(f"{count}, {hint}")
    rest = dataset.without(problems)
    _check_rest(dataset, rest, hint)
    more = f"; list all: {dataset.check_command}" if len(listed) > MAX_LISTED else ""
    logger.warning("%s and are left out: %s%s", count, "; ".join(listed[:MAX_LISTED]), more)
    if (paths := _left_out.get()) is not None:
        paths.update(problems)
    return rest


def _check_rest(dataset: Dataset, rest: Dataset, hint: str) -> None:
    """Raise UserError, with the end `hint`, if the readable rest lacks training images of a class, or a split."""
    trained = {label for item in dataset.train for label in item.labels}
    if lost := trained - {label for item in rest.train for label in item.labels}:
        raise UserError(f"no training image of {dataset.classnames[min(lost)]} can be read, {hint}")
    for split, items in dataset.splits.items():
        if items and not rest.splits[split]:
            raise UserError(f"no {split} image can be read, {hint}")
