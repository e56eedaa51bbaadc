"""Few-shot tasks made of what a user has in memory: arrays of features, or images.

Images become an `ImageTask`, as those of a data set do; arrays become a feature bank, as the rows of a bank file do. So
everything after this point is the command line's.

Shapes: n training images, V views of each, K classes, d feature width.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..config import Config
from ..datasets import Dataset, Item
from ..datasets.images import open_image, to_rgb
from ..experiments.image_task import ImageTask
from ..experiments.tasks import FeatureTask, Split
from ..features.bank import FeatureBank
from ..method.graph import class_prototypes
from ..models.saved import Backbone as BackboneConfig
from ..models.saved import Preprocessing, Prompts
from ..utils.errors import UserError

NO_NAME = "images"  # of the data set where the configuration names none
CLIP_SCALE = 100.0  # CLIP's `tau`, where no backbone says another


class ArrayTask(FeatureTask):
    """Features that the user has encoded. Nothing is encoded here.

    Args:
        bank: The features of the training images, with unit rows, and the text nodes.
        cfg: The checked configuration.
        source: A task of no images that knows the backbone of the features, so that the model takes images as well;
            None if there is none.

    Raises:
        UserError: If the configuration asks to encode images anew in every epoch.
    """

    def __init__(self, bank: FeatureBank, cfg: Config, source: ImageTask | None) -> None:
        if cfg.data.features == "online":
            raise UserError("FEATURES.MODE online encodes images, and X holds features; use FEATURES.MODE bank")
        labels, names = bank.train_labels.tolist(), bank.classnames
        split: Split = {"train": [[row, label, names[label]] for row, label in enumerate(labels)], "val": []}
        identity = {"features": hashlib.sha256(bank.train_features.numpy().tobytes()).hexdigest()}
        super().__init__(bank, cfg, cfg.run.seed, split, identity, None if source is None else source.class_ids)
        self.source = source

    def made_of(self, bank: FeatureBank) -> tuple[BackboneConfig, Preprocessing | None, Prompts | None]:
        """How the features are made of images."""
        return super().made_of(bank) if self.source is None else self.source.made_of(bank)


def image_task(
    images: Sequence[Path | Image.Image], labels: Sequence[int], classnames: Sequence[str], cfg: Config, device: str
) -> ImageTask:
    """The task of images that the user has on disk or in memory.

    Args:
        images: n paths or pictures; () for a task that only lends its backbone.
        labels: Their n labels, from 0 to K - 1.
        classnames: The K class names.
        cfg: The checked configuration.
        device: Where the backbone runs.

    Raises:
        UserError: If the weights of the backbone or the descriptions of the classes cannot be had.
    """
    by_name = {_name(image, position): image for position, image in enumerate(images)}
    items = [
        Item(_name(image, position), label, classnames[label])
        for position, (image, label) in enumerate(zip(images, labels))
    ]

    def open_named(name: str) -> Image.Image:
        image = by_name[name]
        return to_rgb(image) if isinstance(image, Image.Image) else open_image(image)

    unique = len(set(classnames)) == len(classnames)
    ids = [] if unique else [f"{position}: {name}" for position, name in enumerate(classnames)]
    name = cfg.data.name or NO_NAME
    dataset = Dataset(name, list(classnames), train=items, val=[], test=[], open=open_named, class_ids=ids)
    return ImageTask(dataset, cfg, cfg.run.seed, device)


def feature_task(
    features: Tensor,
    labels: Tensor,
    classnames: Sequence[str],
    text: tuple[Tensor | None, Tensor | None],
    logit_scale: float | None,
    cfg: Config,
    backbone: ImageTask | None,
) -> ArrayTask:
    """The task of features that the user has encoded.

    Text nodes that are not given are encoded by the backbone or, where there is none, made of the images: a positive
    node is the mean of its class, a negative node the negative of the positive one.

    Args:
        features: Unit rows, shape `[V, n, d]`.
        labels: From 0 to K - 1, shape `[n]`.
        classnames: The K class names.
        text: The positive and the negative text nodes, each `[K, d]` or None.
        logit_scale: `tau`; None takes the backbone's, or else CLIP's.
        cfg: The checked configuration.
        backbone: A task of no images that knows the backbone; None if there is none.

    Raises:
        UserError: If the backbone gives features of another width, or `logit_scale` is no number above 0.
    """
    positive, negative = text
    if logit_scale is not None:
        logit_scale = checked_scale(logit_scale)
    if backbone is not None:
        width = backbone.backbone.width
        if width != features.shape[-1]:
            raise UserError(f"X has {features.shape[-1]} features, but {backbone.backbone.name} gives {width}")
        if positive is None or negative is None:
            encoded = backbone.text_features()
            positive = encoded[0] if positive is None else positive
            negative = encoded[1] if negative is None else negative
        logit_scale = backbone.backbone.logit_scale if logit_scale is None else logit_scale
    if positive is None:
        positive = class_prototypes(F.normalize(features.mean(dim=0), dim=-1), labels, classnames)
    bank = FeatureBank(
        train_features=features,
        train_labels=labels,
        text_positive=positive,
        text_negative=-positive if negative is None else negative,
        classnames=list(classnames),
        dataset=cfg.data.name or NO_NAME,
        backbone="unknown" if backbone is None else backbone.backbone.name,
        logit_scale=CLIP_SCALE if logit_scale is None else logit_scale,
    )
    return ArrayTask(bank, cfg, backbone)


def _name(image: Path | Image.Image, position: int) -> str:
    """What an image is called in the split: its path, in a form that UTF-8 can hold, or its position."""
    if isinstance(image, Image.Image):
        return f"image {position}"
    path = os.fspath(image)
    try:
        path.encode()
    except UnicodeEncodeError:  # a file name in another encoding
        return ascii(path)
    return path


def checked_scale(given: Any) -> float:
    """A logit scale as a float.

    Raises:
        UserError: If it is no finite number above 0.
    """
    try:
        scale = float(given)
    except (TypeError, ValueError, OverflowError):
        scale = math.nan
    if not 0 < scale < math.inf:
        raise UserError(f"logit_scale must be a finite number above 0, got {given!r:.80}")
    return scale
