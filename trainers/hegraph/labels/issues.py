"""Which labels of a training set seem wrong.

Each image is scored by the closed form without it (`left_out.py`), at a temperature that is fitted on the same images:

    score = log( |(p_c) of the classes c that are not y|_2 / p_y )

for an image with label `y`. The best other class counts most. Class offsets are left out: they move the classes towards
occurring as often as the labels say, which says nothing of one label.

Shapes: N images, K classes, d feature width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..training.confidence import fit_temperature
from ..utils.errors import UserError
from .left_out import free_options, left_out_logits


@dataclass(frozen=True)
class LabelIssue:
    """What a model that has not seen an image says of its label.

    Attributes:
        index: Position of the image.
        label: Its label.
        suggested: The likeliest other class.
        score: How suspicious the label is: above 0, the others are likelier by their calibrated probabilities.
    """

    index: int
    label: Any
    suggested: Any
    score: float


def find_label_issues(
    features: Tensor, labels: Tensor, text: Tensor, logit_scale: float, classes: Sequence[Any]
) -> list[LabelIssue]:
    """One for each image, the most suspicious first.

    Args:
        features: Unit-norm, shape `[N, d]`.
        labels: Positions in `classes`, shape `[N]`.
        text: Unit-norm text features of the classes, shape `[K, d]`.
        logit_scale: CLIP's `tau`.
        classes: What the K classes are called in the result.

    Raises:
        UserError: If the images are of fewer than two classes.
    """
    if len(labels.unique()) < 2:
        raise UserError("labels can be checked where images of at least two classes are there")
    options = free_options(int(labels.bincount().max()))
    logits = left_out_logits(features, labels, text, logit_scale, options, offsets=False)
    return issues_of(logits, labels, classes)


def issues_of(logits: Tensor, labels: Tensor, classes: Sequence[Any]) -> list[LabelIssue]:
    """As `find_label_issues`, from what models without each image say of it, logits `[N, K]`."""
    scores, others = suspicions(logits / fit_temperature(logits, labels), labels)
    order = scores.argsort(descending=True, stable=True).tolist()
    found = labels.tolist(), others.tolist(), scores.tolist()
    return [LabelIssue(i, classes[found[0][i]], classes[found[1][i]], found[2][i]) for i in order]


def suspicions(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The scores and the likeliest other classes, both `[N]`, from calibrated logits `[N, K]`."""
    own = logits.gather(1, labels.unsqueeze(1))[:, 0]
    others = logits.scatter(1, labels.unsqueeze(1), -torch.inf)
    return (2 * others).logsumexp(dim=1) / 2 - own, others.argmax(dim=1)
