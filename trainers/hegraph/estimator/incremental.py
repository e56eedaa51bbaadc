"""Incremental training of a classifier: encode new images and names, merge them into the support set, train on it.

Shapes: n images, V views of each, K classes, d feature width.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from sklearn.utils import check_random_state

from ..config import Config
from ..datasets.base import Dataset
from ..datasets.images import ImageSource, open_any, pixel_hash, reason
from ..datasets.registry import is_published
from ..datasets.splits import Item
from ..experiments.image_task import ImageTask, with_decoding
from ..features.backbones.identity import DEFAULT_BACKBONE
from ..features.bank import count_labels, mean_count
from ..models.saved import SavedModel
from ..models.support_set import SupportSet
from ..results.records import RECORD
from ..utils.errors import UserError, unknown
from ..utils.option import NODE
from ..utils.seeds import preserved_generators
from ..utils.text import normalized_name, printable
from .inputs import text_nodes, unit_rows
from .training import NO_NAME, Origin, make_configuration, train_model

if TYPE_CHECKING:
    from ..features.backbones.base import Backbone

# Parameters of the classifier and their configuration keys
KEYS = {
    "precision": f"{NODE}.PREC",
    "variant": f"{NODE}.VARIANT",
    "alpha_c": f"{NODE}.ALPHA_C",
    "beta_c": f"{NODE}.BETA_C",
}


def support_set_of(model: SavedModel) -> SupportSet:
    """Support set of a model; UserError if it has none, or its labels are not unique."""
    if model.support_set is None:
        problem = "expected a model of HeGraphAdapter with a support set, got one without, which cannot be changed"
        raise UserError(f"{problem}; train it again")
    if len(model.support_set.by_label) < len(model.classnames):
        raise UserError("two classes of the model have the same label, so it cannot be changed; use unique labels")
    return model.support_set


class ClassLabels:
    """Labels of classes by name: the classes of a support set, and new ones.

    Names are compared as in data sets: in Unicode's form NFC, without outer white space.

    Attributes:
        names: Class names by label.

    Raises:
        UserError: If two classes of the support set have the same name.
    """

    def __init__(self, support_set: SupportSet) -> None:
        self.names = support_set.by_label
        self._labels = {normalized_name(name): label for label, name in self.names.items()}
        self._dtype = support_set.classes.dtype
        if len(self._labels) < len(self.names):
            raise UserError("expected a model with unique class names; rename a class and train the model again")

    def find(self, name: str) -> Any:
        """Label of a class, also of a new one; UserError for an unknown name."""
        key = normalized_name(name)
        if key not in self._labels:
            raise unknown("class", name, self.names.values())
        return self._labels[key]

    def find_or_add(self, name: str) -> Any:
        """Label of a class. That of a new class is its name, or the next number if labels are numbers.

        Raises:
            UserError: If the name of a new class is the label of another class, or no number follows the labels.
        """
        key = normalized_name(name)
        if key not in self._labels:
            label = key if self._dtype.kind == "U" else self._next_number()
            if label in self.names:
                problem = f"the new class {key!r} has the label of the class {self.names[label]!r}"
                raise UserError(f"{problem}; choose another name")
            self._labels[key] = label
            self.names[label] = key
        return self._labels[key]

    def _next_number(self) -> int | float:
        """The largest label and 1; UserError if the type of the labels has no such number."""
        largest = max(self.names)
        label = largest + 1 if self._dtype.kind in "iuf" else largest
        with np.errstate(all="ignore"):
            fits = label != largest and np.array(label).astype(self._dtype).item() == label
        if not fits:
            problem = f"a new class needs a label after {largest!r}, and {self._dtype} has none"
            raise UserError(f"{problem}; train the model again with other labels, such as names")
        return label


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


class IncrementalTraining:
    """Training of a classifier after one change. A generator as `random_state` samples a seed at construction.

    Args:
        parameters: Parameters of the classifier, by name.
        previous: The model before the change; None for a new one.
        device: Device of the computation.
        backbone: Backbone of `previous` if it is loaded.

    Attributes:
        backbone: Backbone of the model, if it is loaded.
    """

    def __init__(
        self, parameters: Mapping[str, Any], previous: SavedModel | None, device: str, backbone: Backbone | None = None
    ) -> None:
        self.parameters = parameters
        self.previous = previous
        self.device = device
        self.backbone = backbone
        self._ids = dict[str, int]()  # ids of encoded images, by name
        self.support_set = None if previous is None else support_set_of(previous)
        seed = parameters["random_state"]
        generator = check_random_state(seed)
        self.seed = int(seed if isinstance(seed, (int, np.integer)) else generator.randint(2**31 - 1))

    def reduce(self, support_set: SupportSet) -> SavedModel:
        """Train on a changed support set of the previous model.

        Raises:
            UserError: If it has no class, or as in `train_model`: a class has neither images nor text, the memory is
                too small, or the training diverges.
        """
        assert self.previous is not None
        if not support_set.names:
            raise UserError("at least one class must remain; call fit to start again", "class.last")
        with self._configured(mean_count(support_set.counts.tolist())) as cfg:
            return train_model(support_set, Origin.of(self.previous), cfg, self.device)

    def add(
        self,
        X: Any,
        y: np.ndarray,
        classes: np.ndarray,
        names: list[str],
        positive: Any = None,
        negative: Any = None,
        groups: torch.Tensor | None = None,
    ) -> SavedModel:
        """Train on the support set and further images and classes.

        Args:
            X: Features `[n, V, d]`, a list of images, or None.
            y: n labels, or label indicators, booleans of shape `[n, K]`.
            classes, names: Labels and names of the classes of `y`, or of a class without images.
            positive, negative: Text features of these classes, or None.
            groups: Groups of the images, int64 of shape `[n]`; None without groups.

        Raises:
            UserError: If an image is unreadable, the features, the text or the labels do not match the previous model,
                or as in `train_model`: a class has neither images nor text, the memory is too small, or the training
                diverges.
        """
        has_text = positive is not None or negative is not None
        if has_text and isinstance(X, list):
            raise UserError("text features need image features as X; for images, the backbone encodes the prompts")
        known = {} if self.support_set is None else self.support_set.by_label
        renamed = [known.get(label) != name for label, name in zip(classes.tolist(), names)]
        replaces = torch.tensor([has_text or is_renamed for is_renamed in renamed])
        labels = torch.from_numpy(y if y.ndim == 2 else np.searchsorted(classes, y))
        with self._configured(self._shots_with(classes, labels)) as cfg:
            task = self._task(X, labels, names, cfg, positive is None and bool(replaces.any()))
            features, ids = self._features(X, positive if negative is None else negative, task)
            text = _text_of(names, positive, negative, features.shape[-1], task)
            more = SupportSet(classes, tuple(names), features, labels, ids, *text, groups=groups)
            support_set, origin = self._merge(more, replaces, has_text, task)
            return train_model(support_set, origin, cfg, self.device)

    def _shots_with(self, classes: np.ndarray, labels: torch.Tensor) -> int:
        """Mean number of images of the classes, together with new images."""
        counts = Counter(dict(zip(classes.tolist(), count_labels(labels, len(classes)))))
        if self.support_set is not None:
            counts.update(dict(zip(self.support_set.classes.tolist(), self.support_set.counts.tolist())))
        return mean_count(counts.values())

    def _merge(
        self, more: SupportSet, replaces: torch.Tensor, has_text: bool, task: ImageTask | None
    ) -> tuple[SupportSet, Origin]:
        """Support set with an addition, and its origin; arguments as in `SupportSet.merge`."""
        if self.support_set is None or self.previous is None:
            is_prompted = more.positive is not None and not has_text
            return more, Origin.of_task(task, self.parameters["logit_scale"], is_prompted)
        origin = Origin.of(self.previous)
        if task is not None and not origin.backbone.model:
            origin = Origin.of_task(task, origin.logit_scale, origin.prompted)
        if self.support_set.positive is None:
            if has_text:
                raise UserError("the classifier was fitted without class texts; pass text_features to fit as well")
            return self._merge_images(self.support_set, more, replaces), origin
        known = self.support_set.by_label
        new = [name for name, label in zip(more.names, more.classes.tolist()) if label not in known]
        if more.positive is None and new:
            problem = f"new classes such as {new[0]!r} need text_features, or a backbone that encodes their names"
            raise UserError(f"{problem}, because the other classes have text")
        return self.support_set.merge(more, replaces), origin._replace(prompted=origin.prompted and not has_text)

    @staticmethod
    def _merge_images(support_set: SupportSet, more: SupportSet, replaces: torch.Tensor) -> SupportSet:
        """Support set without text with an addition; classes that have lost their images are removed.

        Raises:
            UserError: If a new class has no images.
        """
        known = support_set.by_label
        for name, label, count in zip(more.names, more.classes.tolist(), more.counts.tolist()):
            if label not in known and not count:
                problem = f"{name!r} has no images, and images alone define the classes of this model"
                raise UserError(f"{problem}, which was trained without class texts; add images of {name!r}")
        merged = support_set.merge(more, replaces)
        return merged.of_classes(merged.counts > 0)

    def _task(self, X: Any, labels: torch.Tensor, names: list[str], cfg: Config, needs_names: bool) -> ImageTask | None:
        """Task that encodes images, and names if they are needed; None if there is nothing to encode.

        A task is also needed to identify the backbone of a new model.
        """
        is_images = isinstance(X, list)
        if is_images and not cfg.backbone.name:
            raise UserError(f"images need a backbone, such as backbone={DEFAULT_BACKBONE.model!r}, or a config")
        is_new = self.support_set is None
        has_text_nodes = self.support_set is None or self.support_set.positive is not None
        must_encode = is_images or (needs_names and has_text_nodes)
        if not cfg.backbone.name or not (must_encode or (is_new and self.parameters["backbone"] is not None)):
            return None
        item_labels = labels.tolist() if labels.ndim == 1 else [0] * len(labels)  # encoding does not depend on labels
        return self._image_task(X if is_images else [], item_labels, names, cfg)

    def _features(self, X: Any, text: Any, task: ImageTask | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Features `[V, n, d]` and ids `[n]` of images.

        Without images, the width is that of the task, of the previous model, or of text features `[K, d]`.
        """
        if isinstance(X, np.ndarray):
            features = unit_rows(X.swapaxes(0, 1))
            ids = torch.zeros(features.shape[1], dtype=torch.long)
        elif X and task is not None:
            features = task.encoded().train_features
            ids = torch.tensor([self._ids[item.path] for item in task.dataset.train], dtype=torch.long)
        else:
            shape = np.shape(text) if self.support_set is None else self.support_set.features.shape
            features = torch.zeros(1, 0, (0, *shape)[-1] if task is None else task.backbone.width)
            ids = torch.zeros(0, dtype=torch.long)
        width = features.shape[-1]
        if task is not None and task.backbone.width != width:
            expected = f"expected X with the {task.backbone.width} features of {task.backbone.name}"
            raise UserError(f"{expected}, got {width} features", "features.width")
        return features, ids

    def _image_task(self, images: Sequence[Any], labels: list[int], classnames: list[str], cfg: Config) -> ImageTask:
        """Task of n images with labels from 0 to K - 1, for encoding them and the class names.

        Uses the backbone of the previous model.
        """
        names = [printable(str(image)) if isinstance(image, Path) else f"image {k}" for k, image in enumerate(images)]
        by_name = dict(zip(names, images))

        def open_item(name: str) -> Image.Image:
            if name in self._ids:  # another view of the image
                return open_any(by_name[name])
            pixels, self._ids[name] = open_with_id(by_name[name])
            return pixels

        def source(name: str) -> ImageSource:
            pixels = open_item(name)  # the id needs the pixels at full size
            return pixels if isinstance(by_name[name], Image.Image) else by_name[name]

        items = [Item(name, label, classnames[label]) for name, label in zip(names, labels)]
        name = cfg.data.name or NO_NAME
        dataset = Dataset(name, classnames, items, val=[], test=[], open=open_item)
        if not is_published(name):
            dataset = replace(dataset, source=source)
        if self.previous is not None:
            cfg = with_decoding(cfg, self.previous.backbone.decode)
        task = ImageTask(dataset, cfg, cfg.run.seed, self.device, self.backbone)
        if self.previous is not None:
            task.check_backbone(self.previous)
        self.backbone = task.backbone
        return task

    @contextmanager
    def _configured(self, shots: int) -> Iterator[Config]:
        """Context with the configuration for a number of images per class, for encoding or training in the block.

        Global random generators, which training seeds, are restored after the block.
        """
        parameters = self.parameters
        values = {key: parameters[name] for name, key in KEYS.items() if parameters[name] is not None}
        if parameters["backbone"] is not None:
            values["MODEL.BACKBONE.NAME"] = parameters["backbone"]
            values["MODEL.BACKBONE.PRETRAINED"] = parameters["pretrained"]
        values["DATASET.NUM_SHOTS"] = max(shots, 1)
        files = str(parameters["dataset_config"] or ""), str(parameters["config"] or "")
        with preserved_generators():
            yield make_configuration(files, values, parameters["options"], self.seed)


