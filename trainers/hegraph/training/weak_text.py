"""Whether the text features of a task are weak, told from its training images alone.

Good text is soon spoilt by single images, so the rate of training is small at one shot. Weak text has to be left, which
takes a larger one: on validation images of tasks whose text was mixed with that of wrong classes, three times the rate
gained 8 points at one shot, where the same on good text lost half a point (`docs/trials.md`).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..method.cache import text_logits
from ..method.closed_form import TEMPERATURES, nll_at_temperatures

WEAK = 0.65  # text that tells a smaller share than this of what there is to know about the classes is weak
BATCH = 1024  # images that are classified at once, so that many classes take little memory


@torch.no_grad()
def text_share(features: Tensor, labels: Tensor, text: Tensor, logit_scale: float) -> float:
    """The share of what there is to know about the classes of images that zero-shot CLIP knows: McFadden's R^2.

        R^2 = 1 - NLL / log K

    McFadden, "Conditional logit analysis of qualitative choice behavior", 1974. The NLL is the mean over the images, at
    the one of `TEMPERATURES` that suits them best.

    Args:
        features: Unit-norm features of training images, shape `[N, d]`.
        labels: Shape `[N]`.
        text: Text features of at least two classes, shape `[K, d]`.
        logit_scale: CLIP's `tau`.

    Returns:
        1 where CLIP is sure and right, 0 where it knows nothing; below that, it is sure and wrong.
    """
    sums = torch.zeros(len(TEMPERATURES), device=features.device)
    for some, true in zip(features.split(BATCH), labels.split(BATCH)):
        sums += nll_at_temperatures(text_logits(some, text, logit_scale), true)
    return 1 - sums.min().item() / (len(features) * math.log(len(text)))
