"""How a classifier is taught: images and names are encoded, join what was taught before, and all of it is trained on.

Shapes: n images, V views of each, K classes, d feature width.
"""

from __future__ import annotations

import hashlib
import logging
import os
import random
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..config import Config
from ..datasets import Dataset, Item
from ..datasets.images import open_image, reason, to_rgb
from ..experiments.image_task import ImageTask
from ..models.lessons import Lessons
from ..models.saved import SavedModel
from ..utils.errors import UserError
from ..utils.option import NODE
from .inputs import text_nodes, unit_rows
from .training import NO_NAME, Origin, find_seed, learn, make_configuration

if TYPE_CHECKING:
    from ..backbones.clip import Backbone

logger = logging.getLogger(__name__)

# Parameter of the classifier -> the configuration key that it sets
KEYS = {
    "precision": f"{NODE}.PREC",
    "variant": f"{NODE}.VARIANT",
    "alpha_c": f"{NODE}.ALPHA_C",
    "beta_c": f"{NODE}.BETA_C",
}


class Before(NamedTuple):
    """A model that is to be taught more, and what it was taught."""

    model: SavedModel
    lessons: Lessons

    @classmethod
    def of(cls, model: SavedModel) -> Before:
        """UserError if the model does not know what it was taught, or its labels do not tell its classes apart."""
        if model.lessons is None:
            ours = model.method == "HeGraphAdapter"
            why = "is of a version that did not keep its labelled images" if ours else "is none of HeGraphAdapter"
            raise UserError(f"the model cannot be taught more, since it {why}; train it again")
        before = cls(model, model.lessons)
        if len(before.names) < len(model.classnames):
            raise UserError("two classes of the model have one label, so that none can be changed; give fit labels")
        if model.unlabelled:
            logger.warning("the model folder keeps no unlabelled images; let the classifier hear them again with adapt")
        return before

    @property
    def names(self) -> dict[Any, str]:
        """The names of the classes by their labels."""
        return dict(zip(self.lessons.classes.tolist(), self.lessons.names))


class Added(NamedTuple):
    """What one call adds.

    Attributes:
        X: Features `[n, V, d]`, a list of images, or None.
        y: n labels.
        classes, names: The classes of `y`, or one that has no image.
        positive, negative: Text features of these classes; None for what is not given.
    """

    X: Any
    y: np.ndarray
    classes: np.ndarray
    names: list[str]
    positive: Any = None
    negative: Any = None

    @property
    def has_text(self) -> bool:
        return self.positive is not None or self.negative is not None

    @property
    def places(self) -> Tensor:
        """The positions of the labels in `classes`, shape `[n]`."""
        return torch.tensor(np.searchsorted(self.classes, self.y).tolist(), dtype=torch.long)


