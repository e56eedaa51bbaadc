"""Incremental training of a classifier: encode new images and names, merge them into the support set, train on it.

Shapes: n images, V views of each, K classes, d feature width.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from sklearn.utils import check_random_state

from ..config import Config
from ..datasets.base import Dataset
from ..datasets.images import open_any, pixel_hash, reason
from ..datasets.splits import Item
from ..experiments.image_task import ImageTask
from ..features.backbones.identity import DEFAULT_BACKBONE
from ..models.saved import SavedModel
from ..models.support_set import SupportSet
from ..results.records import RECORD
from ..utils.errors import UserError
from ..utils.option import NODE
from ..utils.text import printable
from .inputs import text_nodes, unit_rows
from .training import NO_NAME, Origin, make_configuration, train_model

if TYPE_CHECKING:
    from ..features.backbones.clip import Backbone

# Parameters of the classifier and their configuration keys
KEYS = {
    "precision": f"{NODE}.PREC",
    "variant": f"{NODE}.VARIANT",
    "alpha_c": f"{NODE}.ALPHA_C",
    "beta_c": f"{NODE}.BETA_C",
}


class Addition(NamedTuple):
    """Images and classes that a call adds.

    Attributes:
        X: Features `[n, V, d]`, a list of images, or None.
        y: n labels, or label indicators, booleans of shape `[n, K]`.
        classes, names: Labels and names of the classes of `y`, or of a class without images.
        positive, negative: Text features of these classes, or None.
    """

    X: Any
    y: np.ndarray
    classes: np.ndarray
    names: list[str]
    positive: Any = None
    negative: Any = None


def support_set_of(model: SavedModel) -> SupportSet:
    """Support set of a model; UserError if it has none, or its labels are not unique."""
    if model.support_set is None:
        problem = "expected a model of HeGraphAdapter with a support set, got one without, which cannot be changed"
        raise UserError(f"{problem}; train it again")
    if len(model.support_set.by_label) < len(model.classnames):
        raise UserError("two classes of the model have the same label, so it cannot be changed; use unique labels")
    return model.support_set


def labels_by_name(support_set: SupportSet, names: Iterable[str]) -> dict[str, Any]:
    """Labels of classes by name: the classes of a support set, and new ones for other names.

    The label of a new class is its name, or the next number if labels are numbers.

    Raises:
        UserError: If two classes of the support set have the same name, or a new name is the label of another class.
    """
    labels: dict[str, Any] = {name: label for label, name in support_set.by_label.items()}
    if len(labels) < len(support_set.names):
        raise UserError("expected a model with unique class names; rename a class and train the model again")
    for name in names:
        if name in labels:
            continue
        if name in support_set.by_label:
            problem = f"the new class {name!r} has the label of the class {support_set.by_label[name]!r}"
            raise UserError(f"{problem}; choose another name")
        labels[name] = name if support_set.classes.dtype.kind == "U" else max(labels.values()) + 1
    return labels


def check_no_record(folder: Path, remedy: str) -> None:
    """Raise UserError if a run wrote a model folder, because the scores in the run's record are of this model.

    `remedy` ends the message.
    """
    if (folder.parent / RECORD).is_file():
        raise UserError(f"{folder} belongs to the record of a run and is not changed; {remedy}")


def unlabelled_features_of(model: SavedModel) -> torch.Tensor | None:
    """Features of the unlabelled images that a model is adapted to; UserError if the model lacks them."""
    if model.unlabelled and model.unlabelled_features is None:
        raise UserError(
            f"the model is adapted to {model.unlabelled} unlabelled images whose features its folder lacks, and a "
            "change would lose the adaptation; train it again: fit with unlabelled=, or a run with --unlabelled"
        )
    return model.unlabelled_features


class Trainer:
    """Training of a classifier after a change. A generator as `random_state` samples a seed at construction.

    Args:
        parameters: Parameters of the classifier, by name.
        previous: The model before the change; None for a new one.
        device: Device of the computation.
        backbone: Backbone of `previous` if it is loaded.
    """

    def __init__(
        self, parameters: Mapping[str, Any], previous: SavedModel | None, device: str, backbone: Backbone | None = None
    ) -> None:
        self.parameters, self.previous, self.device, self.backbone = parameters, previous, device, backbone
        self.support_set = None if previous is None else support_set_of(previous)
        seed = parameters["random_state"]
        generator = check_random_state(seed)
        self.seed = int(seed if isinstance(seed, (int, np.integer)) else generator.randint(2**31 - 1))

    def train(self, change: Addition | SupportSet) -> tuple[SavedModel, Backbone | None]:
        """Train on the support set with an addition, or on a reduced support set.

        Returns:
            The model, and its backbone if it is loaded.
        """
        if isinstance(change, Addition):
            with self.configured(1) as cfg:
                support_set, origin = self.merge(change, cfg)
        else:
            assert self.previous is not None
            support_set, origin = change, Origin.of(self.previous)
        if not support_set.names:
            raise UserError("at least one class must remain; call fit to start again", "class.last")
        with self.configured(int(support_set.counts.max())) as cfg:
            return train_model(support_set, origin, cfg, self.device), self.backbone

    def merge(self, addition: Addition, cfg: Config) -> tuple[SupportSet, Origin]:
        """Support set after an addition, and its origin."""
        known = {} if self.support_set is None else self.support_set.by_label
        has_text = addition.positive is not None or addition.negative is not None
        if has_text and isinstance(addition.X, list):
            raise UserError("text features need image features as X; for images, the backbone encodes the prompts")
        labels = addition.classes.tolist()
        replaces = torch.tensor([has_text or known.get(label) != name for label, name in zip(labels, addition.names)])
        more, task = self.encode(addition, bool(replaces.any()), cfg)
        if self.support_set is None or self.previous is None:
            return more, Origin.of_task(task, self.parameters["logit_scale"], not has_text)
        if self.support_set.positive is None and (has_text or addition.X is None):
            raise UserError("the text nodes of the classifier are means of images; pass text_features to fit as well")
        new = [name for name, label in zip(addition.names, labels) if label not in known]
        if self.support_set.positive is not None and more.positive is None and new:
            problem = f"new classes such as {new[0]!r} need text_features, or a backbone that encodes their names"
            raise UserError(f"{problem}, because the other classes have text")
        origin = Origin.of(self.previous)
        if task is not None and not origin.backbone.model:
            origin = Origin.of_task(task, origin.logit_scale, origin.prompted)
        return self.support_set.merge(more, replaces), origin._replace(prompted=origin.prompted and not has_text)

    def encode(self, addition: Addition, new_text: bool, cfg: Config) -> tuple[SupportSet, ImageTask | None]:
        """Support set of an addition, and the task that encoded it.

        A task is needed for images, for names if there is `new_text`, and to identify the backbone. Text nodes are None
        if they are computed from the images.
        """
        X, names, known, is_images = addition.X, addition.names, self.support_set, isinstance(addition.X, list)
        several = addition.y.ndim == 2
        places = addition.y if several else np.searchsorted(addition.classes, addition.y)
        labels = torch.from_numpy(places)
        if is_images and not cfg.backbone.name:
            raise UserError(f"images need a backbone, such as backbone={DEFAULT_BACKBONE.model!r}, or a config")
        has_text_nodes = known is None or known.positive is not None
        must_encode = is_images or (addition.positive is None and new_text and has_text_nodes)
        ids, opened, task = torch.zeros(len(labels), dtype=torch.long), dict[str, int](), None
        if cfg.backbone.name and (must_encode or (known is None and self.parameters["backbone"] is not None)):
            item_labels = [0] * len(labels) if several else labels.tolist()  # encoding does not depend on labels
            task = self.image_task(X if is_images else [], item_labels, names, cfg, opened)
        if isinstance(X, np.ndarray):
            features = unit_rows(X.swapaxes(0, 1))
        elif X and task is not None:
            features = task.bank().train_features
            ids = torch.tensor([opened[item.path] for item in task.dataset.train], dtype=torch.long)
        else:
            shape = np.shape(addition.negative if addition.positive is None else addition.positive)
            shape = (0, *shape) if known is None else known.features.shape
            features = torch.zeros(1, 0, shape[-1] if task is None else task.backbone.width)
        width = features.shape[-1]
        if task is not None and task.backbone.width != width:
            expected = f"expected X with the {task.backbone.width} features of {task.backbone.name}"
            raise UserError(f"{expected}, got {width} features", "features.width")
        positive = text_nodes(addition.positive, "text_features", len(names), width)
        negative = text_nodes(addition.negative, "negative_text_features", len(names), width)
        if task is not None and (positive is None or negative is None):
            encoded = task.text_features()
            positive = encoded[0] if positive is None else positive
            negative = encoded[1] if negative is None else negative
        if negative is None and positive is not None:
            negative = -positive
        return SupportSet(addition.classes, tuple(names), features, labels, ids, positive, negative), task

    def image_task(
        self, images: Sequence[Any], labels: list[int], classnames: list[str], cfg: Config, opened: dict[str, int]
    ) -> ImageTask:
        """Task of n images with labels from 0 to K - 1, for encoding them and the class names.

        Uses the backbone of the previous model. The ids of encoded images are stored in `opened`.
        """
        names = [printable(str(image)) if isinstance(image, Path) else f"image {k}" for k, image in enumerate(images)]
        by_name = dict(zip(names, images))

        def open_item(name: str) -> Image.Image:
            if name in opened:  # another view of the image
                return open_any(by_name[name])
            pixels, opened[name] = open_with_id(by_name[name])
            return pixels

        items = [Item(name, label, classnames[label]) for name, label in zip(names, labels)]
        dataset = Dataset(cfg.data.name or NO_NAME, classnames, items, val=[], test=[], open=open_item)
        task = ImageTask(dataset, cfg, cfg.run.seed, self.device, self.backbone)
        if self.previous is not None:
            task.check_backbone(self.previous)
        self.backbone = task.backbone
        return task

    @contextmanager
    def configured(self, shots: int) -> Iterator[Config]:
        """Context with the configuration for a number of images per class, for encoding or training in the block.

        Cached features are deleted after the block, and global random generators, which training seeds, are restored.
        """
        parameters = self.parameters
        values = {key: parameters[name] for name, key in KEYS.items() if parameters[name] is not None}
        if parameters["backbone"] is not None:
            values["MODEL.BACKBONE.NAME"] = parameters["backbone"]
            values["MODEL.BACKBONE.PRETRAINED"] = parameters["pretrained"]
        values["DATASET.NUM_SHOTS"] = max(shots, 1)
        files = str(parameters["dataset_config"] or ""), str(parameters["config"] or "")
        python, numpy = random.getstate(), np.random.get_state()
        try:
            with (
                torch.random.fork_rng(devices=range(torch.cuda.device_count())),
                tempfile.TemporaryDirectory() as folder,
            ):
                yield make_configuration(files, values, parameters["options"], self.seed, folder)
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def open_with_id(image: Path | Image.Image) -> tuple[Image.Image, int]:
    """Open an image, and compute its id by `pixel_hash`."""
    pixels = open_any(image)
    return pixels, pixel_hash(pixels)


def image_ids(images: Sequence[Path | Image.Image]) -> torch.Tensor:
    """Ids of images, shape `[n]`, int64; UserError if an image is unreadable."""
    ids = []
    for image in images:
        try:
            ids.append(open_with_id(image)[1])
        except Exception as error:  # Pillow raises any type on damaged bytes
            raise UserError(f"cannot read {image}: {reason(error)}", "images.read") from error
    return torch.tensor(ids, dtype=torch.long)
