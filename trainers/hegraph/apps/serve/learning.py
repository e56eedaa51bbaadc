"""Incremental training of the model that a server predicts with.

The model folder is the only state. A change trains a new model, replaces the folder atomically, and then replaces the
model of the predictions. Changes run one after the other in one thread, so a killed process loses at most the changes
that were not answered.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

from ...estimator.classes import checked_names
from ...estimator.classifier import HeGraphClassifier
from ...estimator.incremental import (
    ClassLabels,
    IncrementalTraining,
    check_no_record,
    image_ids,
    support_set_of,
    unlabelled_features_of,
)
from ...estimator.labels.issues import find_label_issues
from ...estimator.labels.suggest import suggest
from ...features.backbones.identity import AUTO
from ...models.folder import ModelWriter, load_model
from ...models.images import ImageModel
from ...models.predict.files import PredictionRow, json_value
from ...models.predict.prediction import rows_of
from ...models.saved import SavedModel, adapt
from ...models.support_set import SupportSet, as_set
from ...utils.errors import UserError
from ...utils.files import hash_content
from .errors import UNKNOWN
from .server import Server, Upload
from .settings import MAX_REQUEST_PIXELS

Result = TypeVar("Result")


class Example(NamedTuple):
    """Labelled image of the support set.

    Attributes:
        id: Hash of the pixels, or of the features if the training stored no hash, as 16 hex digits.
        labels: Names of its classes.
    """

    id: str
    labels: list[str]


class Learner(Server):
    """Server whose model changes with labelled images. It holds the lock of the model folder until it is closed.

    Args:
        writer: Right to change the model folder.
        model: The model of the folder with its backbone.
        backbone, pretrained: Arguments of `ImageModel.load` with which it was loaded.

    Raises:
        UserError: If two classes of the model have the same name or label.
    """

    def __init__(self, writer: ModelWriter, model: ImageModel, backbone: str = "", pretrained: str = "") -> None:
        ClassLabels(support_set_of(model.model))  # UserError for names that are not unique
        classifier = HeGraphClassifier.from_model(
            model.model, backbone=backbone or None, pretrained=pretrained or AUTO, precision=model.backbone.precision
        )
        super().__init__(with_ids(model))
        self._parameters = classifier.get_params(deep=False)
        self._folder = writer
        self._writer = ThreadPoolExecutor(1)

    @classmethod
    def load(
        cls, folder: Path, device: str = "cpu", backbone: str = "", pretrained: str = "", precision: str = AUTO
    ) -> Learner:
        """Load a model folder, which no other process changes meanwhile.

        Args:
            folder: Model folder.
            device, backbone, pretrained: Arguments of `ImageModel.load`.
            precision: Precision of the backbone; by default the one of the training.

        Raises:
            UserError: If another process changes the folder, it belongs to the record of a run, the model is damaged
                or cannot be trained incrementally, or the backbone cannot be loaded.
        """
        check_no_record(folder, f"copy it: cp -r {folder} my_model")
        writer = ModelWriter(folder)
        try:
            saved = load_model(folder)
            own = saved.backbone.precision if precision == AUTO else precision
            return cls(writer, ImageModel.load(saved, device, backbone, pretrained, own), backbone, pretrained)
        except BaseException:
            writer.close()
            raise

    @property
    def folder(self) -> Path:
        """The model folder."""
        return self._folder.folder

    def close(self) -> None:
        """Finish the current change, and release the lock."""
        self._writer.shutdown()
        self._folder.close()

    async def _write(self, change: Callable[..., Result], *arguments: Any) -> Result:
        """Run a change after the changes before it."""
        return await asyncio.get_running_loop().run_in_executor(self._writer, change, *arguments)

    def examples(self) -> list[Example]:
        """Labelled images of the model."""
        support_set = support_set_of(self.model.model)
        names = support_set.by_label
        examples = []
        for id, labels in zip(hex_ids(support_set.ids), support_set.image_labels()):
            examples.append(Example(id, [names[label] for label in sorted(as_set(labels))]))
        return examples

    async def identify(self, images: Sequence[Upload]) -> list[str]:
        """Ids of images, as `add` returns them; UserError for an unreadable image, and for too many pixels."""
        async with self.opened(images) as opened:
            return hex_ids(await asyncio.to_thread(image_ids, opened))

    async def add(
        self, images: Sequence[Upload], labels: Sequence[Sequence[str]], classes: Sequence[str] = ()
    ) -> list[str]:
        """Add labelled images and classes. An image that has labels already gets the new ones instead.

        Args:
            images: The images.
            labels: Names of the classes of each image; exactly one for a model with one label per image.
            classes: Names of further classes.

        Returns:
            The id of each image.

        Raises:
            UserError: If an image is unreadable, the images have too many pixels, an image is in the request twice with
                different labels, the number of labels is wrong, another program changed the folder, or the model cannot
                be trained.
        """
        async with self.opened(images) as opened:
            return await self._write(self._add, images, opened, labels, classes)

    def _add(
        self,
        uploads: Sequence[Upload],
        opened: Sequence[Image],
        labels: Sequence[Sequence[str]],
        classes: Sequence[str],
    ) -> list[str]:
        support_set = support_set_of(self.model.model)
        class_labels = ClassLabels(support_set)
        new_classes = {class_labels.find_or_add(name) for name in classes}.difference(support_set.by_label)
        ids = image_ids(opened)
        requested = dict[int, tuple[frozenset[Any], bytes]]()
        for (name, data), number, names in zip(uploads, ids.tolist(), labels):
            row = frozenset(class_labels.find_or_add(each) for each in names)
            if not support_set.multilabel and len(row) != 1:
                raise UserError(f"expected one label for image {name!r}, got {len(row)}")
            if requested.setdefault(number, (row, data))[0] != row:
                raise UserError(f"image {name!r} is in the request twice, with different labels")
        current = defaultdict[int, set[frozenset[Any]]](set)  # an image may be in the support set twice
        for number, label in zip(support_set.ids.tolist(), support_set.image_labels()):
            current[number].add(as_set(label))
        changed = {number: pair for number, pair in requested.items() if current[number] != {pair[0]}}
        if changed or new_classes:
            rest = support_set.without(torch.isin(support_set.ids, torch.tensor([*changed])))
            rows = [row for row, _ in changed.values()]
            pictures = [data for _, data in changed.values()]
            used = new_classes.union(*rows) or {support_set.classes.tolist()[0]}  # an image may have no label
            added = labels_of(rows, used, support_set)
            names = checked_names(added.classes, class_labels.names)
            self._train(rest, lambda training: training.add(pictures or None, added.y, added.classes, names))
        return hex_ids(ids)

    async def remove(self, ids: Sequence[str], classes: Sequence[str] = ()) -> None:
        """Remove images by id, and classes by name.

        With one label per image, the images of a class are removed too. With several, they lose the label.

        Raises:
            UserError: If an id or a class is unknown, another program changed the folder, or the model cannot be
                trained on the remaining images.
        """
        await self._write(self._remove, ids, classes)

    def _remove(self, ids: Sequence[str], classes: Sequence[str]) -> None:
        if not ids and not classes:
            raise UserError("expected ids of images or names of classes, got none")
        support_set = support_set_of(self.model.model)
        known = hex_ids(support_set.ids)
        check_ids(ids, known)
        class_labels = ClassLabels(support_set)
        removed = {class_labels.find(name) for name in classes}
        rest = support_set.without(torch.tensor([id in ids for id in known], dtype=torch.bool))
        rest = rest.of_classes(torch.tensor([label not in removed for label in support_set.by_label]))
        self._reduce(rest)

    async def relabel(self, labels: Mapping[str, Sequence[str]]) -> None:
        """Change the labels of images of the model, by id, to other classes of the model.

        Raises:
            UserError: If an id or a class is unknown, the number of labels is wrong, another program changed the
                folder, or the model cannot be trained.
        """
        await self._write(self._relabel, labels)

    def _relabel(self, labels: Mapping[str, Sequence[str]]) -> None:
        support_set = support_set_of(self.model.model)
        known = hex_ids(support_set.ids)
        check_ids(labels, known)
        class_labels = ClassLabels(support_set)
        changed = support_set.labels.clone()
        for row, id in enumerate(known):
            if id not in labels:
                continue
            places = [support_set.index(class_labels.find(name)) for name in labels[id]]
            if support_set.multilabel:
                changed[row] = torch.isin(torch.arange(changed.shape[1]), torch.tensor(places))
            elif len(places) == 1:
                changed[row] = places[0]
            else:
                raise UserError(f"expected one label for image {id}, got {len(places)}")
        self._reduce(replace(support_set, labels=changed))

    def _reduce(self, support_set: SupportSet) -> None:
        """Train on a changed support set; without text, classes without images are removed."""
        if support_set.positive is None:
            support_set = support_set.of_classes(support_set.counts > 0)
        self._train(None, lambda training: training.reduce(support_set))

    def _train(self, support_set: SupportSet | None, change: Callable[[IncrementalTraining], SavedModel]) -> None:
        """Train after a change, replace the folder, and then the model.

        Args:
            support_set: Support set before the change; None for the one of the model.
            change: Function that trains the model.

        Raises:
            UserError: If another program changed the folder, or the model cannot be trained.
        """
        self._folder.check_unchanged()  # before the training, which takes longer
        saved = self.model.model
        backbone = self.model.backbone
        device = str(backbone.device)
        unlabelled = unlabelled_features_of(saved)
        previous = saved if support_set is None else saved.model_copy(update={"support_set": support_set})
        model = change(IncrementalTraining(self._parameters, previous, device, backbone))
        if unlabelled is not None:
            model, _ = adapt(model, unlabelled, device)
        self._folder.save(model)
        self.model = ImageModel(load_model(self.folder), backbone)  # equal to the model after a restart

    async def suggest(self, images: Sequence[Upload], number: int, top: int) -> dict[str, Any]:
        """Predictions of at most `number` unlabelled images, the image to label first at the beginning.

        Unreadable images follow at the end.
        """
        model = self.model
        problems, features = await self.encode(images, MAX_REQUEST_PIXELS)
        order = await asyncio.to_thread(suggest, model.model, features, number) if len(features) else []
        readable = [name for (name, _), problem in zip(images, problems) if not problem]
        rows = rows_of(model.model, [readable[index] for index in order], model.logits(features[order]), top)
        unreadable = [PredictionRow(name, error=problem) for (name, _), problem in zip(images, problems) if problem]
        return {"suggestions": [json_value(row, False) for row in (*rows, *unreadable)]}

    def issues(self, above: float) -> list[dict[str, Any]]:
        """Labels with a score above a limit, the most suspicious one first."""
        model = self.model.model
        model.check_single_label("the label check")
        support_set = support_set_of(model)
        ids = hex_ids(support_set.ids)
        issues = find_label_issues(
            support_set.keys(),
            support_set.labels,
            model.known_text,
            model.logit_scale,
            model.classnames,
            model.trusts_text,
            support_set.groups,
        )
        return [
            {"id": ids[issue.index], "label": issue.label, "suggested": issue.suggested, "score": round(issue.score, 4)}
            for issue in issues
            if issue.score > above
        ]


class Labels(NamedTuple):
    """Labels of images.

    Attributes:
        y: n labels, or label indicators, booleans of shape `[n, K]`.
        classes: The K sorted labels of classes.
    """

    y: np.ndarray
    classes: np.ndarray


def labels_of(rows: Sequence[frozenset[Any]], classes: set[Any], support_set: SupportSet) -> Labels:
    """Labels of images as arrays, of the kind of a support set. Each row is the set of an image's labels."""
    is_text = support_set.classes.dtype.kind == "U"  # a longer text needs another type
    labels = np.unique(np.array([*classes], dtype=None if is_text else support_set.classes.dtype))
    indicators = np.zeros((len(rows), len(labels)), dtype=bool)
    for place, row in enumerate(rows):
        indicators[place] = [label in row for label in labels.tolist()]
    return Labels(indicators if support_set.multilabel else labels[indicators.argmax(axis=1)], labels)


def check_ids(ids: Collection[str], known: Collection[str]) -> None:
    """Raise UserError if an id is not among the known ones."""
    missing = set(ids).difference(known)
    if missing:
        raise UserError(f"no labelled image has the id {min(missing)!r}", UNKNOWN)


def hex_ids(ids: Tensor) -> list[str]:
    """Ids of images as text, which JavaScript does not round."""
    return [f"{number % 2**64:016x}" for number in ids.tolist()]


def with_ids(model: ImageModel) -> ImageModel:
    """Model whose support set has an id for every image: the hash of the features if the pixels were not stored."""
    support_set = support_set_of(model.model)
    ids = [
        number or int.from_bytes(bytes.fromhex(hash_content(row)[:16]), signed=True)
        for number, row in zip(support_set.ids.tolist(), support_set.keys())
    ]
    identified = replace(support_set, ids=torch.tensor(ids, dtype=torch.long))
    return ImageModel(model.model.model_copy(update={"support_set": identified}), model.backbone)
