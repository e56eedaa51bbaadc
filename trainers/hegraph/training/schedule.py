"""Learning rates: schedules, for HeGraphAdapter and for the methods it is compared with, and what scales a rate.

Good text is soon spoilt by single images, so the rate of training is small at one shot. Weak text has to be left, which
takes a larger one: on validation images of tasks whose text was mixed with that of wrong classes, three times the rate
gained 8 points at one shot, where the same on good text lost half a point (`docs/trials.md`). Whether text is weak is
told from the training images alone, by `text_share`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..method.cache import text_logits
from ..method.closed_form import TEMPERATURES, nll_at_temperatures

WEAK = 0.65  # text that tells a smaller share than this of what there is to know about the classes is weak
BATCH = 1024  # images that are classified at once, so that many classes take little memory

Schedule = Callable[[int, float], float]  # the step, counted from 0, and the peak rate -> the rate of that step


def rate_at_width(rate: float, meant_for: int, width: int) -> float:
    """Scales a rate that is meant for one feature width to another, so that a unit vector turns by the same angle,
    which is about `rate * sqrt(d)`: AdamW moves each entry by about the rate. 0 leaves it as it is."""
    return rate * math.sqrt(meant_for / width) if meant_for else rate


def rate_at_scale(rate: float, meant_for: float, logit_scale: float) -> float:
    """Scales a rate that is meant for one logit scale `tau` to another, so that the logits move alike: they move `tau`
    times as much as the class features. 0 leaves it as it is."""
    return rate * meant_for / logit_scale if meant_for else rate


def learning_rate(epoch: int, epochs: int, peak: float, warmup_epochs: int, warmup_rate: float) -> float:
    """The rate of one epoch, counted from 0, under Dassl's cosine schedule with a constant warm-up.

    The cosine starts after the warm-up but is as long as the whole training, so it does not reach zero. With 0 warm-up
    epochs or less there is none.
    """
    warmup_epochs = max(warmup_epochs, 0)
    if epoch < warmup_epochs:
        return warmup_rate
    return 0.5 * peak * (1 + math.cos(math.pi * (epoch - warmup_epochs) / epochs))


def cosine(steps: int) -> Schedule:
    """torch's `CosineAnnealingLR` over all `steps`: from the peak rate down to nearly 0, without a warm-up."""
    return lambda step, peak: 0.5 * peak * (1 + math.cos(math.pi * step / steps))


def cosine_by_epoch(epochs: int, steps_per_epoch: int, warmup_epochs: int, warmup_rate: float) -> Schedule:
    """The schedule of `learning_rate`, which is the one of CoOp's configurations, asked for by step."""
    return lambda step, peak: learning_rate(step // steps_per_epoch, epochs, peak, warmup_epochs, warmup_rate)


def constant(step: int, peak: float) -> float:
    """The same rate at every step."""
    return peak


@torch.no_grad()
def text_share(features: Tensor, labels: Tensor, text: Tensor, logit_scale: float) -> float:
    """The share of what there is to know about the classes of images that zero-shot CLIP knows: McFadden's R^2.

        R^2 = 1 - NLL / log K

    McFadden, "Conditional logit analysis of qualitative choice behavior", 1974. The NLL is the mean over the images
    `[N, d]`, at the one of `TEMPERATURES` that suits them best; text is that of at least two classes, `[K, d]`. It is 1
    where CLIP is sure and right, 0 where it knows nothing, and below that where it is sure and wrong.
    """
    sums = torch.zeros(len(TEMPERATURES), device=features.device)
    for some, true in zip(features.split(BATCH), labels.split(BATCH)):
        sums += nll_at_temperatures(text_logits(some, text, logit_scale), true)
    return 1 - sums.min().item() / (len(features) * math.log(len(text)))
