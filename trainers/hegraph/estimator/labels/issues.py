"""Label issues: labels of a training set that are likely wrong, by exact leave-one-out.

Each image is classified by the training-free variant fitted to all other images, or to those of other groups
(`leave_one_group_out.py`), at a temperature fitted on the same images. The score of an image with label `y` is

    score = log( |P_c for all classes c except y|_2 / P_y )

with the probability `P_c` of class c, in which the best other class counts most. Class offsets are not used, because
they adapt to the class frequencies of the labels and have no information about a single label.

Shapes: N images, K classes, d feature width.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...method.training.confidence import fit_temperature
from ...utils.errors import UserError
from .leave_one_group_out import left_out_group_logits
from .leave_one_out import default_options

LARGEST_SCORE = 700.0  # whose exponential is finite


@dataclass(frozen=True)
class LabelIssue:
    """Label of an image, judged by a model that was fitted without the image.

    Attributes:
        index: Index of the image.
        label: Label of the image.
        suggested: The most probable other class.
        score: Score of the label, about the log odds of the other classes; above 0, the label is likely wrong.

    Examples:
        >>> from hegraph import HeGraphClassifier
        >>> features = [[1.0, 0.0], [1.0, 0.1], [0.9, 0.0], [0.0, 1.0], [0.1, 1.0], [0.0, 0.8]]
        >>> labels = ["cat", "cat", "dog", "dog", "dog", "dog"]  # the third one is wrong
        >>> classifier = HeGraphClassifier(variant="training_free").fit(features, labels)
        >>> issue = classifier.label_issues(features, labels)[0]
        >>> issue.index, issue.label, issue.suggested, issue.score > 0
        (2, 'dog', 'cat', True)
    """

    index: int
    label: Any
    suggested: Any
    score: float

    @property
    def odds(self) -> float:
        """Approximate odds of the other classes against the label."""
        return math.exp(min(self.score, LARGEST_SCORE))


def find_label_issues(
    features: Tensor,
    labels: Tensor,
    text: Tensor,
    logit_scale: float,
    classes: Sequence[Any],
    trusts_text: bool = True,
    groups: Tensor | None = None,
) -> list[LabelIssue]:
    """Score the label of every image, and sort from the most to the least suspicious one.

    Args:
        features: Unit-norm image features, shape `[N, d]`.
        labels: Indices into `classes`, shape `[N]`.
        text: Unit-norm text features of the classes, shape `[K, d]`.
        logit_scale: CLIP's `tau`.
        classes: Names of the K classes in the result.
        trusts_text: Whether text that does not describe the images is replaced.
        groups: Groups of the images, integers of shape `[N]`, which are left out as a whole; None without groups.

    Raises:
        UserError: If all images have the same label, or are of one group.
    """
    if len(labels.unique()) < 2:
        raise UserError("expected images of at least two classes, got one class; add images of another class")
    alone = torch.arange(len(labels)) if groups is None else groups
    logits = left_out_group_logits(features, labels, alone, text, logit_scale, default_options(labels), trusts_text)
    return rank_labels(logits, labels, classes)


def rank_labels(logits: Tensor, labels: Tensor, classes: Sequence[Any]) -> list[LabelIssue]:
    """Return the result of `find_label_issues`, from the logits `[N, K]` of `left_out_logits`."""
    scores, suggested = label_scores(logits / fit_temperature(logits, labels), labels)
    order = scores.argsort(descending=True, stable=True)
    rows = zip(order.tolist(), labels[order].tolist(), suggested[order].tolist(), scores[order].tolist())
    return [LabelIssue(index, classes[label], classes[other], score) for index, label, other, score in rows]


def label_scores(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Scores of labels and the most probable other classes, both `[N]`, from calibrated logits `[N, K]`."""
    own = logits.gather(1, labels.unsqueeze(1))[:, 0]
    other_logits = logits.scatter(1, labels.unsqueeze(1), -torch.inf)
    return (2 * other_logits).logsumexp(dim=1) / 2 - own, other_logits.argmax(dim=1)
