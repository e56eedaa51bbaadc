"""What a classifier was taught: labelled images, and the names and text nodes of its classes.

More can be added and taken back, and a model is made of the whole. So any order of changes ends where one training on
what is left would begin.

Shapes: N images, V views of each, K classes, d feature width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..features.bank import FeatureBank, mean_over_views
from ..utils.errors import UserError, unknown

BY_CLASS = "bias."  # parameters of this prefix have one row for each class; a class that is new starts with zeros
ALIKE = 1e-3  # cosines of the features of one image, encoded twice, differ from 1 by less


@dataclass(frozen=True)
class SupportSet:
    """What a classifier was taught.

    Attributes:
        classes: The K labels.
        names: The K class names.
        features: Unit-norm features of the images, `[V, N, d]`. A model folder keeps the mean of the views, V = 1.
        labels: Positions of the images' classes in `classes`, shape `[N]`. A class may have no image.
        ids: Hashes of the images' pixels, shape `[N]`, int64; 0 for an image that came as features.
        positive, negative: Text nodes, each `[K, d]`; None where they are made of the images.
        state: The trained parameters of HeGraphAdapter, by name, from which a training can go on; {} without.
    """

    classes: np.ndarray
    names: tuple[str, ...]
    features: Tensor
    labels: Tensor
    ids: Tensor
    positive: Tensor | None = None
    negative: Tensor | None = None
    state: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, bank: FeatureBank, state: Mapping[str, Tensor]) -> SupportSet:
        """Those of a run that was trained on a bank."""
        names, labels = tuple(bank.classnames), bank.train_labels.cpu()
        text = bank.text_positive.cpu(), bank.text_negative.cpu()
        ids = torch.zeros_like(labels)
        return cls(np.array(names), names, bank.train_features.cpu(), labels, ids, *text, state)

    @property
    def counts(self) -> Tensor:
        """How many images each class has, shape `[K]`."""
        return self.labels.bincount(minlength=len(self.names))

    def keys(self) -> Tensor:
        """One feature of each image, shape `[N, d]`."""
        return self.features[0] if len(self.features) == 1 else mean_over_views(self.features)

    @property
    def by_label(self) -> dict[Any, str]:
        """The names of the classes by their labels."""
        return dict(zip(self.classes.tolist(), self.names))

    def place(self, label: Any) -> int:
        """The position of a class; raises UserError if there is none of this label."""
        known = self.classes.tolist()
        if label not in known:
            raise unknown("class", str(label), map(str, known))
        return known.index(label)

    def process_group(self, more: SupportSet, fresh: Tensor) -> SupportSet:
        """These lessons and more, with the classes of both in sorted order.

        `fresh`, booleans of shape `[K of more]`, says which classes of `more` come with their name, and with their text
        nodes if there are any; of the others, those that are here are kept.

        Raises:
            UserError: If labels here are text and others are not, so that they cannot be sorted together.
        """
        first, other = self.classes.tolist()[0], more.classes.tolist()[0]
        if isinstance(first, str) != isinstance(other, str):
            raise UserError(f"the labels so far are such as {first!r}, got {other!r}; give labels of one kind")
        classes, places = np.unique(np.concatenate([self.classes, more.classes]), return_inverse=True)
        old, new = torch.from_numpy(places.reshape(-1)).split([len(self.names), len(more.names)])
        names = dict(zip(old.tolist(), self.names))
        names |= {place: more.names[k] for k, place in enumerate(new.tolist()) if fresh[k]}

        def nodes(mine: Tensor | None, theirs: Tensor | None) -> Tensor | None:
            if mine is None:
                return None
            found = _placed(mine, old, len(classes))
            return found if theirs is None else found.index_copy(0, new[fresh], theirs[fresh])

        views = math.lcm(len(self.features), len(more.features))
        repeated = [part.features.repeat(views // len(part.features), 1, 1) for part in (self, more)]
        return SupportSet(
            classes,
            tuple(names[place] for place in range(len(classes))),
            torch.cat(repeated, dim=1),
            torch.cat([old[self.labels], new[more.labels]]),
            torch.cat([self.ids, more.ids]),
            nodes(self.positive, more.positive),
            nodes(self.negative, more.negative),
            spread(self.state, old, len(classes)),
        )

    def of_classes(self, kept: Tensor) -> SupportSet:
        """Those of some classes, with their images; `kept` is booleans of shape `[K]`."""
        if kept.all():
            return self
        places, rows = kept.cumsum(0) - 1, kept[self.labels]
        return replace(
            self.without(~rows),
            classes=self.classes[kept.numpy()],
            names=tuple(name for name, keep in zip(self.names, kept.tolist()) if keep),
            labels=places[self.labels[rows]],
            positive=None if self.positive is None else self.positive[kept],
            negative=None if self.negative is None else self.negative[kept],
            state={name: rows[kept] if name.startswith(BY_CLASS) else rows for name, rows in self.state.items()},
        )

    def without(self, gone: Tensor) -> SupportSet:
        """All but some images; `gone` is booleans of shape `[N]`."""
        return replace(self, features=self.features[:, ~gone], labels=self.labels[~gone], ids=self.ids[~gone])

    def find(self, labels: Sequence[Any], wanted: Tensor) -> Tensor:
        """Which images are meant, booleans of shape `[N]`: of each label, the image of the id that is `wanted`, `[n]`,
        or the one that is most similar to the features that are, `[n, d]`.

        Raises:
            UserError: If a class is unknown, or has no such image that was not named before.
        """
        found = torch.zeros(len(self.labels), dtype=torch.bool)
        by_id, keys = wanted.ndim == 1, self.keys()
        for position, label in enumerate(labels):
            likeness = (self.ids == wanted[position]).float() if by_id else keys @ wanted[position]
            likeness = likeness.masked_fill(found | (self.labels != self.place(label)), -1)
            if not len(likeness) or likeness.max() < 1 - ALIKE:
                raise UserError(f"image {position} was not taught as an image of class {label!r}, or is given twice")
            found[likeness.argmax()] = True
        return found


def spread(state: Mapping[str, Tensor], places: Tensor, num_classes: int) -> dict[str, Tensor]:
    """Parameters whose rows of classes go to other places, among so many classes."""
    of_class = {name: _placed(rows, places, num_classes) for name, rows in state.items() if name.startswith(BY_CLASS)}
    return {**state, **of_class}


def _placed(rows: Tensor, places: Tensor, count: int) -> Tensor:
    """So many rows, of which those at the places are given and the others zeros."""
    return rows.new_zeros(count, *rows.shape[1:]).index_copy(0, places, rows)