class Teacher:
    """Teaches a classifier in one call, by `teach` or `learn`. Both give the model that was trained and the backbone of
    its images, where that is loaded. A generator as `random_state` draws a seed when the teacher is made.

    Args:
        parameters: Those of the classifier, by name.
        before: The model so far; None begins anew.
        device: Where to compute.
        loaded: The backbone of `before`, where it is loaded.
    """

    def __init__(
        self, parameters: Mapping[str, Any], before: Before | None, device: str, loaded: Backbone | None = None
    ) -> None:
        self.parameters, self.before, self.device, self.loaded = parameters, before, device, loaded
        self.seed = find_seed(parameters["random_state"])

    def teach(self, added: Added) -> tuple[SavedModel, Backbone | None]:
        """Adds images and classes to what was taught before, and trains on the whole."""
        before, has_text = self.before, added.has_text
        known = {} if before is None else before.names
        fresh = torch.tensor([has_text or known.get(c) != name for c, name in zip(added.classes.tolist(), added.names)])
        task: ImageTask | None
        with self.configured(1) as cfg:
            by_name = added.X is None and not has_text and bool(cfg.backbone.name)
            if by_name or isinstance(added.X, list):
                more, task = self.encode_images(added, cfg)
            else:
                more, task = self.encode_text(added, bool(fresh.any()), cfg)
        if before is None:
            return self.learn(more, Origin.of_task(task, self.parameters["logit_scale"], not has_text), task)
        if before.lessons.positive is None and has_text:
            raise UserError("the text nodes so far are the means of the images; give text_features to fit as well")
        new = [name for name, label in zip(added.names, added.classes.tolist()) if label not in known]
        if before.lessons.positive is not None and more.positive is None and new:
            raise UserError(
                f"new classes such as {new[0]!r} need text_features, as those before have, or a backbone that encodes "
                "their names"
            )
        origin = Origin.of(before.model)
        if task is not None and not before.model.backbone.model:
            origin = Origin.of_task(task, origin.logit_scale, origin.prompted)
        return self.learn(
            before.lessons.joined(more, fresh), origin._replace(prompted=origin.prompted and not has_text), task
        )

    def encode_images(self, added: Added, cfg: Config) -> tuple[Lessons, ImageTask]:
        """Images, which may be none, and the names of their classes; with the task that has encoded them."""
        if added.has_text:
            raise UserError("text features go with image features; of images, the backbone encodes the prompts")
        if not cfg.backbone.name:
            raise UserError('images need a backbone: give backbone="ViT-B-32-quickgelu" or another, or config')
        labels, images = added.places, added.X or []
        task = self.task(images, labels.tolist(), added.names, cfg)
        if images:
            bank = task.bank()
            features, nodes, ids = bank.train_features, (bank.text_positive, bank.text_negative), image_ids(images)
        else:
            features, nodes, ids = (
                torch.zeros(1, 0, task.backbone.width),
                task.text_features(),
                torch.zeros_like(labels),
            )
        return Lessons(added.classes, tuple(added.names), features, labels, ids, *nodes), task

    def encode_text(self, added: Added, new: bool, cfg: Config) -> tuple[Lessons, ImageTask | None]:
        """Features, and text nodes as far as they are not made of the images; None where there are none.

        With the task that has encoded the names, if it was needed: for classes that are `new`, or to know the backbone.
        """
        before, X, width = self.before, added.X, self.width(added)
        positive = text_nodes(added.positive, "text_features", len(added.names), width)
        negative = text_nodes(added.negative, "negative_text_features", len(added.names), width)
        of_images = before is not None and before.lessons.positive is None
        task, lacks = None, positive is None and new and not of_images
        if cfg.backbone.name and (lacks or (before is None and self.parameters["backbone"] is not None)):
            task = self.task([], [], added.names, cfg)
            if task.backbone.width != width:
                raise UserError(f"X has {width} features, but {task.backbone.name} gives {task.backbone.width}")
            if positive is None or negative is None:
                encoded = task.text_features()
                positive = encoded[0] if positive is None else positive
                negative = encoded[1] if negative is None else negative
        if negative is None and positive is not None:
            negative = -positive
        features = torch.zeros(1, 0, width) if X is None else unit_rows(X.swapaxes(0, 1))
        ids = torch.zeros(len(added.y), dtype=torch.long)
        return Lessons(added.classes, tuple(added.names), features, added.places, ids, positive, negative), task

    def width(self, added: Added) -> int:
        """That of the features or, without any, of those before or of the text features."""
        if added.X is not None:
            return added.X.shape[-1]
        if self.before is not None:
            return self.before.model.classifier.width
        if not added.has_text:
            raise UserError("a class without images needs text_features, or a backbone that encodes its name")
        return np.shape(added.negative if added.positive is None else added.positive)[-1]

    def task(self, images: list, labels: Sequence[int], names: list[str], cfg: Config) -> ImageTask:
        """What encodes images and names; UserError if its backbone is not that of the model so far."""
        task = image_task(images, labels, names, cfg, self.device)
        if self.loaded is not None:
            task.backbone = self.loaded
        task.prepare()
        if self.before is not None:
            task.check_backbone(self.before.model)
        return task

    def learn(
        self, lessons: Lessons, origin: Origin | None = None, task: ImageTask | None = None
    ) -> tuple[SavedModel, Backbone | None]:
        """Trains on lessons, the last of which `task` has encoded; without `origin`, on what is left of former ones."""
        if not lessons.names:
            raise UserError("no class would be left; fit begins anew")
        if origin is None:
            assert self.before is not None
            origin = Origin.of(self.before.model)
        with self.configured(int(lessons.counts.max())) as cfg:
            model = learn(lessons, origin, cfg, self.device, task if self.before is None else None)
        return model, self.loaded if task is None else task.backbone

    @contextmanager
    def configured(self, shots: int) -> Iterator[Config]:
        """The configuration of so many images of a class, for a block that encodes or trains: features are kept in a
        folder for as long, and the global generators are as they were after it.
        """
        given = self.parameters
        named = {key: given[name] for name, key in KEYS.items() if given[name] is not None}
        if given["backbone"] is not None:
            named |= {"MODEL.BACKBONE.NAME": given["backbone"], "MODEL.BACKBONE.PRETRAINED": given["pretrained"]}
        named["DATASET.NUM_SHOTS"] = max(shots, 1)
        files = str(given["dataset_config"] or ""), str(given["config"] or "")
        with generators_restored(), tempfile.TemporaryDirectory() as folder:
            yield make_configuration(files, named, given["options"], self.seed, folder)


def image_task(
    images: Sequence[Path | Image.Image], labels: Sequence[int], classnames: Sequence[str], cfg: Config, device: str
) -> ImageTask:
    """The task of n paths or pictures with labels from 0 to K - 1; of none, one that only encodes sentences."""
    names = [_name(image, position) for position, image in enumerate(images)]
    by_name = dict(zip(names, images))
    items = [Item(name, label, classnames[label]) for name, label in zip(names, labels)]
    unique = len(set(classnames)) == len(classnames)
    ids = [] if unique else [f"{position}: {name}" for position, name in enumerate(classnames)]
    dataset = Dataset(
        cfg.data.name or NO_NAME,
        list(classnames),
        train=items,
        val=[],
        test=[],
        open=lambda name: _pixels(by_name[name]),
        class_ids=ids,
    )
    return ImageTask(dataset, cfg, cfg.run.seed, device)


def _name(image: Path | Image.Image, position: int) -> str:
    """What an image is called in the split: its path, in a form that UTF-8 can hold, or its position."""
    if isinstance(image, Image.Image):
        return f"image {position}"
    return os.fspath(image).encode("utf-8", "backslashreplace").decode()


def _pixels(image: Path | Image.Image) -> Image.Image:
    return to_rgb(image) if isinstance(image, Image.Image) else open_image(image)


def image_ids(images: Sequence[Path | Image.Image]) -> Tensor:
    """Hashes of the pixels of images, shape `[n]`, int64, by which `forget` knows them again.

    Raises:
        UserError: If one cannot be read.
    """
    found = []
    for image in images:
        try:
            pixels = _pixels(image)
            digest = hashlib.sha256(f"{pixels.size}".encode() + pixels.tobytes()).digest()
        except Exception as error:  # on damaged bytes, Pillow raises whatever they lead to
            raise UserError(f"cannot read {image}: {reason(error)}") from error
        found.append(int.from_bytes(digest[:8], "little", signed=True))
    return torch.tensor(found, dtype=torch.long)


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
