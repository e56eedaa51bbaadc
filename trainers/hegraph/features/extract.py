"""Encode the images and prompts of a data set with a backbone into a feature bank.

Encoded features are cached on disk, in one file for each part of a bank (train, val, test, text). The file name has a
hash of everything that determines the features: backbone, weights, preprocessing, images, augmentation, prompts and
code version. So all runs share test features, and outdated files are never read.

Images are encoded in chunks, which are written to disk, so that the next run continues after a kill. The processes of
`torchrun` share the chunks.

Shapes: V views, N training images, M test images, K classes, d feature width.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from ..datasets.base import Dataset
from ..datasets.splits import Item
from ..utils import processes
from ..utils.errors import UserError
from ..utils.files import hash_content, hash_json, write_tensors
from ..utils.reading import read_tensors
from .backbones.identity import describe_transform
from .bank import FeatureBank, has_unit_norm
from .images import ImageViews
from .options import EncodingOptions
from .prompts.sentences import PromptGroup, negative_prompts, positive_prompts, resolve_source

if TYPE_CHECKING:
    from .backbones.clip import Backbone, Transform

logger = logging.getLogger(__name__)

CODE_VERSION = 1  # part of each key; increase it if features change for the same input
CHUNK_BATCHES = 16
FEATURES = "features"  # name of the tensor in a part of images
NORMS = "norms"  # name of the tensor with norms in the part "text"
FORM = "encoded features"
CHUNKS = ".chunks"  # suffix of the temporary folder with the chunks of a part

Tensors = dict[str, Tensor]


def training_augmentation(backbone: Backbone, options: EncodingOptions) -> Transform:
    """Return the random transform of training images."""
    return backbone.training_transform(options.transforms, options.crop_scale, options.interpolation)


def encode_task(dataset: Dataset, backbone: Backbone, options: EncodingOptions, seed: int, folder: Path) -> FeatureBank:
    """Encode a few-shot task, or read its cached features.

    A val split that equals test is left out, so that nothing is selected on test images.

    Args:
        dataset: The few-shot task.
        backbone: Frozen CLIP model.
        options: Options of encoding.
        seed: Seed of the augmentation.
        folder: Folder of cached features.

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
    text = encode_prompts(backbone, dataset.name, dataset.classnames, options, folder)
    fields: dict[str, Any] = {f"text_{name}": features for name, features in text.items()}
    fields |= {"train_features": text["positive"][None, :0], "train_labels": labels_of(dataset, [])}
    for name, images in views.items():
        if images.items:
            features = encode_images(backbone, images, options, folder, name)
            fields[f"{name}_features"] = features if name == "train" else features[0]
            fields[f"{name}_labels"] = labels_of(dataset, images.items)
    return FeatureBank(
        **fields,
        classnames=list(dataset.classnames),
        dataset=dataset.name,
        backbone=backbone.name,
        logit_scale=backbone.logit_scale,
    )


def encode_images(backbone: Backbone, images: ImageViews, options: EncodingOptions, folder: Path, name: str) -> Tensor:
    """Encode all views of images, or read their cached features; shape `[V, N, d]`.

    Args:
        backbone: Frozen CLIP model.
        images: The views.
        options: Batch size and number of threads, which do not change the key of the file.
        folder: Folder of cached features.
        name: Name of the images in log lines and of the file, such as "train" or "unlabelled".

    Raises:
        UserError: On an unreadable image, NaN or zero features, or a folder that cannot be written.
    """
    settings = {
        "images": [[*item, *(images.dataset.file_version(item.path) or ())] for item in images.items],
        "dataset": images.dataset.name,
        "transform": describe_transform(images.transform),
        "views": images.views,
        "seed": images.seed,
        "code": CODE_VERSION,
        **backbone.fingerprint,
    }
    key = hash_json(settings)
    return load_or_encode(folder, name, key, lambda path: _encode(backbone, images, options, path, key, name))[FEATURES]


def _encode(backbone: Backbone, images: ImageViews, options: EncodingOptions, path: Path, key: str, name: str) -> None:
    """Encode the missing chunks, with all processes of `torchrun`, and concatenate all chunks in `path`."""
    chunks = split_into_chunks(len(images), options.batch_size)
    missing = processes.broadcast_from_rank0(
        lambda: [chunk for chunk in chunks if not is_valid(_chunk_file(path, chunk), key)]
    )
    done = len(images) - sum(map(len, missing))
    mine = missing[processes.rank() :: processes.world_size()]
    if done:
        logger.info("%s: continuing after %d of %d %s images", path.parent, done, len(images), name)

    batches = images.batches(chain.from_iterable(mine), options.batch_size, options.num_workers)
    bar = tqdm(total=len(images), initial=done, desc=f"encoding {name} images", unit="img", disable=None)
    with bar, _ignore_if_complete(path, key):
        for chunk in mine:
            features = torch.cat([backbone.encode_images(batch) for batch in islice(batches, CHUNK_BATCHES)])
            if not is_usable({FEATURES: features}):
                raise UserError(
                    f"{backbone.name} gives NaN or zero features for {name} images of {images.dataset.name}"
                )
            write_features(_chunk_file(path, chunk), {FEATURES: features}, key)
            bar.update(len(features))
    logger.info("encoded %d %s images", sum(map(len, mine)), name)
    processes.wait()
    if processes.rank() == 0:
        with _ignore_if_complete(path, key):
            features = torch.cat([read_tensors(_chunk_file(path, chunk), FORM)[0][FEATURES] for chunk in chunks])
            write_features(path, {FEATURES: features.unflatten(0, (images.views, -1))}, key)


