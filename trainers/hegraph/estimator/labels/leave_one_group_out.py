"""Leave-one-group-out of the training-free variant: classify each labelled image by a model without the image's group.

With fixed text, the logits are exact (`left_out_groups.py`). With trust in text, the text of the classes of a group is
replaced again without the group, as `leave_one_out.py` does for an image, and the same quantities stay as they are.

Only the classes of a group lose images, so the accuracy is below that on new groups if groups are few. Folds in which
every class loses a group at once (`datasets.groups.balanced_folds`) are less biased, and need a fit each.

Shapes: N images, K classes, d feature width. Computed in float64.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ...method.head.class_offsets import INVERSE_TEMPERATURES, OFFSET_PRIOR, OFFSET_STEPS, nll_at_temperatures, smallest
from ...method.options import TrainingFreeOptions
from .leave_one_out import default_options, leave_one_out, left_out_logits, logits_without_groups
from .left_out_groups import check_groups, images_of_groups, left_out_group_messages


@torch.no_grad()
def left_out_group_logits(
    features: Tensor,
    labels: Tensor,
    groups: Tensor,
    text: Tensor,
    logit_scale: float,
    options: TrainingFreeOptions,
    trusts_text: bool = True,
) -> Tensor:
    """Compute the logits of each image by the training-free variant fitted to all images of other groups.

    Groups of one image have the logits of `left_out_logits`.

    Args:
        features: Unit-norm image features of at least two classes, shape `[N, d]`.
        labels: Classes of the images, shape `[N]`.
        groups: Groups of the images, integers of shape `[N]`.
        text: Unit-norm text features, shape `[K, d]`; all 0 for classes without names.
        logit_scale: CLIP's `tau`.
        options: Options of the closed-form head.
        trusts_text: Whether text that does not describe the images is replaced.

    Returns:
        Logits without class offsets, shape `[N, K]`, float64.

    Raises:
        UserError: If all images are of one group.
    """
    if len(groups.unique()) == len(groups):
        return left_out_logits(features, labels, text, logit_scale, options, trusts_text)
    return _logits(features, labels, groups, text, logit_scale, options, trusts_text)[0]


@torch.no_grad()
def leave_one_group_out(
    features: Tensor,
    labels: Tensor,
    groups: Tensor,
    text: Tensor,
    logit_scale: float,
    trusts_text: bool = True,
    class_prior: str = "balanced",
) -> tuple[Tensor, Tensor]:
    """Classify each image by the training-free variant, with its default options, without the image's group.

    Args:
        features, labels, groups, text, logit_scale, trusts_text: As for `left_out_group_logits`.
        class_prior: "balanced" or "training", as for `class_offsets`.

    Returns:
        Logits without class offsets, shape `[N, K]`, and predicted classes with class offsets, shape `[N]`.

    Raises:
        UserError: If all images are of one group.
    """
    if len(groups.unique()) == len(groups):
        return leave_one_out(features, labels, text, logit_scale, trusts_text, class_prior)
    options = default_options(labels)
    logits, zero_shot = _logits(features, labels, groups, text, logit_scale, options, trusts_text)
    offsets = left_out_group_offsets(zero_shot, labels, groups, class_prior)
    return logits, (logits + offsets).argmax(dim=1)


def _logits(
    features: Tensor,
    labels: Tensor,
    groups: Tensor,
    text: Tensor,
    logit_scale: float,
    options: TrainingFreeOptions,
    trusts_text: bool,
) -> tuple[Tensor, Tensor]:
    """Logits of `left_out_group_logits`, and those of zero-shot CLIP with all images, each `[N, K]`."""
    check_groups(groups)
    features = features.double()
    messages = partial(left_out_group_messages, features, labels, groups)
    only_text = torch.ones_like(labels, dtype=torch.bool)  # where all images of other groups are of one class
    only_text[torch.cat([labels[:0], *images_of_groups(labels, groups)])] = False
    return logits_without_groups(
        features, labels, groups, text.double(), logit_scale, options, trusts_text, messages, only_text.unsqueeze(1)
    )


def left_out_group_offsets(logits: Tensor, labels: Tensor, groups: Tensor, prior: str) -> Tensor:
    """Class offsets without each image's group, shape `[N, K]`, as in `left_out_offsets`.

    Where all images of other groups are of one class, the offsets are 0.

    Args:
        logits: Zero-shot logits of the training images, shape `[N, K]`.
        labels, groups: Their classes and groups, each `[N]`.
        prior: "balanced" or "training", as for `class_offsets`.
    """
    num_classes = logits.shape[1]
    own = torch.stack([F.cross_entropy(logits * factor, labels, reduction="none") for factor in INVERSE_TEMPERATURES])
    whole = nll_at_temperatures(logits, labels)
    members = list(images_of_groups(labels, groups))
    best_of_groups = [int(smallest(whole - own[:, images].sum(dim=1))) for images in members]
    centred = logits - logits.amax(dim=1, keepdim=True)
    scaled = {best: (INVERSE_TEMPERATURES[best] * centred).exp() for best in set(best_of_groups)}
    counts = labels.bincount(minlength=num_classes)
    offsets = torch.zeros_like(logits)
    for images, best in zip(members, best_of_groups):
        weights = torch.ones_like(logits[:, 0])
        weights[images] = 0
        left = (counts - labels[images].bincount(minlength=num_classes)).to(logits)
        class_weights = torch.ones_like(left)
        if prior == "balanced":
            weights = weights / left.clamp_min(1)[labels]
            class_weights = left
        offset = torch.zeros_like(left)  # times the factor
        for _ in range(OFFSET_STEPS):
            exponentials = offset.exp()
            mass = exponentials * ((weights / (scaled[best] @ exponentials)) @ scaled[best])
            offset = offset + ((left + OFFSET_PRIOR) / (mass * class_weights + OFFSET_PRIOR)).log()
        offsets[images] = (offset - offset.mean()) / INVERSE_TEMPERATURES[best]
    return offsets
