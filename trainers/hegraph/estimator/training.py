"""From what the user has in memory to a trained model: seed, configuration, task, training, unlabelled images.

Images become an `ImageTask`, as those of a data set do; features become a feature bank, as the rows of a bank file do.
So everything after this point is the command line's.

Shapes: n training images, V views of each, K classes, d feature width, M unlabelled images.
"""

from __future__ import annotations

import hashlib
import math
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.utils import check_random_state
from torch import Tensor

from ..baselines import load_method
from ..config import Config
from ..config_files import load_cfg
from ..datasets import Dataset, Item
from ..datasets.images import open_image, to_rgb
from ..experiments.fitting import calibrated, train_adapter
from ..experiments.folder import RunFolder
from ..experiments.image_task import ImageTask
from ..experiments.record import make_model
from ..experiments.tasks import FeatureTask, Split, Task
from ..features.bank import FeatureBank
from ..method.graph import class_prototypes
from ..models.saved import Backbone as BackboneConfig
from ..models.saved import Preprocessing, Prompts, SavedModel
from ..training.memory import refuse_beyond_memory, training_bytes
from ..utils.errors import UserError

FEATURES_DIR = "TRAINER.HEGRAPHADAPTER.FEATURES.DIR"
# Keys that options may not set -> what sets them
GIVEN_OTHERWISE = {"SEED": "is random_state here", FEATURES_DIR: "is a temporary folder here"}
NO_NAME = "images"  # of the data set where the configuration names none
CLIP_SCALE = 100.0  # CLIP's `tau`, where no backbone says another
DOUBLE = 8  # bytes


def find_seed(random_state: int | np.random.RandomState | None) -> int:
    """The seed that scikit-learn's `random_state` means: a number is the seed itself; ValueError if it is none."""
    generator = check_random_state(random_state)
    if isinstance(random_state, (int, np.integer)):
        return int(random_state)
    return int(generator.randint(2**31 - 1))


def make_configuration(
    files: tuple[str, str], named: Mapping[str, Any], options: Any, seed: int, folder: str
) -> Config:
    """The checked configuration of a training.

    Args:
        files: YAML of the data set and of the method, as `load_cfg` takes them.
        named: Configuration keys that have a parameter of their own.
        options: Further keys, as a dict or a list `[KEY, VALUE, ...]`, which win.
        seed, folder: SEED, and where encoded features are kept.

    Raises:
        UserError: If a key or a value is wrong, or asks for what an estimator cannot do.
    """
    if isinstance(options, Mapping):
        options = [word for pair in options.items() for word in pair]
    elif not (options is None or isinstance(options, (list, tuple))):
        raise UserError(f"options must be a dict or a list [KEY, VALUE, ...], got {options!r:.80}")
    options = list(options or [])
    for key, instead in GIVEN_OTHERWISE.items():
        if key in options[::2]:
            raise UserError(f"options has {key}, which {instead}; leave it out")
    cfg = load_cfg(*files, dict(named), [*options, "SEED", seed, FEATURES_DIR, folder])
    if cfg.run.select_on == "val":
        raise UserError("SELECT_ON val needs val images, which fit has none of; use scikit-learn's GridSearchCV")
    return cfg


# Tasks


def image_task(
    images: Sequence[Path | Image.Image], labels: Sequence[int], classnames: Sequence[str], cfg: Config, device: str
) -> ImageTask:
    """The task of n paths or pictures with labels from 0 to K - 1; of none, one that only lends its backbone.

    Raises:
        UserError: If the weights of the backbone or the descriptions of the classes cannot be had.
    """
    by_name = {_name(image, position): image for position, image in enumerate(images)}
    names = [_name(image, position) for position, image in enumerate(images)]
    items = [Item(name, label, classnames[label]) for name, label in zip(names, labels)]

    def open_named(name: str) -> Image.Image:
        image = by_name[name]
        return to_rgb(image) if isinstance(image, Image.Image) else open_image(image)

    unique = len(set(classnames)) == len(classnames)
    ids = [] if unique else [f"{position}: {name}" for position, name in enumerate(classnames)]
    name = cfg.data.name or NO_NAME
    dataset = Dataset(name, list(classnames), train=items, val=[], test=[], open=open_named, class_ids=ids)
    return ImageTask(dataset, cfg, cfg.run.seed, device)


def _name(image: Path | Image.Image, position: int) -> str:
    """What an image is called in the split: its path, in a form that UTF-8 can hold, or its position."""
    if isinstance(image, Image.Image):
        return f"image {position}"
    return os.fspath(image).encode("utf-8", "backslashreplace").decode()


