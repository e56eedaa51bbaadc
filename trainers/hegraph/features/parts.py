"""Encoded features on disk: one file for each part of a bank (train, val, test, text).

A file is named after the key of its part, a hash over all that shaped it: backbone, weights, preprocessing, images,
augmentation, sentences and code version. So the test features of a data set are shared by all shot counts and seeds,
and a stale file is never read.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

from ..utils import processes
from ..utils.errors import UserError
from ..utils.tensor_file import CHECKSUM, StreamedTensor, TensorFile, in_memory, write_streamed

logger = logging.getLogger(__name__)

CODE_VERSION = 1  # part of every key: raise it when the same input would give other features
FEATURES = "features"  # the name of the tensor in a part of images
WHAT = "the features"  # what such a file is called in messages
Tensors = dict[str, Tensor]


def kept_part(folder: Path, name: str, key: str, make: Callable[[Path], None]) -> Path:
    """The file of a part, which is made if it is not there. A damaged file is replaced, and that is said.

    All processes of `torchrun` call this together. Two runs that do not know of each other may make the same part: each
    renames a whole file into place.

    Args:
        folder: Where parts are kept.
        name: Of the part, "train", "val", "test" or "text".
        key: A hash of all that shapes the features.
        make: Writes the file, in the first process of `torchrun`, with the help of the others. It may keep unfinished
            work in `chunk_folder` of that file.

    Raises:
        UserError: If the folder cannot be written.
    """
    path = folder / f"{name}-{key[:16]}.safetensors"
    if not processes.of_first(lambda: is_whole(path, key)):
        make(path)
        if processes.rank() == 0:
            shutil.rmtree(chunk_folder(path), ignore_errors=True)
        processes.wait()
    return path


def chunk_folder(path: Path) -> Path:
    """Where the chunks of a part are kept until its file at `path` is written."""
    return path.with_suffix(".chunks")


def write_blocks(path: Path, tensors: Mapping[str, StreamedTensor], key: str) -> None:
    """Writes features, block by block, with the key of what they were made from and a checksum of them, atomically.

    Raises:
        UserError: If the file cannot be written.
    """
    write_streamed(path, tensors, {"fingerprint": key}, checked=True)


def write_part(path: Path, tensors: Tensors, key: str) -> None:
    """Writes features that are in memory; otherwise as `write_blocks`."""
    write_blocks(path, {name: in_memory(tensor) for name, tensor in tensors.items()}, key)


def read_part(path: Path) -> Tensors:
    """The tensors of a part that `is_whole`; raises UserError if they cannot be read."""
    file = TensorFile(path, WHAT)
    return {name: file.read(name) for name in file.tensors}


def is_whole(path: Path, key: str) -> bool:
    """Whether a file holds undamaged features that were made from what `key` stands for. If it does not, that is said.

    The features are read in blocks and compared with their checksum.
    """
    if not path.exists():
        return False
    try:
        file = TensorFile(path, WHAT)
        said = file.metadata.get(CHECKSUM)
        if file.metadata.get("fingerprint") != key:
            reason = "it was made from something else"
        elif said == file.checksum():
            return True
        else:
            reason = "its features are damaged" if said else "it is of an earlier version"
    except UserError:
        reason = "it is damaged"
    logger.warning("%s cannot be used, %s: encoding anew", path, reason)
    return False
