"""Leave-one-out of the training-free variant: classify each labelled image by a model fitted to all other images.

With fixed text, the logits are exact (`left_out_messages.py`). With trust in text (`method/head/trust.py`), the text
of the image's own class is replaced again without the image, at its own trust:

    e_y^(-i) = (S e_y - g_i) / (S - 1),   w_y^(-i) = pi exp e_y^(-i) / (pi exp e_y^(-i) + 1 - pi)
    t~_y^(-i) = w_y^(-i) t_y + (1 - w_y^(-i)) R(m_y^(-i)),   m_y^(-i) = (S m_y - F_i) / (S - 1)

with the evidence `g_i` of the image. Without its only image, a class keeps its text. Quantities that all images
determine stay as they are: `pi`, the scale `a`, the regression `R`, the text of the other classes, and the weight
`kappa'` of the text prior. docs/development/trials.md says how much that changes.

If all other images are of one class, no model can be trained without the image, and zero-shot CLIP classifies it.

Shapes: N images, K classes, d feature width. Computed in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from ...features.bank import mean_count
from ...method.head.class_offsets import left_out_offsets
from ...method.head.closed_form import TextPrior, adapted_kappa
from ...method.head.trust import left_out_similarities, left_out_text, trust_text
from ...method.options import HEAD_SCALE, TrainingFreeOptions
from ...utils.option import options_of
from .left_out_messages import left_out_messages


def training_free_options(shots: int) -> TrainingFreeOptions:
    """Default options of the training-free variant for a number of images per class."""
    at_least_one = max(shots, 1)
    values = [option.at_shots(option.default, at_least_one) for option in options_of(TrainingFreeOptions)]
    return TrainingFreeOptions(*values)


def default_options(labels: Tensor) -> TrainingFreeOptions:
    """Default options of the training-free variant for images with labels `[N]`, by their mean number per class."""
    return training_free_options(mean_count(labels.bincount().tolist()))


@torch.no_grad()
def left_out_logits(
    features: Tensor,
    labels: Tensor,
    text: Tensor,
    logit_scale: float,
    options: TrainingFreeOptions,
    trusts_text: bool = True,
) -> Tensor:
    """Compute the logits of each image by the training-free variant fitted to all other images.

    Args:
        features: Unit-norm image features of at least two classes, shape `[N, d]`.
        labels: Classes of the images, shape `[N]`.
        text: Unit-norm text features, shape `[K, d]`; all 0 for classes without names.
        logit_scale: CLIP's `tau`.
        options: Options of the closed-form head.
        trusts_text: Whether text that does not describe the images is replaced.

    Returns:
        Logits without class offsets, shape `[N, K]`, float64.
    """
    return _logits(features, labels, text, logit_scale, options, trusts_text)[0]


@torch.no_grad()
def leave_one_out(
    features: Tensor,
    labels: Tensor,
    text: Tensor,
    logit_scale: float,
    trusts_text: bool = True,
    class_prior: str = "balanced",
) -> tuple[Tensor, Tensor]:
    """Classify each image by the training-free variant, with its default options, fitted to all other images.

    The default options are those for the mean number of images per class.

    Args:
        features, labels, text, logit_scale, trusts_text: As for `left_out_logits`.
        class_prior: "balanced" or "training", as for `class_offsets`.

    Returns:
        Logits without class offsets, shape `[N, K]`, and predicted classes with class offsets, shape `[N]`.
    """
    options = default_options(labels)
    logits, zero_shot = _logits(features, labels, text, logit_scale, options, trusts_text)
    offsets = left_out_offsets(zero_shot, labels, class_prior)
    offsets = offsets.masked_fill(_others_of_one_class(labels), 0)
    return logits, (logits + offsets).argmax(dim=1)


def _logits(
    features: Tensor, labels: Tensor, text: Tensor, logit_scale: float, options: TrainingFreeOptions, trusts_text: bool
) -> tuple[Tensor, Tensor]:
    """Logits of `left_out_logits`, and those of zero-shot CLIP with all images, each `[N, K]`."""
    features = features.double()
    messages = partial(left_out_messages, features, labels)
    groups = torch.arange(len(labels), device=labels.device)
    only_text = _others_of_one_class(labels)
    return logits_without_groups(
        features, labels, groups, text.double(), logit_scale, options, trusts_text, messages, only_text
    )


def logits_without_groups(
    features: Tensor,
    labels: Tensor,
    groups: Tensor,
    text: Tensor,
    logit_scale: float,
    options: TrainingFreeOptions,
    trusts_text: bool,
    messages: Callable[[Tensor, TrainingFreeOptions, Tensor | None], Tensor],
    only_text: Tensor,
) -> tuple[Tensor, Tensor]:
    """Logits of each image by the training-free variant fitted to all images of other groups.

    Args:
        features: Unit-norm image features, shape `[N, d]`, float64.
        labels: Classes of the images, shape `[N]`.
        groups: Groups of the images, integers of shape `[N]`; all different for leave-one-out.
        text: Text features, shape `[K, d]`, float64.
        logit_scale, options, trusts_text: As for `left_out_logits`.
        messages: Function that returns the messages of the closed-form head without each image's group, `[N, K]`, from
            the text of the prior `[K, d]`, the options, and the changes of the text of each image's class `[N, d]`.
        only_text: Whether zero-shot CLIP classifies an image, shape `[N, 1]`.

    Returns:
        Logits without class offsets, and logits of zero-shot CLIP with all images, each `[N, K]`, float64.
    """
    if not trusts_text:
        zero_shot = logit_scale * features @ text.t()
        sent = messages(text, options, None).masked_fill(only_text, 0)
        return zero_shot + options.omega * logit_scale * sent, zero_shot
    trusted = trust_text(features, labels, text, logit_scale)
    zero_shot = logit_scale * features @ trusted.scaled.t()
    changes = left_out_text(trusted, features, labels, groups, text, logit_scale) - trusted.replaced[labels]
    similarities = left_out_similarities(trusted, features, labels)
    own_changes = (features * changes).sum(dim=1, keepdim=True)
    similarities = similarities.scatter(1, labels.unsqueeze(1), own_changes)
    without = zero_shot + trusted.trust.scale * logit_scale * similarities
    prior = TextPrior.fit(trusted.replaced[trusted.present], trusted.means)
    options = replace(options, kappa=adapted_kappa(options.kappa, prior, trusted.means))
    logits = without + options.omega * HEAD_SCALE * messages(trusted.replaced, options, changes)
    return torch.where(only_text, logit_scale * features @ text.t(), logits), zero_shot


def _others_of_one_class(labels: Tensor) -> Tensor:
    """Whether all other images are of one class, for each image, shape `[N, 1]`."""
    counts = labels.bincount()
    is_alone = counts[labels] == 1
    has_two_classes = (counts > 0).sum() == 2
    return (is_alone & has_two_classes).unsqueeze(1)
