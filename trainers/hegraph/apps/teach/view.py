"""State of a teach project as its page shows it, and the evaluation of its model by leave-one-out.

Labels are checked and the accuracy is measured by leave-one-out (`estimator/labels/left_out.py`).
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, cast

from torch import Tensor

from ...estimator.incremental import support_set_of
from ...estimator.labels import SUSPICIOUS
from ...estimator.labels.issues import LabelIssue, rank_labels
from ...estimator.labels.left_out import leave_one_out
from ...features.backbones.clip import Backbone
from ...models.saved import SavedModel
from .contents import Contents, Picture

MAX_LISTED = 24  # suggestions, and suspicious labels


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


@dataclass(frozen=True)
class View:
    """State of a project, as the page shows it.

    Attributes:
        number: Version of the view, which grows by 1.
        contents: Contents of the folder, without unreadable images.
        waiting: Number of images that are not encoded yet.
        problems: Unreadable images, each with the reason.
        model: Trained model; None with fewer than two classes.
        backbone: Backbone of the model.
        correct, evaluated: Leave-one-out: number of correctly classified images, and of all images.
        before: Leave-one-out accuracy before the last change of the images; None if unknown.
        neediest: Class that needs images most, with the numbers of its correctly classified images and of its images.
        confusions: Leave-one-out errors as (label, predicted class, number of images), most frequent first.
        issues: Images with suspicious labels, most suspicious first.
        corrected: `correct` after the label of an issue, by its path, is changed to the suggested one.
        suggestions: Unlabelled images, most useful first.
        trained_on: Images of the model's support set, in its order.
    """

    number: int
    contents: Contents
    waiting: int = 0
    problems: list[str] = field(default_factory=list)
    model: SavedModel | None = None
    backbone: Backbone | None = None
    correct: int = 0
    evaluated: int = 0
    before: float | None = None
    neediest: tuple[str, int, int] | None = None
    confusions: list[tuple[str, str, int]] = field(default_factory=list)
    issues: list[tuple[Picture, LabelIssue]] = field(default_factory=list)
    corrected: dict[str, int] = field(default_factory=dict)
    suggestions: list[Suggestion] = field(default_factory=list)
    trained_on: list[Picture] = field(default_factory=list)

    @property
    def accuracy(self) -> float | None:
        """Leave-one-out accuracy, from 0 to 1; None without images in two classes."""
        return self.correct / self.evaluated if self.evaluated else None


def evaluated(view: View) -> View:
    """Add the leave-one-out accuracy, confusions and label issues of the model to a view.

    The view is unchanged if it has no model, or fewer than two classes have images.
    """
    if view.model is None:
        return view
    support_set = support_set_of(view.model)
    labels = support_set.labels
    names = support_set.names
    counts = support_set.counts
    if (counts > 0).sum() < 2:
        return view
    logits, predicted = leave_one_out_of(view.model, labels)
    pairs = Counter((names[a], names[b]) for a, b in zip(labels.tolist(), predicted.tolist()) if a != b)
    ranked = [(view.trained_on[issue.index], issue) for issue in rank_labels(logits, labels, names)]
    suspicious = [(picture, issue) for picture, issue in ranked if issue.score > SUSPICIOUS]
    confirmed = view.contents.confirmed
    issues = [(picture, issue) for picture, issue in suspicious if picture.digest not in confirmed]
    right = labels[predicted == labels].bincount(minlength=len(names)).tolist()
    return replace(
        view,
        correct=sum(right),
        evaluated=len(labels),
        neediest=find_neediest(names, right, counts.tolist()),
        confusions=[(*pair, count) for pair, count in pairs.most_common(MAX_LISTED)],
        issues=issues[:MAX_LISTED],
    )


def leave_one_out_of(model: SavedModel, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and predictions of `leave_one_out` for the support set of a model with other labels."""
    support_set = support_set_of(model)
    return leave_one_out(support_set.features[0], labels, cast(Tensor, support_set.positive), model.logit_scale)


def find_neediest(names: Sequence[str], correct: Sequence[int], counts: Sequence[int]) -> tuple[str, int, int]:
    """Find the class that needs images most: one without images, else the one with the lowest accuracy.

    The accuracy is estimated by Laplace's rule of succession, `(correct + 1) / (count + 2)`.

    Returns:
        Name, number of correctly classified images, and number of images of the class.
    """
    classes = zip(names, correct, counts)
    rows = [(count > 0, (right + 1) / (count + 2), count, name, right) for name, right, count in classes]
    _, _, count, name, right = min(rows)
    return name, right, count
