"""How a classifier is taught: images and names are encoded, join what was taught before, and all of it is trained on.

Shapes: n images, V views of each, K classes, d feature width.
"""

from __future__ import annotations

import hashlib
import random
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from sklearn.utils import check_random_state
from torch import Tensor

from ..backbones.identity import DEFAULT_BACKBONE
from ..config import Config
from ..datasets import Dataset, Item
from ..datasets.images import open_any, reason
from ..experiments.tasks import ImageTask
from ..models.saved import SavedModel
from ..models.support_set import SupportSet
from ..utils.errors import UserError, printable
from ..utils.option import NODE
from .inputs import text_nodes, unit_rows
from .training import NO_NAME, Origin, learn, make_configuration

if TYPE_CHECKING:
    from ..backbones.clip import Backbone

# Parameter of the classifier -> the configuration key that it sets
KEYS = {
    "precision": f"{NODE}.PREC",
    "variant": f"{NODE}.VARIANT",
    "alpha_c": f"{NODE}.ALPHA_C",
    "beta_c": f"{NODE}.BETA_C",
}


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


def support_set_of(model: SavedModel) -> SupportSet:
    """What a model was taught; UserError if it does not know, or its labels do not tell its classes apart."""
    if model.support_set is None:
        raise UserError(
            "the model cannot be taught more, since it did not keep its labelled images: it is of an earlier version, "
            "or none of HeGraphAdapter; train it again"
        )
    if len(model.support_set.by_label) < len(model.classnames):
        raise UserError("two classes of the model have one label, so that none can be changed; give fit labels")
    return model.support_set


