"""Which labels of a training set seem wrong.

Each image is scored by a model that has not seen it (`left_out.py`): by how much likelier another class is than its
label. A wrong label also moves the model that the other images are scored by. So, in a second round, the images that
seemed wrong are left out for all others.

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

ROUNDS = 2


@dataclass(frozen=True)
class LabelIssue:
    """What a model that has not seen an image says of its label.

    Attributes:
        index: Position of the image.
        label: Its label.
        suggested: The likeliest other class.
        score: How much likelier that is, the log of the ratio of the two calibrated probabilities: above 0 the label
            seems wrong.
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
    logits = suspicion_logits(features, labels, text, logit_scale)
    scores, others = margins(logits / fit_temperature(logits, labels), labels)
    order = scores.argsort(descending=True, stable=True).tolist()
    found = labels.tolist(), others.tolist(), scores.tolist()
    return [LabelIssue(i, classes[found[0][i]], classes[found[1][i]], found[2][i]) for i in order]


def suspicion_logits(features: Tensor, labels: Tensor, text: Tensor, logit_scale: float) -> Tensor:
    """Logits `[N, K]` of each image by a model without it, after all rounds; arguments of `find_label_issues`.

    An image that seemed wrong counts, from the second round on, for the class that it seemed to be. Its own label and
    class never count for itself.
    """
    options = free_options(int(labels.bincount().max()))
    believed = labels
    for _ in range(ROUNDS):
        logits = left_out_logits(features, believed, text, logit_scale, options)
        scores, others = margins(logits, labels)
        believed = torch.where(scores > 0, others, labels)
    return logits


def margins(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """By how much the logit of the best other class is above that of the label, and which class that is, both `[N]`."""
    own = logits.gather(1, labels.unsqueeze(1))
    others = logits.scatter(1, labels.unsqueeze(1), -torch.inf)
    best = others.max(dim=1)
    return best.values - own[:, 0], best.indices
