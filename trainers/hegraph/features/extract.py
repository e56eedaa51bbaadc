"""A data set and a backbone -> a feature bank. What has been encoded once is kept on disk (`parts.py`).

Shapes: V views, N training images, M test images, K classes, d feature width.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..backbones.clip import Backbone, describe_transform
from ..datasets import Dataset, Item
from .bank import FeatureBank
from .chunks import encode_in_chunks
from .options import EncodingOptions
from .parts import Tensors, kept_part
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
    val = [] if dataset.val_is_test else dataset.val
    augmentation = training_augmentation(backbone, options)
    parts = {
        "train": ImageViews(dataset, dataset.train, augmentation, views=options.views, seed=seed),
        "val": ImageViews(dataset, val, backbone.preprocess),
        "test": ImageViews(dataset, dataset.test, backbone.preprocess),
    }
    features = {
        name: encode_images(backbone, images, options, folder, name) for name, images in parts.items() if images.items
    }
    text = encode_prompts(backbone, dataset.name, dataset.classnames, options, folder)
    return FeatureBank(
        train_features=features["train"],
        train_labels=_labels(dataset.train),
        val_features=features["val"][0] if val else None,
        val_labels=_labels(val) if val else None,
        test_features=features["test"][0] if dataset.test else None,
        test_labels=_labels(dataset.test) if dataset.test else None,
        text_positive=text["positive"],
        text_negative=text["negative"],
        classnames=list(dataset.classnames),
        dataset=dataset.name,
        backbone=backbone.name,
        logit_scale=backbone.logit_scale,
        text_norms=text.get("norms"),
    )


def encode_test(dataset: Dataset, backbone: Backbone, options: EncodingOptions, folder: Path) -> tuple[Tensor, Tensor]:
    """Features `[M, d]` and labels `[M]` of the test images of a data set; arguments and errors as of `encode_task`."""
    images = ImageViews(dataset, dataset.test, backbone.preprocess)
    return encode_images(backbone, images, options, folder, "test")[0], _labels(dataset.test)


def encode_images(backbone: Backbone, images: ImageViews, options: EncodingOptions, folder: Path, name: str) -> Tensor:
    """Features of all views, shape `[V, N, d]`, encoded or read from disk.

    Args:
        backbone: The frozen CLIP.
        images: The images and their views.
        options: The batch size and the number of workers; neither changes the key that the features are kept under.
        folder: Where the features are kept.
        name: Of this part of the bank, "train", "val" or "test".

    Raises:
        UserError: On an unreadable image, NaN features, or a folder that cannot be written.
    """
    files = [[*item, *(images.dataset.file_version(item.path) or ())] for item in images.items]
    shaped_by: dict[str, Any] = {
        "images": files,
        "dataset": images.dataset.name,
        "transform": describe_transform(images.transform),
        "views": images.views,
        "seed": images.seed,
        **backbone.fingerprint,
    }

    def encode(path: Path, key: str) -> Tensors | None:
        rows = encode_in_chunks(backbone, images, options, path, key, name)
        return None if rows is None else {"features": rows.view(images.views, len(images.items), -1)}

    return kept_part(folder, name, shaped_by, encode)["features"]


def _labels(items: Sequence[Item]) -> Tensor:
    return torch.tensor([item.label for item in items], dtype=torch.long)
