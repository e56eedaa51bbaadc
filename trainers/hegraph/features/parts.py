"""Encoded features on disk: one file for each part of a bank (train, val, test, text).

A file is named after the key of its part, a hash over all that shaped it: backbone, weights, preprocessing, images,
augmentation, sentences and code version. So the test features of a data set are shared by all shot counts and seeds,
and a stale file is never read.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from ..utils import processes
from ..utils.errors import UserError
from ..utils.files import hash_json, read_tensors, write_tensors
from .bank_file import NORM_TOLERANCE

logger = logging.getLogger(__name__)

CODE_VERSION = 1  # raise it when the same input would give other features
Tensors = dict[str, Tensor]


def kept_part(
    folder: Path, name: str, shaped_by: dict[str, Any], encode: Callable[[Path, str], Tensors | None]
) -> Tensors:
    """Reads a part of a bank, or encodes it and keeps it. A damaged file is replaced, and that is said.

    All processes of `torchrun` call this together; the first of them writes, the others then read. Two runs that do not
    know of each other may encode the same part: each renames a whole file into place.

    Args:
        folder: Where parts are kept.
        name: Of the part, "train", "val", "test" or "text".
        shaped_by: Plain values that change whenever the features would.
        encode: Takes the file that will be written and the part's key, returns the tensors; None in every process of
            `torchrun` but the first. It may keep unfinished work in `chunk_folder` of that file.

    Raises:
        UserError: If the folder cannot be written.
    """
    key = hash_json(shaped_by | {"code": CODE_VERSION})
    path = folder / f"{name}-{key[:16]}.safetensors"
    tensors = read_part(path, key)
    if tensors is not None:
        return tensors
    tensors = encode(path, key)
    if tensors is not None:
        write_part(path, tensors, key)
        shutil.rmtree(chunk_folder(path), ignore_errors=True)
    processes.wait()
    return read_tensors(path, "the features")[0] if tensors is None else tensors


def chunk_folder(path: Path) -> Path:
    """Where the chunks of a part are kept until its file at `path` is written."""
    return path.with_suffix(".chunks")


def write_part(path: Path, tensors: Tensors, key: str) -> None:
    """Writes features with the key of what they were made from, atomically; raises UserError if it cannot."""
    write_tensors(path, tensors, {"fingerprint": key})


def read_part(path: Path, key: str) -> Tensors | None:
    """The features in a file, if they were made from what `key` stands for; None if there are none that can be used."""
    if not path.exists():
        return None
    try:
        tensors, metadata = read_tensors(path, "the features")
    except UserError:
        reason = "it is damaged"
    else:
        # Blocks that never reached the disk read as zeros, and their rows are not of unit norm
        whole = all((t.norm(dim=-1) - 1).abs().le(NORM_TOLERANCE).all() for t in tensors.values())
        if metadata.get("fingerprint") == key and whole:
            return tensors
        reason = "its features are damaged" if metadata.get("fingerprint") == key else "it was made from something else"
    logger.warning("%s cannot be used, %s: encoding anew", path, reason)
    return None