def _text_of(
    names: list[str], positive: Any, negative: Any, width: int, task: ImageTask | None
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Positive and negative text nodes of classes: text features, else encoded by a task, else None.

    Without negative text features and a task, a negative node is the negative of the positive one.
    """
    positive = text_nodes(positive, "text_features", len(names), width)
    negative = text_nodes(negative, "negative_text_features", len(names), width)
    if task is not None and task.cfg.encoding.has_prompts and (positive is None or negative is None):
        encoded = task.text_features()
        positive = encoded[0] if positive is None else positive
        negative = encoded[1] if negative is None else negative
    if negative is None and positive is not None:
        negative = -positive
    return positive, negative


def open_with_id(image: ImageSource) -> tuple[Image.Image, int]:
    """Open an image, and compute its id by `pixel_hash`."""
    pixels = open_any(image)
    return pixels, pixel_hash(pixels)


def image_ids(images: Sequence[Path | Image.Image]) -> torch.Tensor:
    """Ids of images, shape `[n]`, int64; UserError if an image is unreadable."""
    return torch.tensor([image_id(image, image) for image in images], dtype=torch.long)


def image_id(image: ImageSource, name: object) -> int:
    """Id of an image; UserError, which contains its name, if it is unreadable."""
    try:
        return open_with_id(image)[1]
    except Exception as error:  # Pillow raises any type on damaged bytes
        raise UserError(f"cannot read {name}: {reason(error)}", "images.read") from error