def split_into_chunks(num_images: int, batch_size: int) -> list[range]:
    """Split the positions of all views, one view after the other, into chunks of `CHUNK_BATCHES` batches.

    A killed run loses at most one chunk per process. Batches do not depend on the number of processes, so features are
    equal, bit for bit, for the same number of threads.
    """
    size = CHUNK_BATCHES * batch_size
    return [range(start, min(start + size, num_images)) for start in range(0, num_images, size)]


def _chunk_file(path: Path, chunk: range) -> Path:
    """Return the file of a chunk of the part at `path`, named by its positions, which depend on the batch size."""
    return path.with_suffix(CHUNKS) / f"{chunk.start}-{chunk.stop}.safetensors"


@contextmanager
def _ignore_if_complete(path: Path, key: str) -> Iterator[None]:
    """Suppress an error if a concurrent run has completed the part and removed its chunks."""
    try:
        yield
    except UserError:
        if not is_valid(path, key):
            raise


def labels_of(dataset: Dataset, items: Sequence[Item]) -> Tensor:
    """Return the labels of items of a data set: `[N]`, or booleans `[N, K]` with several labels per image."""
    if dataset.multilabel:
        indicators = torch.zeros(len(items), len(dataset.classnames), dtype=torch.bool)
        for row, item in zip(indicators, items):
            row[list(item.label)] = True
        return indicators
    return torch.tensor([item.label for item in items], dtype=torch.long)


# --- prompts


def class_prompts(
    dataset: str, classnames: Sequence[str], options: EncodingOptions
) -> tuple[list[PromptGroup], PromptGroup]:
    """Return the positive prompts of K classes, in groups that are averaged first, and the negative prompts.

    Raises:
        UserError: On a class without a prompt.
    """
    source = resolve_source(dataset, options.source, options.descriptions)
    positive = positive_prompts(dataset, classnames, source, options.templates, options.descriptions)
    return positive, negative_prompts(dataset, classnames, options.negative_templates)


def encode_prompts(
    backbone: Backbone, dataset: str, classnames: Sequence[str], options: EncodingOptions, folder: Path
) -> dict[str, Tensor]:
    """Encode the prompts of K classes, or read their cached features.

    Args:
        backbone: Frozen CLIP model.
        dataset: `DATASET.NAME`.
        classnames: The K class names.
        options: Options of encoding.
        folder: Folder of cached features.

    Returns:
        "positive" and "negative" text features, each of unit norm and shape `[K, d]`; and "norms", shape `[K]`, the
        norm of the mean text-encoder output for the positive prompts of a class, averaged by group first.

    Raises:
        UserError: On a class without a prompt, NaN or zero features, or a folder that cannot be written.
    """
    positive, negative = class_prompts(dataset, classnames, options)
    key = hash_json({"positive": positive, "negative": negative, "code": CODE_VERSION} | backbone.fingerprint)

    def encode(path: Path) -> None:
        if processes.rank():
            return  # the first process encodes all prompts, since they are few
        groups = [_encode_group(backbone, group) for group in positive]
        text = {
            "positive": F.normalize(torch.stack([unit for unit, _ in groups]).mean(dim=0), dim=-1),
            "negative": _encode_group(backbone, negative)[0],
            NORMS: torch.stack([mean for _, mean in groups]).mean(dim=0).norm(dim=-1),
        }
        if not is_usable(text):
            raise UserError(f"{backbone.name} gives NaN or zero features for the prompts of {dataset}")
        write_features(path, text, key)

    return load_or_encode(folder, "text", key, encode)


def _encode_group(backbone: Backbone, group: PromptGroup) -> tuple[Tensor, Tensor]:
    """Return the normalised mean of unit features and the mean of raw features by class, each `[K, d]`."""
    features = backbone.encode_text([prompt for prompts in group for prompt in prompts], normalize=False)
    counts = [len(prompts) for prompts in group]

    def means(rows: Tensor) -> Tensor:
        return torch.stack([of_class.mean(dim=0) for of_class in rows.split(counts)])

    return F.normalize(means(F.normalize(features, dim=-1)), dim=-1), means(features)


# --- cached features


def load_or_encode(folder: Path, name: str, key: str, encode: Callable[[Path], None]) -> Tensors:
    """Read a cached part, after encoding it if the file is missing or damaged.

    All processes of `torchrun` call this function together. Concurrent runs may encode the same part, since each one
    renames a complete file into place.

    Args:
        folder: Folder of cached features.
        name: "train", "val", "test" or "text".
        key: Hash of everything that determines the features.
        encode: Function that writes the file in the first process; all processes call it.
    """
    path = folder / f"{name}-{key[:16]}.safetensors"
    if not processes.broadcast_from_rank0(lambda: is_valid(path, key)):
        encode(path)
        if processes.rank() == 0:
            shutil.rmtree(path.with_suffix(CHUNKS), ignore_errors=True)
        processes.wait()
    return read_tensors(path, FORM)[0]


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