class Teacher:
    """Teaches a classifier in one call of `teach`. A generator as `random_state` draws a seed when the teacher is made.

    Args:
        parameters: Those of the classifier, by name.
        before: The model so far; None begins anew.
        device: Where to compute.
        loaded: The backbone of `before`, where it is loaded.
    """

    def __init__(
        self, parameters: Mapping[str, Any], before: SavedModel | None, device: str, loaded: Backbone | None = None
    ) -> None:
        self.parameters, self.before, self.device, self.loaded = parameters, before, device, loaded
        self.known = None if before is None else support_set_of(before)
        given = parameters["random_state"]
        generator = check_random_state(given)
        self.seed = int(given if isinstance(given, (int, np.integer)) else generator.randint(2**31 - 1))

    def teach(self, what: Added | SupportSet) -> tuple[SavedModel, Backbone | None]:
        """Trains on what is added to what was taught before, or on lessons that are left of it.

        Returns:
            The model, and the backbone of its images, where that is loaded.
        """
        if isinstance(what, Added):
            with self.configured(1) as cfg:
                support_set, origin = self.join(what, cfg)
        else:
            assert self.before is not None
            support_set, origin = what, Origin.of(self.before)
        if not support_set.names:
            raise UserError("no class would be left; fit begins anew")
        with self.configured(int(support_set.counts.max())) as cfg:
            return learn(support_set, origin, cfg, self.device), self.loaded

    def join(self, added: Added, cfg: Config) -> tuple[SupportSet, Origin]:
        """All lessons, and where they come from."""
        known = {} if self.known is None else self.known.by_label
        given = added.positive is not None or added.negative is not None
        if given and isinstance(added.X, list):
            raise UserError("text features go with image features; of images, the backbone encodes the prompts")
        labels = added.classes.tolist()
        fresh = torch.tensor([given or known.get(label) != name for label, name in zip(labels, added.names)])
        more, task = self.encode(added, bool(fresh.any()), cfg)
        if self.known is None or self.before is None:
            return more, Origin.of_task(task, self.parameters["logit_scale"], not given)
        if self.known.positive is None and (given or added.X is None):
            raise UserError("the text nodes so far are the means of the images; give text_features to fit as well")
        new = [name for name, label in zip(added.names, labels) if label not in known]
        if self.known.positive is not None and more.positive is None and new:
            raise UserError(
                f"new classes such as {new[0]!r} need text_features, as those before have, or a backbone that encodes "
                "their names"
            )
        origin = Origin.of(self.before)
        if task is not None and not origin.backbone.model:
            origin = Origin.of_task(task, origin.logit_scale, origin.prompted)
        return self.known.merge(more, fresh), origin._replace(prompted=origin.prompted and not given)

    def encode(self, added: Added, fresh: bool, cfg: Config) -> tuple[SupportSet, ImageTask | None]:
        """What is added, and the task that has encoded it, if one was needed: for images, for names of classes that are
        `fresh`, or to know the backbone. Text nodes are None where they are made of the images.
        """
        X, names, known, is_images = added.X, added.names, self.known, isinstance(added.X, list)
        labels = torch.tensor(np.searchsorted(added.classes, added.y).tolist(), dtype=torch.long)
        if is_images and not cfg.backbone.name:
            raise UserError(f"images need a backbone: give backbone={DEFAULT_BACKBONE.model!r} or another, or config")
        has_nodes = known is None or known.positive is not None
        lacks = is_images or (added.positive is None and fresh and has_nodes)
        ids, opened, task = torch.zeros_like(labels), dict[str, int](), None
        if cfg.backbone.name and (lacks or (known is None and self.parameters["backbone"] is not None)):
            task = self.image_task(X if is_images else [], labels.tolist(), names, cfg, opened)
        if isinstance(X, np.ndarray):
            features = unit_rows(X.swapaxes(0, 1))
        elif X and task is not None:
            features = task.bank().train_features
            ids = torch.tensor([opened[item.path] for item in task.dataset.train], dtype=torch.long)
        else:
            shape = np.shape(added.negative if added.positive is None else added.positive)
            before = (0, *shape) if known is None else known.features.shape
            features = torch.zeros(1, 0, before[-1] if task is None else task.backbone.width)
        width = features.shape[-1]
        if task is not None and task.backbone.width != width:
            raise UserError(f"X has {width} features, but {task.backbone.name} gives {task.backbone.width}")
        positive = text_nodes(added.positive, "text_features", len(names), width)
        negative = text_nodes(added.negative, "negative_text_features", len(names), width)
        if task is not None and (positive is None or negative is None):
            encoded = task.text_features()
            positive = encoded[0] if positive is None else positive
            negative = encoded[1] if negative is None else negative
        if negative is None and positive is not None:
            negative = -positive
        return SupportSet(added.classes, tuple(names), features, labels, ids, positive, negative), task

    def image_task(
        self, images: Sequence[Any], labels: list[int], classnames: list[str], cfg: Config, opened: dict[str, int]
    ) -> ImageTask:
        """The task of n paths or pictures with labels from 0 to K - 1, with the backbone of the model so far; of none,
        one that only encodes sentences. What encodes an image enters its id in `opened`.
        """
        names = [printable(str(image)) if isinstance(image, Path) else f"image {k}" for k, image in enumerate(images)]
        by_name = dict(zip(names, images))

        def open_item(name: str) -> Image.Image:
            pixels, opened[name] = open_with_id(by_name[name])
            return pixels

        items = [Item(name, label, classnames[label]) for name, label in zip(names, labels)]
        dataset = Dataset(cfg.data.name or NO_NAME, classnames, items, val=[], test=[], open=open_item)
        task = ImageTask(dataset, cfg, cfg.run.seed, self.device)
        if self.loaded is not None:
            task.backbone = self.loaded
        if self.before is not None:
            task.check_backbone(self.before)
        self.loaded = task.backbone
        return task

    @contextmanager
    def configured(self, shots: int) -> Iterator[Config]:
        """The configuration of so many images of a class, for a block that encodes or trains: features are kept in a
        folder for as long, and the global generators, which training seeds, are as they were after it.
        """
        given = self.parameters
        named = {key: given[name] for name, key in KEYS.items() if given[name] is not None}
        if given["backbone"] is not None:
            named |= {"MODEL.BACKBONE.NAME": given["backbone"], "MODEL.BACKBONE.PRETRAINED": given["pretrained"]}
        named["DATASET.NUM_SHOTS"] = max(shots, 1)
        files = str(given["dataset_config"] or ""), str(given["config"] or "")
        python, numpy = random.getstate(), np.random.get_state()
        try:
            with (
                torch.random.fork_rng(devices=range(torch.cuda.device_count())),
                tempfile.TemporaryDirectory() as folder,
            ):
                yield make_configuration(files, named, given["options"], self.seed, folder)
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def open_with_id(image: Path | Image.Image) -> tuple[Image.Image, int]:
    """The pixels of an image, and a hash of 64 bits of them, by which it is known again."""
    pixels = open_any(image)
    digest = hashlib.sha256(f"{pixels.size}".encode() + pixels.tobytes()).digest()
    return pixels, int.from_bytes(digest[:8], "little", signed=True)


def image_ids(images: Sequence[Path | Image.Image]) -> Tensor:
    """The hashes of images, shape `[n]`, int64; UserError if one cannot be read."""
    found = []
    for image in images:
        try:
            found.append(open_with_id(image)[1])
        except Exception as error:  # on damaged bytes, Pillow raises whatever they lead to
            raise UserError(f"cannot read {image}: {reason(error)}") from error
    return torch.tensor(found, dtype=torch.long)
