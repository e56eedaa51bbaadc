"""A data set and a backbone -> a feature bank. What has been encoded once is kept on disk (`tensor_file.py`).

Images are encoded in chunks that go to disk, so memory does not grow with their number. The processes that `torchrun`
started take turns at the chunks.

Shapes: V views, N training images, M test images, K classes, d feature width, H x W the backbone's input.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from ..backbones.identity import describe_transform
from ..datasets import Dataset, Item
from ..utils import processes
from ..utils.errors import UserError
from ..utils.files import hash_rows
from .bank import Encoder, FeatureBank, bank_metadata
from .images import ImageViews
from .options import EncodingOptions
from .tensor_file import (
    CODE_VERSION,
    FEATURES,
    WHAT,
    Streamed,
    TensorFile,
    chunk_folder,
    is_whole,
    kept_part,
    read_part,
    write_part,
    write_streamed,
)
from .text import encode_prompts

if TYPE_CHECKING:
    from ..backbones.clip import Backbone, Transform

logger = logging.getLogger(__name__)

CHUNK_BATCHES = 16

Chunk = Sequence[range]  # batches, each as the positions of its images


def training_augmentation(backbone: Backbone, options: EncodingOptions) -> Transform:
    """The random transform of training images."""
    return backbone.training_transform(options.transforms, options.crop_scale, options.interpolation)


class Parts(NamedTuple):
    """A task that has been encoded, as far as it need not be in memory.

    Attributes:
        images: "train", and "val" and "test" if there are such images -> the file of their features, and the images.
        text: The text nodes and their norms, as `encode_prompts` gives them.
    """

    images: dict[str, tuple[Path, Sequence[Item]]]
    text: dict[str, Tensor]


def encode_parts(dataset: Dataset, backbone: Backbone, options: EncodingOptions, seed: int, folder: Path) -> Parts:
    """Encodes the images that the few-shot protocol selected, as far as that was not done before.

    Where the validation images are the test images, they are not made part of the bank, so that nothing can be chosen
    on them. `seed` is that of the augmentation, and `folder` keeps the features.

    Raises:
        UserError: On an unreadable image, a class without a prompt, or a folder that cannot be written.
    """
    val = [] if dataset.val_is_test else dataset.val
    augmentation = training_augmentation(backbone, options)
    views = {
        "train": ImageViews(dataset, dataset.train, augmentation, views=options.views, seed=seed),
        "val": ImageViews(dataset, val, backbone.preprocess),
        "test": ImageViews(dataset, dataset.test, backbone.preprocess),
    }
    files = {
        name: (encode_part(backbone, images, options, folder, name), images.items)
        for name, images in views.items()
        if images.items
    }
    return Parts(files, encode_prompts(backbone, dataset.name, dataset.classnames, options, folder))


def encode_task(dataset: Dataset, backbone: Backbone, options: EncodingOptions, seed: int, folder: Path) -> FeatureBank:
    """The bank of a few-shot task; arguments and errors as of `encode_parts`."""
    parts = encode_parts(dataset, backbone, options, seed, folder)
    fields: dict[str, Any] = {}
    for name, (file, items) in parts.images.items():
        features = read_part(file)[FEATURES]
        fields |= {f"{name}_features": features if name == "train" else features[0], f"{name}_labels": labels_of(items)}
    return FeatureBank(
        **fields,
        text_positive=parts.text["positive"],
        text_negative=parts.text["negative"],
        classnames=list(dataset.classnames),
        dataset=dataset.name,
        backbone=backbone.name,
        logit_scale=backbone.logit_scale,
        text_norms=parts.text["norms"],
    )


def encode_test(dataset: Dataset, backbone: Backbone, options: EncodingOptions, folder: Path) -> tuple[Tensor, Tensor]:
    """Features `[M, d]` and labels `[M]` of the test images of a data set; otherwise as `encode_parts`."""
    images = ImageViews(dataset, dataset.test, backbone.preprocess)
    return encode_images(backbone, images, options, folder, "test")[0], labels_of(dataset.test)


def encode_images(backbone: Backbone, images: ImageViews, options: EncodingOptions, folder: Path, name: str) -> Tensor:
    """Features of all views, shape `[V, N, d]`, encoded or read from disk; arguments and errors as of `encode_part`."""
    return read_part(encode_part(backbone, images, options, folder, name))[FEATURES]


def encode_part(backbone: Backbone, images: ImageViews, options: EncodingOptions, folder: Path, name: str) -> Path:
    """The file of the features of all views, which are encoded where there is none.

    Of the options, the batch size and the number of threads are read; neither changes the key of the file. `name` is
    "train", "val" or "test".

    Raises:
        UserError: On an unreadable image, NaN features, or a folder that cannot be written.
    """
    files = ([*item, *(images.dataset.file_version(item.path) or ())] for item in images.items)
    beside: dict[str, Any] = {
        "dataset": images.dataset.name,
        "transform": describe_transform(images.transform),
        "views": images.views,
        "seed": images.seed,
        "code": CODE_VERSION,
        **backbone.fingerprint,
    }
    key = hash_rows(files, beside, "images")
    return kept_part(folder, name, key, lambda path: _encode(backbone, images, options, path, key, name))


def _encode(backbone: Backbone, images: ImageViews, options: EncodingOptions, path: Path, key: str, name: str) -> None:
    """Encodes the chunks that no earlier run has, with all processes of `torchrun`, and joins them at `path`."""
    chunks = cut(len(images), options.batch_size)
    missing = processes.of_first(lambda: [n for n, chunk in enumerate(chunks) if not is_whole(_file(path, chunk), key)])
    done = len(images) - sum(_size(chunks[number]) for number in missing)
    mine = [chunks[number] for number in missing[processes.rank() :: processes.world_size()]]
    if done:
        said = "%s: %d of %d %s images were encoded before; going on"
        logger.info(said, chunk_folder(path), done, len(images), name)

    started = time.monotonic()
    bar = tqdm(total=len(images), initial=done, desc=f"encoding {name} images", unit="img", disable=None)
    with bar, _unless_finished(path, key):
        positions = (position for chunk in mine for batch in chunk for position in batch)
        batches = images.batches(positions, options.batch_size, options.num_workers)
        for chunk in mine:
            features = torch.cat([backbone.encode_images(next(batches)) for _ in chunk])
            if features.isnan().any():
                raise UserError(f"{backbone.name} gives NaN features for {name} images of {images.dataset.name}")
            write_part(_file(path, chunk), {FEATURES: features}, key)
            bar.update(len(features))
    count, seconds = sum(map(_size, mine)), time.monotonic() - started
    logger.info("encoded %d %s images in %.1f s, %.0f images/s", count, name, seconds, count / max(seconds, 1e-9))
    processes.wait()
    if processes.rank() == 0:
        with _unless_finished(path, key):
            _join(path, key, chunks, images.views)


def cut(num_images: int, batch_size: int) -> list[Chunk]:
    """The positions of images, views counted, in batches, of which `CHUNK_BATCHES` are a chunk.

    A killed run loses at most one chunk of each process. A chunk holds the same batches whoever encodes it, so the
    features are the same, bit for bit, with the same number of threads.
    """
    starts = range(0, num_images, batch_size)
    batches = [range(start, min(start + batch_size, num_images)) for start in starts]
    return [batches[first : first + CHUNK_BATCHES] for first in range(0, len(batches), CHUNK_BATCHES)]


def _size(chunk: Chunk) -> int:
    return sum(map(len, chunk))


def _file(path: Path, chunk: Chunk) -> Path:
    """Where a chunk of the part at `path` is kept. Its name tells the positions: batch sizes cut differently."""
    return chunk_folder(path) / f"{chunk[0].start}-{chunk[-1].stop}.safetensors"


@contextmanager
def _unless_finished(path: Path, key: str) -> Iterator[None]:
    """Forgives an error if another run, which knows nothing of this one, has made the part and removed its chunks."""
    try:
        yield
    except UserError:
        if not is_whole(path, key):
            raise


def _join(path: Path, key: str, chunks: Sequence[Chunk], views: int) -> None:
    """Writes a part from its chunks, with one block of them in memory at a time."""
    files = (TensorFile(_file(path, chunk), WHAT) for chunk in chunks)
    first = TensorFile(_file(path, chunks[0]), WHAT).tensors[FEATURES]
    shape = (views, sum(map(_size, chunks)) // views, first.shape[-1])  # positions go through a view first
    features = Streamed(first.dtype, shape, (block for file in files for block in file.blocks(FEATURES)))
    write_streamed(path, {FEATURES: features}, {"fingerprint": key}, checked=True)


def write_bank(path: Path, parts: Parts, dataset: Dataset, backbone: Backbone, encoder: Encoder | None = None) -> None:
    """Writes the feature bank of what a backbone encoded of a data set, with one block of it in memory at a time.

    Raises:
        UserError: If a part cannot be read, or the bank cannot be written.
    """
    tensors = {f"text_{name}": Streamed.of(nodes) for name, nodes in parts.text.items()}
    for split, (file, items) in parts.images.items():
        stored = TensorFile(file, WHAT)
        dtype, shape, _, _ = stored.tensors[FEATURES]
        shape = shape if split == "train" else shape[1:]  # only training images have views
        tensors[f"{split}_features"] = Streamed(dtype, shape, stored.blocks(FEATURES))
        tensors[f"{split}_labels"] = Streamed.of(labels_of(items))
    metadata = bank_metadata(dataset.name, backbone.name, dataset.classnames, backbone.logit_scale, encoder)
    write_streamed(path, tensors, metadata)


def labels_of(items: Sequence[Item]) -> Tensor:
    """The labels of some images, shape `[N]`."""
    return torch.tensor([item.label for item in items], dtype=torch.long)
