"""Encode the images and prompts of a data set with a backbone into a feature bank.

Encoded features are cached on disk (see `cache.py`). The key of a file is a hash of everything that determines the
features: backbone, weights, preprocessing, images, augmentation, prompts and code version.

Images are encoded in steps, and what is encoded is written every few seconds, so that the next run continues after a
kill (see `chunks.py`). The processes of `torchrun` share the steps.

Shapes: V views, N training images, M test images, K classes, d feature width; R = V N rows, one for each view.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..datasets.base import Dataset
from ..datasets.decoding import FULL
from ..datasets.splits import Item
from ..utils import processes
from ..utils.errors import UserError
from ..utils.files import hash_json
from ..utils.progress import Progress
from .backbones.identity import describe_transform
from .bank import FeatureBank
from .cache import FEATURES, NORMS, Tensors, ignore_if_complete, is_usable, load_or_encode
from .chunks import Chunks, keeping, missing_steps
from .images import ImageViews
from .options import EncodingOptions
from .order import encoding_order, encoding_steps, pixels_of_steps
from .prompts.sentences import PromptGroup, negative_prompts, positive_prompts, resolve_source

if TYPE_CHECKING:
    from .backbones.base import Backbone
    from .backbones.transforms import Transform

logger = logging.getLogger(__name__)

CODE_VERSION = 1  # part of each key; increase it if features change for the same input


def training_augmentation(backbone: Backbone, options: EncodingOptions) -> Transform:
    """Return the random transform of training images."""
    return backbone.training_transform(options.transforms, options.crop_scale, options.interpolation)


def encode_task(
    dataset: Dataset, backbone: Backbone, options: EncodingOptions, seed: int, folder: Path | None = None
) -> FeatureBank:
    """Encode a few-shot task, or read its cached features.

    A val split that equals test is left out, so that nothing is selected on test images. Without prompts, the text
    nodes are 0.

    Args:
        dataset: The few-shot task.
        backbone: Frozen CLIP model.
        options: Options of encoding.
        seed: Seed of the augmentation.
        folder: Folder of cached features; None keeps the features in memory only.

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
    fields |= group_numbers(dataset, {name: images.items for name, images in views.items() if images.items})
    return FeatureBank(
        **fields,
        classnames=list(dataset.classnames),
        dataset=dataset.name,
        backbone=backbone.name,
        logit_scale=backbone.logit_scale,
        has_text=options.has_prompts,
    )


