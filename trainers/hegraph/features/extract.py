"""A data set and a backbone -> a feature bank: its images and the sentences about its classes are encoded.

What has been encoded once is kept on disk, in a file for each part of a bank (train, val, test, text). A file is named
after its key, a hash over all that shaped the features: backbone, weights, preprocessing, images, augmentation,
sentences and code version. So test features are shared by all shot counts and seeds, and a stale file is never read.

Images are encoded in chunks that go to disk, so that a killed run goes on. The processes that `torchrun` started take
turns at the chunks.

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

from ..backbones.identity import describe_transform
from ..datasets import Dataset, Item
from ..prompts.sentences import PromptGroup, negative_prompts, positive_prompts, resolve_source
from ..utils import processes
from ..utils.errors import UserError
from ..utils.files import hash_content, hash_json, hash_rows, write_tensors
from ..utils.reading import read_tensors
from .bank import FeatureBank, has_unit_norm
from .images import ImageViews
from .options import EncodingOptions

if TYPE_CHECKING:
    from ..backbones.clip import Backbone, Transform

logger = logging.getLogger(__name__)

CODE_VERSION = 1  # part of every key: raise it when the same input would give other features
CHUNK_BATCHES = 16
FEATURES = "features"  # the name of the tensor in a part of images
NORMS = "norms"  # the name of the tensor in a part of text that holds no features
WHAT = "encoded features"
CHUNKS = ".chunks"  # ending of the folder of the chunks of a part, until its file is written

Tensors = dict[str, Tensor]


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
    text = encode_prompts(backbone, dataset.name, dataset.classnames, options, folder)
    fields: dict[str, Any] = {"train_features": text["positive"][None, :0], "train_labels": labels_of([])}
    for name, images in views.items():
        if images.items:
            features = encode_images(backbone, images, options, folder, name)
            fields[f"{name}_features"] = features if name == "train" else features[0]
            fields[f"{name}_labels"] = labels_of(images.items)
    return FeatureBank(
        **fields,
        text_positive=text["positive"],
        text_negative=text["negative"],
        classnames=list(dataset.classnames),
        dataset=dataset.name,
        backbone=backbone.name,
        logit_scale=backbone.logit_scale,
        text_norms=text[NORMS],
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
        UserError: On an unreadable image, NaN or zero features, or a folder that cannot be written.
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
    return load_or_encode(folder, name, key, lambda path: _encode(backbone, images, options, path, key, name))[FEATURES]


def _encode(backbone: Backbone, images: ImageViews, options: EncodingOptions, path: Path, key: str, name: str) -> None:
    """Encodes the chunks that no earlier run has, with all processes of `torchrun`, and joins them at `path`."""
    chunks = cut(len(images), options.batch_size)
    missing = processes.of_first(lambda: [chunk for chunk in chunks if not is_valid(_file(path, chunk), key)])
    done = len(images) - sum(map(len, missing))
    mine = missing[processes.rank() :: processes.world_size()]
    if done:
        logger.info("%s: %d of %d %s images were encoded before; going on", path.parent, done, len(images), name)

    batches = images.batches(chain.from_iterable(mine), options.batch_size, options.num_workers)
    bar = tqdm(total=len(images), initial=done, desc=f"encoding {name} images", unit="img", disable=None)
    with bar, _unless_finished(path, key):
        for chunk in mine:
            features = torch.cat([backbone.encode_images(batch) for batch in islice(batches, CHUNK_BATCHES)])
            if not is_usable({FEATURES: features}):
                raise UserError(
                    f"{backbone.name} gives NaN or zero features for {name} images of {images.dataset.name}"
                )
            write_features(_file(path, chunk), {FEATURES: features}, key)
            bar.update(len(features))
    logger.info("encoded %d %s images", sum(map(len, mine)), name)
    processes.wait()
    if processes.rank() == 0:
        with _unless_finished(path, key):
            features = torch.cat([read_tensors(_file(path, chunk), WHAT)[0][FEATURES] for chunk in chunks])
            write_features(path, {FEATURES: features.unflatten(0, (images.views, -1))}, key)


def cut(num_images: int, batch_size: int) -> list[range]:
    """The positions of images, views counted and going through a view first, in chunks of `CHUNK_BATCHES` batches.

    A killed run loses at most one chunk of each process. A chunk holds the same batches whoever encodes it, so the
    features are the same, bit for bit, with the same number of threads.
    """
    size = CHUNK_BATCHES * batch_size
    return [range(start, min(start + size, num_images)) for start in range(0, num_images, size)]


def _file(path: Path, chunk: range) -> Path:
    """Where a chunk of the part at `path` is kept. Its name tells the positions: batch sizes cut differently."""
    return path.with_suffix(CHUNKS) / f"{chunk.start}-{chunk.stop}.safetensors"


@contextmanager
def _unless_finished(path: Path, key: str) -> Iterator[None]:
    """Forgives an error if another run, which knows nothing of this one, has made the part and removed its chunks."""
    try:
        yield
    except UserError:
        if not is_valid(path, key):
            raise


def labels_of(items: Sequence[Item]) -> Tensor:
    """The labels of some images, shape `[N]`."""
    return torch.tensor([item.label for item in items], dtype=torch.long)


# Sentences


def class_prompts(
    dataset: str, classnames: Sequence[str], options: EncodingOptions
) -> tuple[list[PromptGroup], PromptGroup]:
    """The positive sentences of K classes, in groups that are averaged first, and the negative ones; UserError on a
    class without a sentence.
    """
    source = resolve_source(dataset, options.source, options.descriptions)
    positive = positive_prompts(dataset, classnames, source, options.templates, options.descriptions)
    return positive, negative_prompts(dataset, classnames, options.negative_templates)


def encode_prompts(
    backbone: Backbone, dataset: str, classnames: Sequence[str], options: EncodingOptions, folder: Path
) -> dict[str, Tensor]:
    """The text nodes of K classes, encoded or read from `folder`; `dataset` is `DATASET.NAME`.

    Returns:
        "positive" and "negative", each of unit norm and shape `[K, d]`; and "norms", shape `[K]`: of the mean of the
        text tower's output for the positive sentences of a class or, where they are in groups, of the groups' means.

    Raises:
        UserError: On a class without a sentence, NaN or zero features, or a folder that cannot be written.
    """
    positive, negative = class_prompts(dataset, classnames, options)
    key = hash_json({"positive": positive, "negative": negative, "code": CODE_VERSION} | backbone.fingerprint)

    def encode(path: Path) -> None:
        if processes.rank():
            return  # the first process encodes the sentences alone: they are few
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
    """The re-normalised mean of each class's unit features, and the mean of features as they are, each `[K, d]`."""
    features = backbone.encode_text([sentence for sentences in group for sentence in sentences], normalize=False)
    counts = [len(sentences) for sentences in group]

    def means(rows: Tensor) -> Tensor:
        return torch.stack([of_class.mean(dim=0) for of_class in rows.split(counts)])

    return F.normalize(means(F.normalize(features, dim=-1)), dim=-1), means(features)


