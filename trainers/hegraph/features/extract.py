"""A data set and a backbone -> a feature bank. What has been encoded once is kept on disk (`kept.py`).

Images are encoded in chunks that go to disk, so that a killed run goes on. The processes that `torchrun` started take
turns at the chunks.

Shapes: V views, N training images, M test images, K classes, d feature width.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm import tqdm

from ..backbones.identity import describe_transform
from ..datasets import Dataset, Item
from ..utils import processes
from ..utils.errors import UserError
from ..utils.files import hash_rows
from .bank import FeatureBank
from .images import ImageViews
from .kept import CODE_VERSION, chunk_folder, is_whole, kept_part, read_part, write_part
from .options import EncodingOptions
from .text import encode_prompts

if TYPE_CHECKING:
    from ..backbones.clip import Backbone, Transform

logger = logging.getLogger(__name__)

CHUNK_BATCHES = 16
FEATURES = "features"  # the name of the tensor in a part of images


def training_augmentation(backbone: Backbone, options: EncodingOptions) -> Transform:
    """The random transform of training images."""
    return backbone.training_transform(options.transforms, options.crop_scale, options.interpolation)


def encode_task(dataset: Dataset, backbone: Backbone, options: EncodingOptions, seed: int, folder: Path) -> FeatureBank:
    """The bank of the images that the few-shot protocol selected, as far as they are not kept encoded now.

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
    fields: dict[str, Any] = {}
    for name, images in views.items():
        if images.items:
            features = encode_images(backbone, images, options, folder, name)
            fields[f"{name}_features"] = features if name == "train" else features[0]
            fields[f"{name}_labels"] = labels_of(images.items)
    text = encode_prompts(backbone, dataset.name, dataset.classnames, options, folder)
    return FeatureBank(
        **fields,
        text_positive=text["positive"],
        text_negative=text["negative"],
        classnames=list(dataset.classnames),
        dataset=dataset.name,
        backbone=backbone.name,
        logit_scale=backbone.logit_scale,
        text_norms=text["norms"],
    )


def encode_test(dataset: Dataset, backbone: Backbone, options: EncodingOptions, folder: Path) -> tuple[Tensor, Tensor]:
    """Features `[M, d]` and labels `[M]` of the test images of a data set; otherwise as `encode_task`."""
    images = ImageViews(dataset, dataset.test, backbone.preprocess)
    return encode_images(backbone, images, options, folder, "test")[0], labels_of(dataset.test)


def encode_images(backbone: Backbone, images: ImageViews, options: EncodingOptions, folder: Path, name: str) -> Tensor:
    """Features of all views, shape `[V, N, d]`, encoded or read from disk.

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
    return kept_part(folder, name, key, lambda path: _encode(backbone, images, options, path, key, name))[FEATURES]


def _encode(backbone: Backbone, images: ImageViews, options: EncodingOptions, path: Path, key: str, name: str) -> None:
    """Encodes the chunks that no earlier run has, with all processes of `torchrun`, and joins them at `path`."""
    chunks = cut(len(images), options.batch_size)
    missing = processes.of_first(lambda: [chunk for chunk in chunks if not is_whole(_file(path, chunk), key)])
    done = len(images) - sum(map(len, missing))
    mine = missing[processes.rank() :: processes.world_size()]
    if done:
        said = "%s: %d of %d %s images were encoded before; going on"
        logger.info(said, chunk_folder(path), done, len(images), name)

    started = time.monotonic()
    batches = images.batches(chain.from_iterable(mine), options.batch_size, options.num_workers)
    bar = tqdm(total=len(images), initial=done, desc=f"encoding {name} images", unit="img", disable=None)
    with bar, _unless_finished(path, key):
        for chunk in mine:
            count = len(range(0, len(chunk), options.batch_size))
            features = torch.cat([backbone.encode_images(next(batches)) for _ in range(count)])
            if features.isnan().any():
                raise UserError(f"{backbone.name} gives NaN features for {name} images of {images.dataset.name}")
            write_part(_file(path, chunk), {FEATURES: features}, key)
            bar.update(len(features))
    count, seconds = sum(map(len, mine)), time.monotonic() - started
    logger.info("encoded %d %s images in %.1f s, %.0f images/s", count, name, seconds, count / max(seconds, 1e-9))
    processes.wait()
    if processes.rank() == 0:
        with _unless_finished(path, key):
            join(path, key, chunks, images.views)


def cut(num_images: int, batch_size: int) -> list[range]:
    """The positions of images, views counted, in chunks of `CHUNK_BATCHES` batches.

    A killed run loses at most one chunk of each process. A chunk holds the same batches whoever encodes it, so the
    features are the same, bit for bit, with the same number of threads.
    """
    size = CHUNK_BATCHES * batch_size
    return [range(start, min(start + size, num_images)) for start in range(0, num_images, size)]


def _file(path: Path, chunk: range) -> Path:
    """Where a chunk of the part at `path` is kept. Its name tells the positions: batch sizes cut differently."""
    return chunk_folder(path) / f"{chunk.start}-{chunk.stop}.safetensors"


@contextmanager
def _unless_finished(path: Path, key: str) -> Iterator[None]:
    """Forgives an error if another run, which knows nothing of this one, has made the part and removed its chunks."""
    try:
        yield
    except UserError:
        if not is_whole(path, key):
            raise


def join(path: Path, key: str, chunks: Sequence[range], views: int) -> None:
    """Writes a part from its chunks; positions go through a view first."""
    features = torch.cat([read_part(_file(path, chunk))[FEATURES] for chunk in chunks])
    write_part(path, {FEATURES: features.unflatten(0, (views, -1))}, key)


def labels_of(items: Sequence[Item]) -> Tensor:
    """The labels of some images, shape `[N]`."""
    return torch.tensor([item.label for item in items], dtype=torch.long)