def encode_images(
    backbone: Backbone, images: ImageViews, options: EncodingOptions, folder: Path | None, name: str
) -> Tensor:
    """Encode all views of images, or read their cached features; shape `[V, N, d]`.

    Args:
        backbone: Frozen CLIP model.
        images: The views.
        options: Batch size and number of threads, which do not change the key of the file.
        folder: Folder of cached features; None keeps the features in memory only.
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
    if images.decode != FULL:  # other files have the keys of versions that always decoded at full size
        settings["decode"] = images.decode
    key = hash_json(settings)

    def encode(path: Path | None) -> Tensors:
        chunks = Chunks(path, key, options.batch_size)
        with ignore_if_complete(path, key):
            _encode_missing(backbone, images, options, chunks, name)
        processes.wait()
        if processes.rank():
            return {}  # the first process writes the part
        rows = chunks.concatenate(len(images))
        features = torch.empty_like(rows)
        features[encoding_order(images, options.batch_size)] = rows
        return {FEATURES: features.unflatten(0, (images.views, -1))}

    return load_or_encode(folder, name, key, encode)[FEATURES]


def _encode_missing(
    backbone: Backbone, images: ImageViews, options: EncodingOptions, chunks: Chunks, name: str
) -> None:
    """Encode this process's share of the rows that no chunk has, and add them to the chunks.

    Raises:
        UserError: On an unreadable image, NaN or zero features, or a folder that cannot be written.
        Interrupted: At Ctrl-C, with the number of images that are encoded.
    """
    steps = encoding_steps(backbone, len(images), options.batch_size)
    missing = processes.broadcast_from_rank0(lambda: missing_steps(steps, chunks.finished(), len(images)))
    total = len(images.items)
    rows_before = len(images) - sum(map(len, missing))
    done = rows_before // images.views
    if done:
        logger.info("%s: continuing after %d of %d %s images", chunks.folder, done, total, name)
    share = math.ceil(len(missing) / processes.world_size())
    mine = missing[processes.rank() * share :][:share]

    order = encoding_order(images, options.batch_size)
    num_rows = 0

    def write() -> int:
        chunks.write()
        return (rows_before + chunks.written) // images.views

    progress = Progress(total, f"encoding {name} images", initial=done)
    with keeping(write, total, f"{name} images"), progress:
        for step, pixels in pixels_of_steps(images, order, mine, options):
            features = backbone.encode_images(pixels)
            if not is_usable({FEATURES: features}):
                raise UserError(
                    f"{backbone.name} gives NaN or zero features for {name} images of {images.dataset.name}"
                )
            chunks.add(step, features)
            num_rows += len(step)
            progress.show((rows_before + num_rows) // images.views)
    write()
    views = f" in {images.views} views each" if images.views > 1 else ""
    logger.info("encoded %d %s images%s", math.ceil(num_rows / images.views), name, views)


def group_numbers(dataset: Dataset, items: Mapping[str, Sequence[Item]]) -> dict[str, Tensor]:
    """Number the groups of the items of some splits; `FeatureBank`'s fields of groups, {} without groups."""
    groups = {split: dataset.groups_of(of_split) or [] for split, of_split in items.items()}
    names = sorted({group for of_split in groups.values() for group in of_split})
    number_of = {name: number for number, name in enumerate(names)}
    if not names:
        return {}
    fields = {}
    for split, of_split in groups.items():
        fields[f"{split}_groups"] = torch.tensor([number_of[group] for group in of_split], dtype=torch.long)
    return fields


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
    backbone: Backbone, dataset: str, classnames: Sequence[str], options: EncodingOptions, folder: Path | None = None
) -> dict[str, Tensor]:
    """Encode the prompts of K classes, or read their cached features.

    Args:
        backbone: Frozen CLIP model.
        dataset: `DATASET.NAME`.
        classnames: The K class names.
        options: Options of encoding.
        folder: Folder of cached features; None keeps the features in memory only.

    Returns:
        "positive" and "negative" text features, each of unit norm and shape `[K, d]`; and "norms", shape `[K]`, the
        norm of the mean text-encoder output for the positive prompts of a class, averaged by group first. Without
        prompts, the features are 0 and there are no norms.

    Raises:
        UserError: On a class without a prompt, NaN or zero features, or a folder that cannot be written.
    """
    if not options.has_prompts:
        nothing = torch.zeros(len(classnames), backbone.width)
        return {"positive": nothing, "negative": nothing}
    positive, negative = class_prompts(dataset, classnames, options)
    key = hash_json({"positive": positive, "negative": negative, "code": CODE_VERSION} | backbone.fingerprint)

    def encode(path: Path | None) -> Tensors:
        if processes.rank() and path is not None:
            return {}  # the first process encodes all prompts, since they are few
        groups = [_encode_group(backbone, group) for group in positive]
        text = {
            "positive": F.normalize(torch.stack([unit for unit, _ in groups]).mean(dim=0), dim=-1),
            "negative": _encode_group(backbone, negative)[0],
            NORMS: torch.stack([mean for _, mean in groups]).mean(dim=0).norm(dim=-1),
        }
        if not is_usable(text):
            raise UserError(f"{backbone.name} gives NaN or zero features for the prompts of {dataset}")
        return text

    return load_or_encode(folder, "text", key, encode)


def _encode_group(backbone: Backbone, group: PromptGroup) -> tuple[Tensor, Tensor]:
    """Return the normalised mean of unit features and the mean of raw features by class, each `[K, d]`."""
    features = backbone.encode_text([prompt for prompts in group for prompt in prompts], normalize=False)
    counts = [len(prompts) for prompts in group]

    def means(rows: Tensor) -> Tensor:
        return torch.stack([of_class.mean(dim=0) for of_class in rows.split(counts)])

    return F.normalize(means(F.normalize(features, dim=-1)), dim=-1), means(features)
