"""Order of the classes of a model: that of its training, or sorted by label as scikit-learn expects.

Shapes: K classes, d feature width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from ..method.cache import FoldedClassifier
from ..method.unlabelled import ClassSums
from .saved import Prompts, SavedModel
from .support_set import BY_CLASS, SupportSet

Value = TypeVar("Value")


def class_labels(model: SavedModel) -> np.ndarray:
    """Labels of the K classes of a model, in its order: those of the Python API, or else the class names."""
    return np.array(model.classnames if model.labels is None else model.labels)


def with_sorted_classes(model: SavedModel) -> SavedModel:
    """The same model with its classes sorted by label; the model itself if they are sorted already.

    A model of the command line has the classes in the order of its data set. The columns of scikit-learn's
    `predict_proba` are in the order of `classes_`, and its metrics expect sorted `classes_`.
    """
    order = np.argsort(class_labels(model), kind="stable")
    if (np.diff(order) == 1).all():
        return model
    return reordered(model, torch.from_numpy(order))


def reordered(model: SavedModel, order: Tensor) -> SavedModel:
    """The same model with its classes in another order.

    Cached images and labelled images stay in their order. The transfer to unseen classes, the temperature, and the
    scores of known images do not depend on the order of classes.

    Args:
        model: The model, without `fitted`.
        order: Position in the model of each class, a permutation of shape `[K]`.
    """
    positions = order.tolist()
    trust = model.text_trust
    changed = {
        "classnames": picked(model.classnames, positions),
        "class_ids": picked(model.class_ids, positions),
        "labels": None if model.labels is None else picked(model.labels, positions),
        "images": None if model.images is None else picked(model.images, positions),
        "prompts": None if model.prompts is None else _prompts(model.prompts, positions),
        "text_trust": trust and trust.model_copy(update={"weights": picked(trust.weights, positions)}),
        "text_positive": model.text_positive[order],
        "sets": model.sets and model.sets.of_classes(positions),
        "thresholds": _rows(model.thresholds, order),
        "class_nodes": _rows(model.class_nodes, order),
        "classifier": _classifier(model.classifier, order),
        "labelled": model.labelled and _class_sums(model.labelled, order),
        "support_set": model.support_set and _support_set(model.support_set, order),
    }
    return model.model_copy(update=changed)


def picked(values: Sequence[Value], positions: Sequence[int]) -> tuple[Value, ...]:
    """Values at some positions, in the order of the positions."""
    return tuple(values[position] for position in positions)


def _rows(matrix: Tensor | None, order: Tensor) -> Tensor | None:
    """Rows of classes in another order; None stays None."""
    return None if matrix is None else matrix[order]


def _prompts(prompts: Prompts, positions: Sequence[int]) -> Prompts:
    positive = [[*picked(group, positions)] for group in prompts.positive]
    return Prompts(positive=positive, negative=[*picked(prompts.negative, positions)])


def _classifier(classifier: FoldedClassifier, order: Tensor) -> FoldedClassifier:
    """Classifier with its classes in another order. `order.argsort()` has the new position of each class."""
    labels = None if classifier.labels is None else order.argsort()[classifier.labels]
    return replace(classifier, weights=classifier.weights[order], bias=_rows(classifier.bias, order), labels=labels)


def _class_sums(sums: ClassSums, order: Tensor) -> ClassSums:
    return replace(sums, counts=sums.counts[order], sums=sums.sums[order])


def _support_set(support_set: SupportSet, order: Tensor) -> SupportSet:
    labels = support_set.labels
    by_class = {name: rows[order] for name, rows in support_set.state.items() if name.startswith(BY_CLASS)}
    return replace(
        support_set,
        classes=support_set.classes[order.numpy()],
        names=picked(support_set.names, order.tolist()),
        labels=labels[:, order] if support_set.multilabel else order.argsort()[labels],
        positive=_rows(support_set.positive, order),
        negative=_rows(support_set.negative, order),
        state={**support_set.state, **by_class},
    )