class ArrayTask(FeatureTask):
    """Features that the user has encoded. Nothing is encoded here.

    `source` is a task of no images that knows their backbone, so that the model takes images as well; None if there is
    none.

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


def feature_task(
    features: Tensor,
    labels: Tensor,
    classnames: Sequence[str],
    text: tuple[Tensor | None, Tensor | None],
    logit_scale: Any,
    cfg: Config,
    source: ImageTask | None,
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
        cfg, source: As of `ArrayTask`.

    Raises:
        UserError: If the backbone gives features of another width, or `logit_scale` is no number above 0.
    """
    positive, negative = text
    scale = None if logit_scale is None else _checked_scale(logit_scale)
    backbone = None if source is None else source.backbone
    if source is not None and backbone is not None:
        if backbone.width != features.shape[-1]:
            raise UserError(f"X has {features.shape[-1]} features, but {backbone.name} gives {backbone.width}")
        if positive is None or negative is None:
            encoded = source.text_features()
            positive = encoded[0] if positive is None else positive
            negative = encoded[1] if negative is None else negative
        scale = backbone.logit_scale if scale is None else scale
    if positive is None:
        positive = class_prototypes(F.normalize(features.mean(dim=0), dim=-1), labels, classnames)
    bank = FeatureBank(
        train_features=features,
        train_labels=labels,
        text_positive=positive,
        text_negative=-positive if negative is None else negative,
        classnames=list(classnames),
        dataset=cfg.data.name or NO_NAME,
        backbone="unknown" if backbone is None else backbone.name,
        logit_scale=CLIP_SCALE if scale is None else scale,
    )
    return ArrayTask(bank, cfg, source)


def _checked_scale(given: Any) -> float:
    try:
        scale = float(given)
    except (TypeError, ValueError, OverflowError):
        scale = math.nan
    if not 0 < scale < math.inf:
        raise UserError(f"logit_scale must be a finite number above 0, got {given!r:.80}")
    return scale


# Training, and hearing unlabelled images


def check_memory(num_classes: int, shape: tuple[int, int, int], batch: int, device: str) -> None:
    """Raises UserError if training on features of a shape `[n, V, d]` would take more memory than is free.

    Beside what a training takes, calibration takes the logits of all images for all classes, three times in float64.
    """
    num_images, views, width = shape
    parts = training_bytes(num_classes, num_images, width, views, min(batch, num_images))
    what = f"training on {num_images} images of {num_classes} classes"
    refuse_beyond_memory(sum(parts.values()) + 3 * DOUBLE * num_images * num_classes, what, device)


def train_model(task: Task, cfg: Config, device: str) -> SavedModel:
    """Trains the adapter of a task, as the command line does, and folds it into a model on the CPU.

    Raises:
        UserError: If the training diverges, or something cannot be encoded.
    """
    task.prepare()
    bank = task.bank().to(device)
    fitted = train_adapter(task, bank)
    assert fitted.classifier is not None  # HeGraphAdapter always folds
    if not fitted.classifier.weights.isfinite().all():
        raise UserError(
            f"the trained adapter holds NaN or infinite values; lower OPTIM.LR ({cfg.training.learning_rate})"
        )
    fitted = calibrated(fitted, task, bank)
    model = make_model(RunFolder(task), bank, fitted)
    assert model is not None  # its classifier is there
    moved = {
        "classifier": model.classifier.to("cpu"),
        "transfer": None if model.transfer is None else model.transfer.to("cpu"),
        "class_nodes": None if model.class_nodes is None else model.class_nodes.cpu(),
    }
    return model.model_copy(update=moved)


def zero_shot_model(
    width: int | None,
    classnames: Sequence[str],
    text: tuple[Tensor | None, Tensor | None],
    logit_scale: Any,
    cfg: Config,
    source: ImageTask | None,
) -> tuple[SavedModel, ArrayTask]:
    """Zero-shot CLIP as a model that has seen no labelled image, and its task.

    Args:
        width: Of the features; None takes the backbone's.
        classnames: The K class names.
        text, logit_scale, cfg, source: As of `feature_task`.

    Raises:
        UserError: As `feature_task`, and if there is nothing to take text features from.
    """
    if text[0] is None and source is None:
        raise UserError("without labelled images, text_features or a backbone has to say what the classes look like")
    if width is None:
        assert source is not None  # images are encoded
        width = source.backbone.width
    cfg = replace(cfg, run=replace(cfg.run, trainer="ZeroShot"))
    none, labels = torch.zeros(1, 0, width), torch.zeros(0, dtype=torch.long)
    task = feature_task(none, labels, classnames, text, logit_scale, cfg, source)
    model = make_model(RunFolder(task), task.bank(), load_method("ZeroShot").fit(task.bank(), None, task.seed))
    assert model is not None  # it folds
    return model, task


@contextmanager
def generators_restored() -> Iterator[None]:
    """Leaves the global generators of Python, NumPy and torch as they were: training seeds them."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
