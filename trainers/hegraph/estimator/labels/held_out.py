"""Predict each labelled image by a training-free model without it, to estimate the accuracy on new images.

Leave-one-out is too low with few images per class, because only the class of the image loses one. In balanced folds,
every class loses images at once, and the text of the classes is trusted or replaced without the images that are
predicted. Folds are used

- with groups (`datasets.groups.balanced_folds`), because an image must be predicted without its group;
- without groups, for up to `FOLD_SHOTS` images per class on average. With more, exact leave-one-out is as good, and has
  no random part.

An image that no fold holds out, such as the only image of a class, is predicted by leave-one-(group)-out.

Shapes: N images, n images of a fold, K classes, d feature width.
"""

from __future__ import annotations

import random

import torch
from torch import Tensor

from ...datasets.groups import NOT_HELD_OUT, balanced_folds, folds_in_order, shared_groups_only
from ...features.bank import mean_count
from ...method.head.class_offsets import class_offsets
from ...method.head.closed_form import ClosedForm
from ...method.head.trust import trust_text
from ...method.options import HEAD_SCALE, TrainingFreeOptions
from .leave_one_group_out import leave_one_group_out
from .leave_one_out import default_options

FOLD_SHOTS = 4  # mean number of images per class up to which folds replace leave-one-out
SEED = 1


@torch.no_grad()
def held_out_predictions(
    features: Tensor,
    labels: Tensor,
    text: Tensor,
    logit_scale: float,
    trusts_text: bool = True,
    class_prior: str = "balanced",
    groups: Tensor | None = None,
    folds: Tensor | None = None,
    left_out: Tensor | None = None,
) -> Tensor:
    """Classify each image by the training-free variant, with its default options, fitted without the image.

    Args:
        features, labels, text, logit_scale, trusts_text, class_prior: As for `leave_one_out`; at least two classes have
            images.
        groups: Groups of the images, integers of shape `[N]`; None without groups.
        folds: Folds of the images (default: `held_out_folds`).
        left_out: Classes that `leave_one_group_out` predicts, shape `[N]`, if they are known already.

    Returns:
        Predicted classes, shape `[N]`.

    Raises:
        UserError: If all images are of one group.
    """
    if folds is None:
        folds = held_out_folds(labels, groups)
    predicted = torch.empty_like(labels)
    rest = folds == NOT_HELD_OUT
    if rest.any() and left_out is None:
        own_groups = torch.arange(len(labels)) if groups is None else groups
        _, left_out = leave_one_group_out(features, labels, own_groups, text, logit_scale, trusts_text, class_prior)
    if left_out is not None:
        predicted[rest] = left_out[rest]
    options = default_options(labels)
    for fold in sorted(set(folds.tolist()) - {NOT_HELD_OUT}):
        held_out = folds == fold
        logits = refitted_logits(
            features, labels, held_out, text.double(), logit_scale, options, trusts_text, class_prior
        )
        predicted[held_out] = logits.argmax(dim=1)
    return predicted


def held_out_folds(labels: Tensor, groups: Tensor | None) -> Tensor:
    """Fold of each image, from 0, or `NOT_HELD_OUT` for an image that leave-one-(group)-out predicts, shape `[N]`."""
    numbers = None if groups is None else shared_groups_only(groups.tolist())
    if numbers is not None:
        return torch.tensor(balanced_folds(labels.tolist(), numbers, SEED))
    if mean_count(labels.bincount().tolist()) <= FOLD_SHOTS:
        return torch.tensor(folds_of_images(labels.tolist()))
    return torch.full_like(labels, NOT_HELD_OUT)


def folds_of_images(labels: list[int]) -> list[int]:
    """Balanced folds of images without groups, as in `balanced_folds`.

    The order of the images is random but does not depend on their labels, so that a change of one label moves few
    images to other folds.
    """
    order = list(range(len(labels)))
    random.Random(SEED).shuffle(order)
    return folds_in_order(labels, order)


def refitted_logits(
    features: Tensor,
    labels: Tensor,
    held_out: Tensor,
    text: Tensor,
    logit_scale: float,
    options: TrainingFreeOptions,
    trusts_text: bool,
    class_prior: str,
) -> Tensor:
    """Logits of held-out images by the training-free variant fitted to the other images, shape `[n, K]`, float64.

    A class without other images is known by its text alone.

    Args:
        features, labels: Unit-norm features `[N, d]` and classes `[N]` of the images.
        held_out: Images to classify, booleans of shape `[N]`.
        text: Text features, shape `[K, d]`, float64.
        logit_scale, options, trusts_text, class_prior: As for `leave_one_out`.
    """
    keys = features[~held_out].double()
    classes = labels[~held_out]
    queries = features[held_out].double()
    prior_text = text
    strength = logit_scale
    if trusts_text:
        trusted = trust_text(keys, classes, text, logit_scale)
        prior_text = trusted.replaced
        text = trusted.scaled
        strength = HEAD_SCALE
    present, positions = classes.unique(return_inverse=True)
    head = ClosedForm.fit(
        keys, positions, prior_text[present], options.kappa, options.rho, adapt_kappa=trusts_text
    ).to_text
    logits = logit_scale * queries @ text.t()
    messages = queries @ head.weights.double().t() + head.bias.double()
    logits[:, present] += options.omega * strength * messages
    return logits + class_offsets(logit_scale * keys @ text.t(), classes, class_prior)
