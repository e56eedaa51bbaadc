"""Encodes images in chunks, so that a killed run goes on where it was and several processes share the work.

A chunk is kept until its part of the bank is whole. Processes that `torchrun` started take turns at the chunks. A chunk
holds the same batches whoever encodes it, so the features are the same, bit for bit, with the same number of threads.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from ..backbones.clip import Backbone
from ..utils import processes
from ..utils.errors import UserError
from ..utils.files import read_tensors
from .options import EncodingOptions
from .parts import Tensors, chunk_folder, read_part, write_part
from .views import ImageViews

logger = logging.getLogger(__name__)

CHUNK_BATCHES = 16

Chunk = Sequence[Tensor]  # the positions of its images, one tensor per batch


def encode_in_chunks(
    backbone: Backbone, images: ImageViews, options: EncodingOptions, path: Path, key: str, name: str
) -> Tensor | None:
    """Encodes the images that no earlier run has, with all processes of `torchrun`.

    Args:
        backbone: The frozen CLIP.
        images: All images of a part.
        options: The batch size and the number of workers.
        path: The file that the part will be written to; its chunks are kept beside it.
        key: The key of the part, written into its chunks.
        name: Of the part, for messages.

    Returns:
        Features of all images, shape `[len(images), d]`, in the first process; None in the others.

    Raises:
        UserError: On an unreadable image, NaN features, or a folder that cannot be written.
    """
    chunks = _chunks(len(images), options.batch_size)
    files = [chunk_folder(path) / f"{number:05d}.safetensors" for number in range(len(chunks))]
    kept = {number: part for number, file in enumerate(files) if (part := read_part(file, key)) is not None}
    processes.wait()  # none writes a chunk before all have seen which were kept
    missing = [number for number in range(len(chunks)) if number not in kept]
    mine = missing[processes.rank() :: processes.world_size()]
    done = sum(_count(chunks[number]) for number in kept)
    if done:
        said = "%s: %d of %d %s images were encoded before; going on"
        logger.info(said, chunk_folder(path), done, len(images), name)

    started = time.monotonic()
    with tqdm(total=len(images), initial=done, desc=f"encoding {name} images", unit="img", disable=None) as progress:
        encoded = _encode(backbone, images, [chunks[number] for number in mine], options.num_workers, progress)
        for number, features in zip(mine, encoded):
            if features.isnan().any():
                raise UserError(f"{backbone.name} gives NaN features for {name} images of {images.dataset.name}")
            kept[number] = {"features": features}
            _keep(files[number], kept[number], key, path)
    count, seconds = sum(_count(chunks[number]) for number in mine), time.monotonic() - started
    logger.info("encoded %d %s images in %.1f s, %.0f images/s", count, name, seconds, count / max(seconds, 1e-9))
    processes.wait()
    return None if processes.rank() else _joined(files, kept)


def _keep(file: Path, features: Tensors, key: str, whole: Path) -> None:
    """Writes a chunk, unless another run has finished the whole part meanwhile and removed the folder of its chunks.

    Raises:
        UserError: If it cannot be written.
    """
    try:
        write_part(file, features, key)
    except UserError:
        if not whole.exists():
            raise


def _chunks(num_images: int, batch_size: int) -> list[Chunk]:
    """All positions in order, `CHUNK_BATCHES` batches in each chunk."""
    batches = torch.arange(num_images).split(batch_size)
    return [batches[i : i + CHUNK_BATCHES] for i in range(0, len(batches), CHUNK_BATCHES)]


def _encode(
    backbone: Backbone, images: ImageViews, chunks: Sequence[Chunk], num_workers: int, progress: tqdm
) -> Iterator[Tensor]:
    """The features of one chunk after the other, each `[images of the chunk, d]`."""
    loader: DataLoader = DataLoader(
        images,
        batch_sampler=[batch.tolist() for chunk in chunks for batch in chunk],
        num_workers=num_workers,
    )
    batches = _without_worker_trace(loader)
    for chunk in chunks:
        encoded = []
        for _ in chunk:
            encoded.append(backbone.encode_images(next(batches)[1]))
            progress.update(len(encoded[-1]))
        yield torch.cat(encoded)


def _joined(files: Sequence[Path], kept: dict[int, Tensors]) -> Tensor:
    """The features of all chunks in order.

    Only what another process encoded is read here: another run, which knows nothing of this one, may have finished the
    same part and removed the chunks by now.
    """
    parts = [kept.get(number) or read_tensors(file, "the features")[0] for number, file in enumerate(files)]
    return torch.cat([part["features"] for part in parts])


def _count(chunk: Chunk) -> int:
    return sum(map(len, chunk))


def _without_worker_trace(loader: DataLoader) -> Iterator:
    """The batches of a loader. If a worker process fails, its error loses the traceback that torch adds to the text."""
    try:
        yield from loader
    except UserError as error:
        raise UserError(str(error).strip().splitlines()[-1].partition("UserError: ")[2] or str(error)) from error