# Features that are kept


def load_or_encode(folder: Path, name: str, key: str, make: Callable[[Path], None]) -> Tensors:
    """The tensors of a part, which is made if it is not there. A damaged file is replaced, and that is said.

    All processes of `torchrun` call this together. Two runs that do not know of each other may make the same part: each
    renames a whole file into place. `make` writes the file, in the first process, with the help of the others.
    """
    path = folder / f"{name}-{key[:16]}.safetensors"
    if not processes.of_first(lambda: is_valid(path, key)):
        make(path)
        if processes.rank() == 0:
            shutil.rmtree(path.with_suffix(CHUNKS), ignore_errors=True)
        processes.wait()
    return read_tensors(path, WHAT)[0]


def write_features(path: Path, tensors: Tensors, key: str) -> None:
    """Writes features with the key of what they were made from and a checksum of them, atomically."""
    write_tensors(path, tensors, {"fingerprint": key, "checksum": _checksum(tensors)})


def is_usable(tensors: Tensors) -> bool:
    """Whether the tensors of a part are float32, with rows of unit norm and, under "norms", positive finite numbers."""
    if any(tensor.dtype != torch.float32 for tensor in tensors.values()):
        return False
    rows = [has_unit_norm(tensor.norm(dim=-1)).all() for name, tensor in tensors.items() if name != NORMS]
    norms = tensors.get(NORMS, torch.ones(1))
    return all(rows) and bool(((norms > 0) & norms.isfinite()).all())


def is_valid(path: Path, key: str) -> bool:
    """Whether a file holds undamaged features, made from what `key` stands for. If it does not, that is said."""
    if not path.exists():
        return False
    with suppress(UserError):
        tensors, metadata = read_tensors(path, WHAT)
        saved = metadata.get("fingerprint"), metadata.get("checksum")
        if saved == (key, _checksum(tensors)) and is_usable(tensors):
            return True
    logger.warning("%s cannot be used, since it is damaged or of another version: encoding anew", path)
    return False


def _checksum(tensors: Tensors) -> str:
    return hash_content(dict(sorted(tensors.items())))
