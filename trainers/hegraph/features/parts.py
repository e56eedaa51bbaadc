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

from torch import Tensor

from ..utils import processes
from ..utils.errors import UserError
from ..utils.files import write_tensors
from ..utils.tensor_file import TensorFile
from .bank_file import NORM_TOLERANCE

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


def part_metadata(key: str) -> dict[str, str]:
    """What the file of a part says about itself."""
    return {"fingerprint": key}


def write_part(path: Path, tensors: Tensors, key: str) -> None:
    """Writes features with the key of what they were made from, atomically; raises UserError if it cannot."""
    write_tensors(path, tensors, part_metadata(key))


def read_part(path: Path) -> Tensors:
    """The tensors of a part; raises UserError if they cannot be read."""
    file = TensorFile(path, WHAT)
    return {name: file.read(name) for name in file.tensors}


def is_whole(path: Path, key: str) -> bool:
    """Whether a file holds undamaged features that were made from what `key` stands for. If it does not, that is said.

    The features are read in blocks. Parts of a file that never reached the disk read as zeros, and their rows are not
    of unit norm.
    """
    if not path.exists():
        return False
    try:
        file = TensorFile(path, WHAT)
        blocks = (block for name in file.tensors for block in file.row_blocks(name))
        undamaged = all((block.norm(dim=-1) - 1).abs().le(NORM_TOLERANCE).all() for block in blocks)
    except UserError:
        reason = "it is damaged"
    else:
        if file.metadata.get("fingerprint") == key and undamaged:
            return True
        reason = "it was made from something else" if undamaged else "its features are damaged"
    logger.warning("%s cannot be used, %s: encoding anew", path, reason)
    return False
