"""Images of one's own that are learned from and tested on: the same file under two names.

The training features of such an image are means over augmented views, so that features alone do not tell.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..utils.errors import UserError
from ..utils.files import hash_file
from .base import Dataset
from .images import reason

HEAD = 4096  # bytes that are compared first


def refuse_copies(dataset: Dataset) -> None:
    """Checks that no training or validation file is a test file as well, byte for byte.

    Args:
        dataset: The selected images. Those that are no files of their own, as in a tar shard, are not compared.

    Raises:
        UserError: If there are such files, and the message counts them and names one; or if a file cannot be read.
    """
    try:
        copies = copies_in_test(dataset)
    except OSError as error:
        raise dataset.unreadable(error.filename or "", reason(error)) from error
    for name, found in copies.items():
        if found:
            raise UserError(
                f"{len(found)} of {len(dataset.splits[name])} {name} images are test images as well, such as "
                f"{found[0]}, so the test would say nothing about new images; take them out of {name} or out of test"
            )


def copies_in_test(dataset: Dataset) -> dict[str, list[Path]]:
    """The files of "train" and of "val" that are test files as well, byte for byte.

    Args:
        dataset: Its images that are no files of their own, as in a tar shard, are not compared.

    Raises:
        OSError: If a file cannot be read.
    """
    if dataset.root is None or dataset.version is not None:
        return {"train": [], "val": []}
    train, val, test = ([dataset.root / item.path for item in items] for items in dataset.splits.values())
    return {"train": files_among(train, test), "val": files_among(val, test)}


def files_among(files: Sequence[Path], others: Sequence[Path]) -> list[Path]:
    """The files whose content is that of another one. Few are read: of equal size, and then with an equal beginning."""
    for tell in (_size, _head, hash_file):
        told, told_of_others = ({path: tell(path) for path in paths} for paths in (files, others))
        both = set(told.values()) & set(told_of_others.values())
        files = [path for path in files if told[path] in both]
        others = [path for path in others if told_of_others[path] in both]
        if not files:
            break
    return list(files)


def _size(path: Path) -> int:
    return path.stat().st_size


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(HEAD)
