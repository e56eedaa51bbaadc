"""Support set of a classifier: labelled images, and names and text nodes of its classes.

Images and classes can be added and removed, and a model is trained on the whole support set.

Shapes: N images, V views of each, K classes, d feature width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import compress, zip_longest
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..features.bank import FeatureBank, count_labels, mean_over_views
from ..utils.errors import UserError, unknown

BY_CLASS = "bias."  # prefix of parameters with a row for each class; new classes start with zeros
SAME_IMAGE = 1 - 1e-3  # least cosine between two encodings of an image


@dataclass(frozen=True)
class SupportSet:
    """Labelled images and classes that a classifier is trained on.

    Attributes:
        classes: The K labels.
        names: The K class names.
        features: Unit-norm features of the images, `[V, N, d]`. A model folder stores the views of the training-free
            variant, and the mean of the views, V = 1, of the others.
        labels: Positions of the images' classes in `classes`, shape `[N]`; with several labels per image, indicators,
            booleans of shape `[N, K]`. A class may have no image.
        ids: Hashes of the images' pixels, shape `[N]`, int64; 0 for images that were passed as features, until a server
            that learns (`apps/serve/learning.py`) gives them hashes of their features.
        positive, negative: Text nodes, each `[K, d]`; None if they are computed from the images.
        state: Trained parameters of HeGraphAdapter by name, where further training starts; {} without training.
        groups: Groups of the images, int64 of shape `[N]`, negative for an image without a group; None without groups.
    """

    classes: np.ndarray
    names: tuple[str, ...]
    features: Tensor
    labels: Tensor
    ids: Tensor
    positive: Tensor | None = None
    negative: Tensor | None = None
    state: Mapping[str, Tensor] = field(default_factory=dict)
    groups: Tensor | None = None

    @classmethod
    def of(cls, bank: FeatureBank, state: Mapping[str, Tensor]) -> SupportSet:
        """Support set of a run that was trained on a bank."""
        names = tuple(bank.classnames)
        labels = bank.train_labels.cpu()
        ids = torch.zeros(len(labels), dtype=torch.long)
        positive = bank.text_positive.cpu() if bank.has_text else None
        negative = bank.text_negative.cpu() if bank.has_text else None
        groups = None if bank.train_groups is None else bank.train_groups.cpu()
        return cls(np.array(names), names, bank.train_features.cpu(), labels, ids, positive, negative, state, groups)

    @property
    def counts(self) -> Tensor:
        """Number of images of each class, shape `[K]`."""
        return torch.tensor(count_labels(self.labels, len(self.names)))

    @property
    def multilabel(self) -> bool:
        """Whether an image may have several labels."""
        return self.labels.ndim == 2

    def keys(self) -> Tensor:
        """Features `[N, d]` of the images, averaged over views."""
        return self.features[0] if len(self.features) == 1 else mean_over_views(self.features)

    @property
    def by_label(self) -> dict[Any, str]:
        """Class names by label."""
        return dict(zip(self.classes.tolist(), self.names))

    def image_labels(self) -> list[Any]:
        """Label of each image; with several labels per image, the set of its labels."""
        rows = self.labels.numpy()
        if not self.multilabel:
            return self.classes[rows].tolist()
        return [frozenset(self.classes[row].tolist()) for row in rows]

    def index(self, label: Any) -> int:
        """Position of a class; UserError if no class has this label."""
        labels = self.classes.tolist()
        if label not in labels:
            raise unknown("class", str(label), map(str, labels))
        return labels.index(label)

    def merge(self, more: SupportSet, replaces: Tensor) -> SupportSet:
        """Merge with another support set; the classes of both are sorted by label.

        Labels keep their values, and those of `more` take the type of the earlier ones.

        Args:
            more: The other support set.
            replaces: Classes of `more` whose name and text nodes (if any) replace existing ones, booleans of shape
                `[K of more]`. New classes are among them.

        Raises:
            UserError: If the type of the earlier labels cannot represent a label of `more`, or only one of the two has
                several labels per image.
        """
        if self.multilabel != more.multilabel:
            expected, got = map(label_kind, (self.multilabel, more.multilabel))
            raise UserError(f"expected {expected} per image, as in the earlier calls, got {got}")
        labels = np.concatenate([self.classes, labels_like(more.classes, self.classes)])
        classes, places = np.unique(labels, return_inverse=True)
        old, new = torch.from_numpy(places.reshape(-1)).split([len(self.names), len(more.names)])
        names = dict(zip(old.tolist(), self.names))
        names |= {place: more.names[k] for k, place in enumerate(new.tolist()) if replaces[k]}

        def nodes(mine: Tensor | None, theirs: Tensor | None) -> Tensor | None:
            if mine is None:
                return None
            rows = _scatter(mine, old, len(classes))
            return rows if theirs is None else rows.index_copy(0, new[replaces], theirs[replaces])

        views = math.lcm(len(self.features), len(more.features))
        repeated = [part.features.repeat(views // len(part.features), 1, 1) for part in (self, more)]
        return SupportSet(
            classes,
            tuple(names[place] for place in range(len(classes))),
            torch.cat(repeated, dim=1),
            torch.cat([_moved(self.labels, old, len(classes)), _moved(more.labels, new, len(classes))]),
            torch.cat([self.ids, more.ids]),
            nodes(self.positive, more.positive),
            nodes(self.negative, more.negative),
            scatter_state(self.state, old, len(classes)),
            _joined_groups(self, more),
        )

    def of_classes(self, mask: Tensor) -> SupportSet:
        """Support set of the classes in a mask, booleans of shape `[K]`, with their images."""
        if mask.all():
            return self
        if self.multilabel:  # all images remain, and lose labels
            remaining = self
            labels = self.labels[:, mask]
        else:
            rows = mask[self.labels]
            positions = mask.cumsum(0) - 1  # of the remaining classes
            remaining = self.without(~rows)
            labels = positions[self.labels[rows]]
        return replace(
            remaining,
            classes=self.classes[mask.numpy()],
            names=tuple(compress(self.names, mask.tolist())),
            labels=labels,
            positive=None if self.positive is None else self.positive[mask],
            negative=None if self.negative is None else self.negative[mask],
            state={name: rows[mask] if name.startswith(BY_CLASS) else rows for name, rows in self.state.items()},
        )

    def without(self, mask: Tensor) -> SupportSet:
        """Support set without the images in a mask, booleans of shape `[N]`."""
        groups = None if self.groups is None else self.groups[~mask]
        features = self.features[:, ~mask]
        return replace(self, features=features, labels=self.labels[~mask], ids=self.ids[~mask], groups=groups)

    def find(self, labels: Sequence[Any], queries: Tensor) -> Tensor:
        """Find images by id, or by features.

        Args:
            labels: Label of each of n images.
            queries: Ids `[n]`, or unit-norm features `[n, d]`.

        Returns:
            Mask of the images, booleans of shape `[N]`.

        Raises:
            UserError: If a class is unknown or does not contain the image, or an image is passed twice.
        """
        mask = torch.zeros(len(self.labels), dtype=torch.bool)
        by_id = queries.ndim == 1
        keys = self.keys()
        for position, label in enumerate(labels):
            similarity = (self.ids == queries[position]).float() if by_id else keys @ queries[position]
            similarity = similarity.masked_fill(mask | (self.labels != self.index(label)), -1)
            if not len(similarity) or similarity.max() < SAME_IMAGE:
                problem = f"image {position} is not in the support set of class {label!r}, or was passed twice"
                raise UserError(f"{problem}; pass images of fit, partial_fit or add_class")
            mask[similarity.argmax()] = True
        return mask


def labels_like(labels: np.ndarray, earlier: np.ndarray) -> np.ndarray:
    """Labels of classes with the type of earlier ones.

    Raises:
        UserError: If a label changes its value in this type, such as a fraction among integers, or an integer that
            floating-point numbers round.
    """
    as_objects = earlier.dtype == object  # of which every label can be of another type
    labels = of_one_type(labels)
    earlier = of_one_type(earlier)
    same_kind = labels.dtype.kind == earlier.dtype.kind
    dtype = np.result_type(labels, earlier) if same_kind else earlier.dtype
    converted = labels[:0]
    if same_kind or "U" not in (labels.dtype.kind, earlier.dtype.kind):
        with np.errstate(invalid="ignore"), suppress(TypeError, ValueError):  # such as dates among numbers
            converted = labels.astype(dtype)
    changed = [label for label, new in zip_longest(labels.tolist(), converted.tolist()) if new != label]
    if changed:
        example = earlier.tolist()[0]
        raise UserError(f"the labels so far are such as {example!r}, got {changed[0]!r}; give labels of one kind")
    return converted.astype(object) if as_objects else converted


def of_one_type(labels: np.ndarray) -> np.ndarray:
    """Labels in an array of their own type instead of an array of objects."""
    return np.array(labels.tolist()) if labels.dtype == object else labels


def label_kind(several: bool) -> str:
    """Name in messages of the labels that an image has."""
    return "several labels" if several else "one label"


def as_set(label: Any) -> frozenset[Any]:
    """Labels of an image: the set itself, or a set of its one label."""
    return label if isinstance(label, frozenset) else frozenset([label])


def _joined_groups(first: SupportSet, second: SupportSet) -> Tensor | None:
    """Groups of the images of both support sets; images without groups become groups of their own."""
    mine = first.groups
    theirs = second.groups
    if mine is None and theirs is None:
        return None
    if mine is None:
        mine = groups_of_their_own(len(first.labels), theirs)
    if theirs is None:
        theirs = groups_of_their_own(len(second.labels), mine)
    return torch.cat([mine, theirs])


def groups_of_their_own(count: int, taken: Tensor | None) -> Tensor:
    """Different groups `[count]`, all negative, which are not among the groups `taken`."""
    smallest = 0 if taken is None or not len(taken) else min(0, int(taken.min()))
    return smallest - 1 - torch.arange(count)


def scatter_state(state: Mapping[str, Tensor], positions: Tensor, num_classes: int) -> dict[str, Tensor]:
    """Parameters whose rows for classes move to other positions among `num_classes` classes; new rows are zero."""
    by_class = {
        name: _scatter(rows, positions, num_classes) for name, rows in state.items() if name.startswith(BY_CLASS)
    }
    return {**state, **by_class}


def _moved(labels: Tensor, positions: Tensor, num_classes: int) -> Tensor:
    """Labels, or indicators, whose classes move to other positions among `num_classes` classes."""
    return positions[labels] if labels.ndim == 1 else _scatter(labels.t(), positions, num_classes).t()


def _scatter(rows: Tensor, positions: Tensor, count: int) -> Tensor:
    """Matrix of `count` rows with the given rows at their positions, and zeros elsewhere."""
    return rows.new_zeros(count, *rows.shape[1:]).index_copy(0, positions, rows)
