"""Encodes images in chunks, so that memory does not grow with their number and a killed run loses at most one chunk.

A chunk is a file of the features of `CHUNK_BATCHES` batches. It is kept until its part of the bank is whole. Whoever
drives the encoding gives chunks to processes: those that `torchrun` started take turns at them. A chunk holds the same
batches whoever encodes it, so the features are the same, bit for bit, with the same number of threads.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from ..backbones.clip import Backbone
from ..utils import processes
from ..utils.errors import UserError
from ..utils.tensor_file import StreamedTensor, TensorFile
from .options import EncodingOptions
from .parts import FEATURES, WHAT, chunk_folder, is_whole, write_blocks, write_part
from .views import ImageViews

logger = logging.getLogger(__name__)

CHUNK_BATCHES = 16


@dataclass(frozen=True)
class Chunks:
    """The images of a part, cut into chunks, and the files that the chunks are kept in.

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

    def file(self, number: int) -> Path:
        """Where a chunk is kept."""
        return chunk_folder(self.part) / f"{number:05d}.safetensors"

    def missing(self) -> list[int]:
        """The chunks that have to be encoded: those that are not kept, or cannot be used."""
        return [number for number in range(len(self)) if not self._is_kept(number)]

    def keep(self, number: int, features: Tensor) -> None:
        """Writes a chunk, unless another run has finished the whole part meanwhile and removed the chunks.

        Args:
            number: Of the chunk.
            features: Of its images, shape `[count, d]`.

        Raises:
            UserError: If it cannot be written.
        """
        try:
            write_part(self.file(number), {FEATURES: features}, self.key)
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
            first = TensorFile(self.file(0), WHAT).tensors[FEATURES]
            shape = (views, self.num_images // views, first.shape[-1])
            blocks = (
                block for number in range(len(self)) for block in TensorFile(self.file(number), WHAT).blocks(FEATURES)
            )
            write_blocks(self.part, {FEATURES: StreamedTensor(first.dtype, shape, blocks)}, self.key)
        except UserError:
            # Another run, which knows nothing of this one, may have finished the same part and removed the chunks
            if not is_whole(self.part, self.key):
                raise

    @property
    def _size(self) -> int:
        return CHUNK_BATCHES * self.batch_size

    def _is_kept(self, number: int) -> bool:
        """Whether a chunk can be used; one that was made with another batch size has other images."""
        file = self.file(number)
        return is_whole(file, self.key) and TensorFile(file, WHAT).tensors[FEATURES].shape[0] == self.count([number])


def encode_in_chunks(
    backbone: Backbone, images: ImageViews, options: EncodingOptions, path: Path, key: str, name: str
) -> None:
    """Encodes the images that no earlier run has, with all processes of `torchrun`, and writes the part.

    Args:
        backbone: The frozen CLIP.
        images: All images of a part.
        options: The batch size and the number of workers.
        path: The file that the part is written to, with features of shape `[V, N, d]`.
        key: The key of the part.
        name: Of the part, for messages.

    Raises:
        UserError: On an unreadable image, NaN features, or a folder that cannot be written.
    """
    chunks = Chunks(len(images), options.batch_size, path, key)
    missing = processes.of_first(chunks.missing)
    mine = missing[processes.rank() :: processes.world_size()]
    done = len(images) - chunks.count(missing)
    if done:
        said = "%s: %d of %d %s images were encoded before; going on"
        logger.info(said, chunk_folder(path), done, len(images), name)

    started = time.monotonic()
    with tqdm(total=len(images), initial=done, desc=f"encoding {name} images", unit="img", disable=None) as progress:
        for number, features in zip(mine, encode_chunks(backbone, images, chunks, mine, options.num_workers)):
            if features.isnan().any():
                raise UserError(f"{backbone.name} gives NaN features for {name} images of {images.dataset.name}")
            chunks.keep(number, features)
            progress.update(len(features))
    count, seconds = chunks.count(mine), time.monotonic() - started
    logger.info("encoded %d %s images in %.1f s, %.0f images/s", count, name, seconds, count / max(seconds, 1e-9))
    processes.wait()
    if processes.rank() == 0:
        chunks.join(images.views)


def encode_chunks(
    backbone: Backbone, images: ImageViews, chunks: Chunks, numbers: Sequence[int], num_workers: int
) -> Iterator[Tensor]:
    """The features of one chunk after the other, each `[images of the chunk, d]`.

    Args:
        backbone: The frozen CLIP.
        images: All images of the part.
        chunks: How they are cut.
        numbers: The chunks to encode.
        num_workers: Processes that read images, across the borders of chunks; 0 reads them in this one.

    Raises:
        UserError: On an unreadable image.
    """
    loader: DataLoader = DataLoader(
        images,
        batch_sampler=(list(batch) for number in numbers for batch in chunks.batches(number)),
        num_workers=num_workers,
    )
    batches = _without_worker_trace(loader)
    for number in numbers:
        yield torch.cat([backbone.encode_images(next(batches)[1]) for _ in chunks.batches(number)])


def _without_worker_trace(loader: DataLoader) -> Iterator:
    """The batches of a loader. If a worker process fails, its error loses the traceback that torch adds to the text."""
    try:
        yield from loader
    except UserError as error:
        raise UserError(str(error).strip().splitlines()[-1].partition("UserError: ")[2] or str(error)) from error
