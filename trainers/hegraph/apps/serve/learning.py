"""Incremental training of the model that a server predicts with.

The model folder is the only state. A change trains a new model, replaces the folder atomically, and then replaces the
model of the predictions. Changes run one after the other in one thread, so a killed process loses at most the changes
that were not answered.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

from ...estimator.classes import checked_names
from ...estimator.classifier import HeGraphClassifier
from ...estimator.incremental import (
    Addition,
    Trainer,
    check_no_record,
    image_ids,
    labels_by_name,
    support_set_of,
    unlabelled_features_of,
)
from ...estimator.labels.issues import find_label_issues
from ...estimator.labels.suggest import suggest
from ...experiments.lock import Locked, lock_folder
from ...features.backbones.identity import AUTO
from ...models.folder import CONFIG, load_model, save_model
from ...models.images import ImageModel
from ...models.predict.files import PredictionRow, json_value
from ...models.predict.prediction import rows_of
from ...models.saved import adapt
from ...models.support_set import SupportSet, as_set
from ...utils.errors import UserError, unknown
from ...utils.files import file_version, hash_content
from .errors import CHANGED, UNKNOWN
from .server import Server, Upload

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
    """Server whose model changes with labelled images. It holds a lock of the model folder until it is closed.

    Args:
        folder: Model folder.
        model: The model of the folder with its backbone.
        backbone, pretrained: Arguments of `ImageModel.load` with which it was loaded.

    Raises:
        UserError: If another server learns in the folder, the folder belongs to the record of a run, or the model
            cannot be trained incrementally.
    """

    def __init__(self, folder: Path, model: ImageModel, backbone: str = "", pretrained: str = "") -> None:
        check_no_record(folder, f"copy it: cp -r {folder} my_model")
        labels_by_name(support_set_of(model.model), ())  # UserError for names that are not unique
        classifier = HeGraphClassifier.from_model(
            model.model, backbone=backbone or None, pretrained=pretrained or AUTO, precision=model.backbone.precision
        )
        super().__init__(with_ids(model))
        self.folder, self._parameters = folder, classifier.get_params(deep=False)
        self._version = file_version(folder / CONFIG)
        self._writer = ThreadPoolExecutor(1)
        self._lock, place = ExitStack(), folder.with_name(f".{folder.name}.learning")  # `folder` itself is replaced
        try:
            self._lock.enter_context(lock_folder(place))
        except Locked as error:
            raise UserError(str(error).replace(str(place), str(folder))) from error

    def close(self) -> None:
        """Finish the current change, and release the lock."""
        self._writer.shutdown()
        self._lock.close()

    async def _write(self, change: Callable[..., Result], *arguments: Any) -> Result:
        """Run a change after the changes before it."""
        return await asyncio.get_running_loop().run_in_executor(self._writer, change, *arguments)

    def examples(self) -> list[Example]:
        """Labelled images of the model."""
        support_set = support_set_of(self.model.model)
        names, rows = support_set.by_label, map(as_set, support_set.image_labels())
        return [Example(id, [names[x] for x in sorted(row)]) for id, row in zip(hex_ids(support_set.ids), rows)]

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
                different labels, the number of labels is wrong, or the model cannot be trained.
        """
        async with self.opened(images) as opened:
            names = [name for name, _ in images]
            return await self._write(self._add, names, opened, labels, classes)

    def _add(
        self,
        image_names: Sequence[str],
        images: Sequence[Image],
        labels: Sequence[Sequence[str]],
        classes: Sequence[str],
    ) -> list[str]:
        support_set = support_set_of(self.model.model)
        label_of = labels_by_name(support_set, chain(classes, *labels))
        ids, requested = image_ids(images), dict[int, tuple[frozenset[Any], Image]]()
        for name, image, number, names in zip(image_names, images, ids.tolist(), labels):
            row = frozenset(label_of[each] for each in names)
            if not support_set.multilabel and len(row) != 1:
                raise UserError(f"expected one label for image {name!r}, got {len(row)}")
            if requested.setdefault(number, (row, image))[0] != row:
                raise UserError(f"image {name!r} is in the request twice, with different labels")
        current = defaultdict[int, set[frozenset[Any]]](set)  # an image may be in the support set twice
        for number, label in zip(support_set.ids.tolist(), support_set.image_labels()):
            current[number].add(as_set(label))
        changed = {number: pair for number, pair in requested.items() if current[number] != {pair[0]}}
        new = {label_of[name] for name in classes} - {*support_set.by_label}
        if changed or new:
            rest = support_set.without(torch.isin(support_set.ids, torch.tensor([*changed])))
            names_of = {label: name for name, label in label_of.items()}
            self._train(rest, addition(rest, [*changed.values()], new, names_of))
        return hex_ids(ids)

    async def remove(self, ids: Sequence[str], classes: Sequence[str] = ()) -> None:
        """Remove images by id, and classes by name.

        With one label per image, the images of a class are removed too. With several, they lose the label.

        Raises:
            UserError: If an id or a class is unknown, or the model cannot be trained on the remaining images.
        """
        await self._write(self._remove, ids, classes)

    def _remove(self, ids: Sequence[str], classes: Sequence[str]) -> None:
        if not ids and not classes:
            raise UserError("expected ids of images or names of classes, got none")
        support_set = support_set_of(self.model.model)
        known, names = hex_ids(support_set.ids), support_set.names
        if missing := set(ids).difference(known):
            raise UserError(f"no labelled image has the id {min(missing)!r}", UNKNOWN)
        if missing := set(classes).difference(names):
            raise unknown("class", min(missing), names)
        rest = support_set.without(torch.tensor([id in ids for id in known], dtype=torch.bool))
        rest = rest.of_classes(torch.tensor([name not in classes for name in names]))
        self._train(rest.of_classes(rest.counts > 0) if rest.positive is None else rest)

    def _train(self, support_set: SupportSet, more: Addition | None = None) -> None:
        """Train on a support set with an addition, replace the folder, and then the model."""
        if file_version(self.folder / CONFIG) != self._version:
            raise UserError(f"{self.folder} was changed by another program; start the server again", CHANGED)
        saved, backbone = self.model.model, self.model.backbone
        unlabelled, device = unlabelled_features_of(saved), str(backbone.device)
        previous = saved.model_copy(update={"support_set": support_set}) if more else saved
        model, _ = Trainer(self._parameters, previous, device, backbone).train(more or support_set)
        if unlabelled is not None:
            model, _ = adapt(model, unlabelled, device)
        save_model(model, self.folder)
        self._version = file_version(self.folder / CONFIG)
        self.model = ImageModel(load_model(self.folder), backbone)  # equal to the model after a restart

    async def suggest(self, images: Sequence[Upload], number: int, top: int) -> dict[str, Any]:
        """Predictions of at most `number` unlabelled images, the image to label first at the beginning.

        Unreadable images follow at the end.
        """
        model = self.model
        problems, features = await self.encode(images)
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
        ids, images = hex_ids(support_set.ids), (support_set.keys(), support_set.labels)
        issues = find_label_issues(*images, model.text_positive, model.logit_scale, model.classnames)
        return [
            {"id": ids[issue.index], "label": issue.label, "suggested": issue.suggested, "score": round(issue.score, 4)}
            for issue in issues
            if issue.score > above
        ]


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


def addition(
    support_set: SupportSet,
    images: Sequence[tuple[frozenset[Any], Image]],
    classes: Iterable[Any],
    names: dict[Any, str],
) -> Addition:
    """Addition of images with their labels, and of classes, to a support set; `names` are class names by label."""
    rows = [row for row, _ in images]
    used = set(classes).union(*rows) or {support_set.classes.tolist()[0]}  # an image may have no label
    labels = np.unique([*used])
    y = np.array([[label in row for label in labels.tolist()] for row in rows], dtype=bool).reshape(-1, len(labels))
    if not support_set.multilabel:
        y = labels[y.argmax(axis=1)]
    return Addition([image for _, image in images] or None, y, labels, checked_names(labels, names))
