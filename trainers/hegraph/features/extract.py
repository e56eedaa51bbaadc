"""A data set and a backbone -> a feature bank. What has been encoded once is kept on disk (`parts.py`).

Shapes: V views, N training images, M test images, K classes, d feature width.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..backbones.clip import Backbone, describe_transform
from ..datasets import Dataset, Item
from ..utils.files import hash_rows
from .bank import FeatureBank
from .chunks import encode_in_chunks
from .options import EncodingOptions
from .parts import CODE_VERSION, FEATURES, Tensors, kept_part, read_part
from .text import encode_prompts
from .views import ImageViews, training_augmentation


def encode_task(dataset: Dataset, backbone: Backbone, options: EncodingOptions, seed: int, folder: Path) -> FeatureBank:
    """Encodes a few-shot task, or reads what was encoded before.

    Args:
        dataset: The images that the few-shot protocol selected. Where the validation images are the test images, they
            are not made part of the bank, so that nothing can be chosen on them.
        backbone: The frozen CLIP.
        options: How images and sentences are encoded.
        seed: Of the augmentation.
        folder: Where the features are kept.

    Raises:
        UserError: On an unreadable image, a class without a prompt, or a folder that cannot be written.
    """
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


class Parts(NamedTuple):
    """A task that has been encoded, as far as it need not be in memory.

    Attributes:
        images: "train", and "val" and "test" if there are such images -> the file of their features, and the images.
        text: "positive" and "negative" text nodes, each `[K, d]`, and "norms", as `encode_prompts` gives them.
    """

    images: dict[str, tuple[Path, Sequence[Item]]]
    text: Tensors


def encode_parts(dataset: Dataset, backbone: Backbone, options: EncodingOptions, seed: int, folder: Path) -> Parts:
    """Encodes what is not on disk; arguments and errors as of `encode_task`. Memory does not grow with the images."""
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


def encode_test(dataset: Dataset, backbone: Backbone, options: EncodingOptions, folder: Path) -> tuple[Tensor, Tensor]:
    """Features `[M, d]` and labels `[M]` of the test images of a data set; arguments and errors as of `encode_task`."""
    images = ImageViews(dataset, dataset.test, backbone.preprocess)
    return encode_images(backbone, images, options, folder, "test")[0], labels_of(dataset.test)


def encode_images(backbone: Backbone, images: ImageViews, options: EncodingOptions, folder: Path, name: str) -> Tensor:
    """Features of all views, shape `[V, N, d]`, encoded or read from disk; arguments and errors as of `encode_part`."""
    return read_part(encode_part(backbone, images, options, folder, name))[FEATURES]


def encode_part(backbone: Backbone, images: ImageViews, options: EncodingOptions, folder: Path, name: str) -> Path:
    """The file of the features of all views, which are encoded where there is none.

    Args:
        backbone: The frozen CLIP.
        images: The images and their views.
        options: The batch size and the number of workers; neither changes the key that the features are kept under.
        folder: Where the features are kept.
        name: Of this part of the bank, "train", "val" or "test".

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

    def encode(path: Path) -> None:
        encode_in_chunks(backbone, images, options, path, key, name)

    return kept_part(folder, name, key, encode)


def labels_of(items: Sequence[Item]) -> Tensor:
    """The labels of some images, shape `[N]`."""
    return torch.tensor([item.label for item in items], dtype=torch.long)
