"""Encoded features on disk: one file for each part of a bank (train, val, test, text), and chunks of unfinished ones.

A file is named after the key of its part, a hash over all that shaped it: backbone, weights, preprocessing, images,
augmentation, sentences and code version. So the test features of a data set are shared by all shot counts and seeds,
and a stale file is never read.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ..utils import processes
from ..utils.errors import UserError
from .tensor_file import CHECKSUM, Streamed, TensorFile, write_streamed

logger = logging.getLogger(__name__)

CODE_VERSION = 1  # part of every key: raise it when the same input would give other features
FEATURES = "features"  # the name of the tensor in a part of images
WHAT = "the features"  # what such a file is called in messages
CHUNK_BATCHES = 16
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


def write_part(path: Path, tensors: Tensors, key: str) -> None:
    """Writes features with the key of what they were made from and a checksum of them, atomically."""
    streamed = {name: Streamed.of(tensor) for name, tensor in tensors.items()}
    write_streamed(path, streamed, {"fingerprint": key}, checked=True)


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
        if file.metadata.get("fingerprint") != key:
            reason = "it was made from something else"
        elif CHECKSUM not in file.metadata:
            reason = "it is of an earlier version"
        elif file.metadata[CHECKSUM] == file.checksum():
            return True
        else:
            reason = "its features are damaged"
    except UserError:
        reason = "it is damaged"
    logger.warning("%s cannot be used, %s: encoding anew", path, reason)
    return False


@dataclass(frozen=True)
class Chunks:
    """The images of a part, cut into chunks of `CHUNK_BATCHES` batches, and the files that the chunks are kept in.

    A killed run loses at most one chunk of each process. A chunk holds the same batches whoever encodes it, so the
    features are the same, bit for bit, with the same number of threads.

    Attributes:
        num_images: How many images the part has, each view counted.
        batch_size: Images that the backbone encodes at once.
        part: The file that the part will be written to; the chunks are kept beside it.
        key: The key of the part, written into its chunks.
    """

    num_images: int
    batch_size: int
    part: Path
    key: str

    def __len__(self) -> int:
        return -(-self.num_images // self._size)

    def batches(self, number: int) -> Iterator[range]:
        """The positions of the images of a chunk, in batches."""
        end = min((number + 1) * self._size, self.num_images)
        for start in range(number * self._size, end, self.batch_size):
            yield range(start, min(start + self.batch_size, end))

    def count(self, numbers: Iterable[int]) -> int:
        """How many images some chunks have."""
        return sum(min(self._size, self.num_images - number * self._size) for number in numbers)

    def missing(self) -> list[int]:
        """The chunks that have to be encoded: those that are not kept, cannot be used, or have another batch size."""
        return [number for number in range(len(self)) if not self._is_kept(number)]

    def keep(self, number: int, features: Tensor) -> None:
        """Writes the features of a chunk, unless another run has finished the whole part and removed the chunks.

        Raises:
            UserError: If it cannot be written.
        """
        try:
            write_part(self._file(number), {FEATURES: features}, self.key)
        except UserError:
            if not self.part.exists():
                raise

    def join(self, views: int) -> None:
        """Writes the part from its chunks, with one block of them in memory at a time.

        Args:
            views: How many views the part has of each image; positions go through all images of a view first.

        Raises:
            UserError: If a chunk cannot be read, or the part cannot be written.
        """
        try:
            first = TensorFile(self._file(0), WHAT).tensors[FEATURES]
            shape = (views, self.num_images // views, first.shape[-1])
            files = (TensorFile(self._file(number), WHAT) for number in range(len(self)))
            features = Streamed(first.dtype, shape, (block for file in files for block in file.blocks(FEATURES)))
            write_streamed(self.part, {FEATURES: features}, {"fingerprint": self.key}, checked=True)
        except UserError:
            # Another run, which knows nothing of this one, may have finished the same part and removed the chunks
            if not is_whole(self.part, self.key):
                raise

    @property
    def _size(self) -> int:
        return CHUNK_BATCHES * self.batch_size

    def _file(self, number: int) -> Path:
        return chunk_folder(self.part) / f"{number:05d}.safetensors"

    def _is_kept(self, number: int) -> bool:
        file = self._file(number)
        return is_whole(file, self.key) and TensorFile(file, WHAT).tensors[FEATURES].shape[0] == self.count([number])
