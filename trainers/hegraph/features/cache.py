"""Cached features on disk: one file for each part of a bank (train, val, test, text).

The name of a file has a hash of everything that determines the features, so that all runs share test features, and
outdated files are never read.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..utils import processes
from ..utils.errors import UserError, first_line
from ..utils.files import hash_content, write_tensors
from ..utils.reading import read_tensors
from .bank import has_unit_norm

logger = logging.getLogger(__name__)

FEATURES = "features"  # name of the tensor in a part of images
NORMS = "norms"  # name of the tensor with norms in the part "text"
FORM = "encoded features"
CHUNKS = ".chunks"  # suffix of the temporary folder with the chunks of a part

PART_NAME = re.compile(r".+-[0-9a-f]{16}\.(safetensors|chunks)")  # of the file of a part and of its chunks

Tensors = dict[str, Tensor]


def load_or_encode(folder: Path | None, name: str, key: str, encode: Callable[[Path | None], Tensors]) -> Tensors:
    """Read a cached part, after encoding it if the file is missing or damaged.

    All processes of `torchrun` call this function together. Concurrent runs may encode the same part, since each one
    renames a complete file into place.

    Args:
        folder: Folder of cached features; None encodes in memory, and writes nothing.
        name: "train", "val", "test" or "text".
        key: Hash of everything that determines the features.
        encode: Function from the file of the part, or None, to its tensors. All processes call it; the result of the
            first process is written.

    Raises:
        UserError: If `encode` raises it, or the folder cannot be written.
    """
    if folder is None:
        return encode(None)
    path = folder / f"{name}-{key[:16]}.safetensors"
    if not processes.broadcast_from_rank0(lambda: is_valid(path, key)):
        with ignore_if_complete(path, key):
            tensors = encode(path)
            if processes.rank() == 0:
                write_features(path, tensors, key)
        if processes.rank() == 0:
            shutil.rmtree(path.with_suffix(CHUNKS), ignore_errors=True)
        processes.wait()
    with suppress(OSError):  # a folder of another user
        os.utime(path)  # the time of the last use, for `cached_parts`
    return read_tensors(path, FORM)[0]


class CachedPart(NamedTuple):
    """Features of a part, or its chunks, in a cache.

    Attributes:
        path: File of the part, or folder of chunks.
        size: Size in bytes.
        last_used: Time of the last use, in seconds since 1970.
    """

    path: Path
    size: int
    last_used: float


def cached_parts(folder: Path) -> list[CachedPart]:
    """List the cached features below a folder, sorted by path; no other file is listed.

    Raises:
        UserError: If there is no such folder.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; give the folder of cached features, by default output/features")
    parts = []
    for path in sorted(folder.rglob("*")):
        if PART_NAME.fullmatch(path.name) and not path.is_symlink():
            files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
            statuses = [file.stat() for file in files] or [path.stat()]
            size = sum(status.st_size for status in statuses)
            parts.append(CachedPart(path, size, max(status.st_mtime for status in statuses)))
    return parts


def delete_part(part: CachedPart) -> None:
    """Delete cached features; UserError if that fails."""
    try:
        if part.path.is_dir():
            shutil.rmtree(part.path)
        else:
            part.path.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"cannot delete {part.path}: {first_line(error)}") from error


@contextmanager
def ignore_if_complete(path: Path | None, key: str) -> Iterator[None]:
    """Suppress an error if a concurrent run has completed the part at `path` and removed its chunks."""
    try:
        yield
    except UserError:
        if path is None or not is_valid(path, key):
            raise


def write_features(path: Path, tensors: Tensors, key: str) -> None:
    """Write features atomically, with their key and a checksum."""
    write_tensors(path, tensors, {"fingerprint": key, "checksum": _checksum(tensors)})


def is_usable(tensors: Tensors) -> bool:
    """Whether all tensors of a part are float32, with rows of unit norm and positive finite "norms"."""
    if any(tensor.dtype != torch.float32 for tensor in tensors.values()):
        return False
    rows = [has_unit_norm(tensor.norm(dim=-1)).all() for name, tensor in tensors.items() if name != NORMS]
    norms = tensors.get(NORMS, torch.ones(1))
    return all(rows) and bool(((norms > 0) & norms.isfinite()).all())


def is_valid(path: Path, key: str) -> bool:
    """Whether a file has undamaged features for this key; logs a warning about any other file."""
    if not path.exists():
        return False
    with suppress(UserError):
        tensors, metadata = read_tensors(path, FORM)
        saved = metadata.get("fingerprint"), metadata.get("checksum")
        if saved == (key, _checksum(tensors)) and is_usable(tensors):
            return True
    logger.warning("%s is damaged or of another version: encoding again", path)
    return False


def _checksum(tensors: Tensors) -> str:
    return hash_content(dict(sorted(tensors.items())))
