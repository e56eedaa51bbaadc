"""State of a teach project as its page shows it, and the evaluation of its model without further images.

Labels are checked by leave-one-out, or without the group of the image (`estimator/labels/issues.py`). The accuracy is
measured on held-out images (`estimator/labels/held_out.py`): by leave-one-out, or with groups, or up to 4 images per
class, in balanced folds (`folds.py`). An action changes the contents at once; the model and then its evaluation follow.
Until then, the lists omit images that are at another place.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...estimator.incremental import support_set_of
from ...estimator.labels import SUSPICIOUS
from ...estimator.labels.held_out import held_out_predictions
from ...estimator.labels.issues import LabelIssue, rank_labels
from ...estimator.labels.leave_one_group_out import leave_one_group_out
from ...features.backbones.base import Backbone
from ...models.saved import SavedModel
from ..demo.answer import UNUSUAL
from .contents import UNLABELLED, Contents, Picture
from .folds import folds_of_pictures

MAX_LISTED = 24  # suggestions, and suspicious labels
CONFIDENT = 0.95  # probability from which predictions are accepted together
MAX_TRIED_WORK = 2 * 10**8  # squared number of images times classes, up to which changes of labels are tried


class Suggestion(NamedTuple):
    """Unlabelled image with its predicted class.

    Attributes:
        probability: Probability of the class.
        share_below: Fraction of images of known classes with a lower score; None if unknown.
    """

    picture: Picture
    label: str
    probability: float
    share_below: float | None

    @property
    def is_unusual(self) -> bool:
        """Whether the image may belong to none of the classes."""
        return self.share_below is not None and self.share_below < UNUSUAL


@dataclass(frozen=True)
class View:
    """State of a project, as the page shows it.

    Attributes:
        number: Version of the view, which grows by 1; 0 before the first training.
        contents: Contents of the folder, without unreadable images.
        waiting: Number of images that are not encoded yet.
        problems: Unreadable images, each with the reason.
        model: Trained model; None with fewer than two classes.
        backbone: Backbone of the model.
        trained_on: Images of the model's support set, in its order.
        ranked: Unlabelled images of the model, most useful first.
        confident: Unlabelled images of the model whose predicted class is probable (`CONFIDENT`) and that are not
            unusual, each with the class.
        is_evaluated: Whether the evaluation below belongs to the model; otherwise it is of an earlier one.
        correct, evaluated: Held-out images: number of correctly classified images, and of all images.
        num_groups: Number of groups of the evaluated images; 0 if no two of them share a group.
        scores: Held-out images: number of correctly classified images, and of all images, of each class.
        before: `accuracy` of the evaluation before; None if unknown.
        confusions: Errors on held-out images as (label, predicted class, number of images), most frequent first.
        suspicious: Images with suspicious labels, most suspicious first.
        corrected: `correct` after the label of an issue, by its path, is changed to the suggested one.
    """

    number: int
    contents: Contents
    waiting: int = 0
    problems: list[str] = field(default_factory=list)
    model: SavedModel | None = None
    backbone: Backbone | None = None
    trained_on: list[Picture] = field(default_factory=list)
    ranked: list[Suggestion] = field(default_factory=list)
    confident: list[tuple[Picture, str]] = field(default_factory=list)
    is_evaluated: bool = True
    correct: int = 0
    evaluated: int = 0
    num_groups: int = 0
    scores: dict[str, tuple[int, int]] = field(default_factory=dict)
    before: float | None = None
    confusions: list[tuple[str, str, int]] = field(default_factory=list)
    suspicious: list[tuple[Picture, LabelIssue]] = field(default_factory=list)
    corrected: dict[str, int] = field(default_factory=dict)

    @property
    def accuracy(self) -> float | None:
        """Macro accuracy on held-out images, from 0 to 1: the mean over the classes with images; None without images.

        It does not depend on the sizes of the classes.
        """
        shares = [correct / count for correct, count in self.scores.values() if count]
        return sum(shares) / len(shares) if shares else None

    @cached_property
    def has_one_group(self) -> bool:
        """Whether all training images, at least two, are of one group, so that none can be held out."""
        groups = None if self.model is None else support_set_of(self.model).groups
        return groups is not None and len(groups.unique()) == 1 < len(groups)

    @cached_property
    def neediest(self) -> tuple[str, int, int] | None:
        """Class that needs images most, with the numbers of its correctly classified images and of its images.

        None before the first evaluation.
        """
        if not self.scores:
            return None
        rows = []
        for name, pictures in self.contents.classes.items():
            if name in self.scores or not pictures:
                rows.append((name, *self.scores.get(name, (0, 0))))
        return find_neediest(rows) if rows else None

    @cached_property
    def places(self) -> dict[Picture, str]:
        """Place of each image."""
        return self.contents.pictures()

    @cached_property
    def duplicates(self) -> dict[str, list[str]]:
        """Classes of each image that is in several classes, by SHA-256."""
        return {digest: names for digest, names in self.contents.classes_of().items() if len(names) > 1}

    @cached_property
    def by_digest(self) -> dict[str, Picture]:
        """An image for each SHA-256."""
        return {picture.digest: picture for picture in self.places}

    @cached_property
    def issues(self) -> list[tuple[Picture, LabelIssue]]:
        """Suspicious labels that were neither changed nor confirmed, at most `MAX_LISTED`."""
        classes = self.contents.classes
        unchanged = [each for each in self.suspicious if self.places.get(each[0]) == each[1].label]
        confirmed = self.contents.confirmed
        open_issues = [each for each in unchanged if each[0].digest not in confirmed and each[1].suggested in classes]
        return open_issues[:MAX_LISTED]

    @cached_property
    def suggestions(self) -> list[Suggestion]:
        """Suggested images that are still unlabelled and whose predicted class exists."""
        return [each for each in self.ranked if self._is_open(each.picture, each.label)]

    @cached_property
    def acceptable(self) -> list[tuple[Picture, str]]:
        """Confident predictions for images that are still unlabelled, each with its class."""
        return [(picture, label) for picture, label in self.confident if self._is_open(picture, label)]

    def _is_open(self, picture: Picture, label: str) -> bool:
        return self.places.get(picture) == UNLABELLED and label in self.contents.folders


def has_same_training(view: View, other: View) -> bool:
    """Whether the models of two views have the same backbone, classes, images and groups.

    Then they have the same evaluation.
    """
    if view.model is None or other.model is None:
        return view.model is other.model
    same_data = view.model.classnames == other.model.classnames and view.trained_on == other.trained_on
    return same_data and has_same_groups(view.model, other.model) and view.backbone is other.backbone


def has_same_groups(model: SavedModel, other: SavedModel) -> bool:
    """Whether the images of two models with the same images have the same groups."""
    groups = support_set_of(model).groups
    other_groups = support_set_of(other).groups
    if groups is None or other_groups is None:
        return groups is other_groups
    return torch.equal(groups, other_groups)


def evaluation_of(view: View) -> dict[str, Any]:
    """Evaluate the model of a view without further images; returns the fields of `View` that change.

    Without a model, or if the images are of fewer than two classes or of one group, there is nothing to evaluate.
    """
    empty: dict[str, Any] = {"correct": 0, "evaluated": 0, "num_groups": 0, "scores": {}, "confusions": []}
    empty |= {"suspicious": [], "corrected": {}}
    model = view.model
    if model is None or view.has_one_group:
        return empty
    support_set = support_set_of(model)
    labels = support_set.labels
    names = support_set.names
    counts = support_set.counts
    groups = support_set.groups
    if (counts > 0).sum() < 2:
        return empty
    features = support_set.features[0]
    alone = torch.arange(len(labels)) if groups is None else groups
    trained = (model.known_text, model.logit_scale, model.trusts_text, model.class_prior)
    logits, left_out = leave_one_group_out(features, labels, alone, *trained)
    issues = rank_labels(logits, labels, names)
    predicted = held_out_of(model, view.trained_on, labels, left_out)
    pairs = Counter((names[a], names[b]) for a, b in zip(labels.tolist(), predicted.tolist()) if a != b)
    num_groups = len(labels) if groups is None else len(groups.unique())
    right = labels[predicted == labels].bincount(minlength=len(names)).tolist()
    return {
        "correct": sum(right),
        "evaluated": len(labels),
        "num_groups": num_groups if num_groups < len(labels) else 0,
        "scores": dict(zip(names, zip(right, counts.tolist()))),
        "confusions": [(*pair, count) for pair, count in pairs.most_common(MAX_LISTED)],
        "suspicious": [(view.trained_on[issue.index], issue) for issue in issues if issue.score > SUSPICIOUS],
        "corrected": {},
    }


def held_out_of(
    model: SavedModel, pictures: Sequence[Picture], labels: Tensor, left_out: Tensor | None = None
) -> Tensor:
    """Classify each image of the support set of a model without it; returns the predicted classes, shape `[N]`.

    `pictures` are the images. `labels`, shape `[N]`, may differ from those of the model. `left_out` is as for
    `held_out_predictions`.
    """
    support_set = support_set_of(model)
    groups = support_set.groups
    return held_out_predictions(
        support_set.features[0],
        labels,
        model.known_text,
        model.logit_scale,
        model.trusts_text,
        model.class_prior,
        groups,
        folds_of_pictures(pictures, labels, groups),
        left_out,
    )


def find_neediest(classes: Sequence[tuple[str, int, int]]) -> tuple[str, int, int]:
    """Find the class that needs images most: one without images, else the one with the lowest accuracy.

    The accuracy is estimated by Laplace's rule of succession, `(correct + 1) / (count + 2)`.

    Args:
        classes: Name, number of correctly classified images, and number of images of each class.

    Returns:
        The row of the class.
    """

    def priority(row: tuple[str, int, int]) -> tuple[bool, float, int, str]:
        name, correct, count = row
        return count > 0, (correct + 1) / (count + 2), count, name

    return min(classes, key=priority)
