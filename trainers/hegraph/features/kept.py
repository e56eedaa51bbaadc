"""Encoded features that are kept on disk: a file for each part of a bank (train, val, test, text).

A file is named after its key, a hash over all that shaped the features: backbone, weights, preprocessing, images,
augmentation, sentences and code version. So test features are shared by all shot counts and seeds, and a stale file is
never read.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from torch import Tensor

from ..utils import processes
from ..utils.errors import UserError
from ..utils.files import hash_content, write_tensors
from ..utils.reading import read_tensors

logger = logging.getLogger(__name__)

CODE_VERSION = 1  # part of every key: raise it when the same input would give other features
WHAT = "encoded features"

Tensors = dict[str, Tensor]


def kept_part(folder: Path, name: str, key: str, make: Callable[[Path], None]) -> Tensors:
    """The tensors of a part, which is made if it is not there. A damaged file is replaced, and that is said.

    All processes of `torchrun` call this together. Two runs that do not know of each other may make the same part: each
    renames a whole file into place.

    `make` writes the file, in the first process, with the help of the others. It may keep unfinished work in the
    `chunk_folder` of that file.
    """
    path = folder / f"{name}-{key[:16]}.safetensors"
    if not processes.of_first(lambda: is_whole(path, key)):
        make(path)
        if processes.rank() == 0:
            shutil.rmtree(chunk_folder(path), ignore_errors=True)
        processes.wait()
    return read_part(path)


def chunk_folder(path: Path) -> Path:
    """Where the chunks of a part are kept until its file at `path` is written."""
    return path.with_suffix(".chunks")


def write_part(path: Path, tensors: Tensors, key: str) -> None:
    """Writes features with the key of what they were made from and a checksum of them, atomically."""
    write_tensors(path, tensors, {"fingerprint": key, "checksum": _checksum(tensors)})


def read_part(path: Path) -> Tensors:
    """The tensors of a part that `is_whole`; raises UserError if they cannot be read."""
    return read_tensors(path, WHAT)[0]


def is_whole(path: Path, key: str) -> bool:
    """Whether a file holds undamaged features, made from what `key` stands for. If it does not, that is said."""
    if not path.exists():
        return False
    with suppress(UserError):
        tensors, metadata = read_tensors(path, WHAT)
        if (metadata.get("fingerprint"), metadata.get("checksum")) == (key, _checksum(tensors)):
            return True
    logger.warning("%s cannot be used, since it is damaged or of another version: encoding anew", path)
    return False


def _checksum(tensors: Tensors) -> str:
    return hash_content(dict(sorted(tensors.items())))
