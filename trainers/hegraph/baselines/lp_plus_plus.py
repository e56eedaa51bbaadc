"""LP++: a linear probe whose class weights blend image and text.

Huang, Shakeri, Dolz, Boudiaf, Bahig, Ben Ayed: LP++: A Surprisingly Strong Linear Probe for Few-Shot CLIP. CVPR 2024.

    z_k = f . w_k + b_k + alpha_k * f . t_k

Trained with cross-entropy on all images at once, in blocks: ten steps on w and b, then one on the multipliers alpha. No
rate is tuned, the data give them: with N images, F their features and t the unit-norm text features, w starts at the
sum of each class's features, its rate is 4 N / (largest eigenvalue of F'F); alpha starts at 250 times the mean over
classes of the mean f . t_k of the class's images, its rate is N / (4 max_k sum_i (F_i . t_k)^2). As in the released
code: momentum 0.9 on w and b, none on alpha, 300 steps, and the step that is best on val counts, the last of equals.

Away from the original: that code never clears the gradient of alpha, so that its step runs along the sum of all past
ones; here it is the gradient at the step, as in the paper. Val is asked after every block, not after every step, and
without val images the last step counts. The start of b is 0, theirs is random. An image is the mean of its views, where
theirs is one augmented view. A class without images starts at w = 0.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from yacs.config import CfgNode

from ..features import FeatureBank
from ..utils.errors import UserError
from .base import Fitted
from .training import choose, has_val, val_accuracy

DEFAULTS = {
    "STEPS": 300,  # on w and b
    "BLOCK": 10,  # steps on w and b for one on alpha; val is asked as often
    "MOMENTUM": 0.9,  # of w and b
    "ALPHA_SCALE": 250.0,  # alpha's start over the mean cosine of an image and its class
    "SELECT": True,  # keep the step that is best on val, where there is val
}

Weights = tuple[Tensor, Tensor, Tensor]  # w [K, d], b [K], alpha [K]


def fit(bank: FeatureBank, options: CfgNode, seed: int) -> Fitted:
    """Trains K * (d + 2) weights; `seed` changes nothing."""
    if options.BLOCK < 1 or options.STEPS < options.BLOCK:
        raise UserError(f"STEPS must be at least BLOCK, and that 1, got {options.STEPS} and {options.BLOCK}")
    features, labels, text = bank.cache_keys(), bank.train_labels, bank.text_positive
    weight, bias, alpha = (
        parameter.requires_grad_() for parameter in start(features, labels, text, options.ALPHA_SCALE)
    )
    weight_rate, alpha_rate = rates(features, text)
    optimizer = torch.optim.SGD([weight, bias], lr=weight_rate, momentum=options.MOMENTUM)
    blocks: dict[int, Weights] = {}
    for step in range(1, options.STEPS + 1):
        loss = F.cross_entropy(logits(features, text, (weight, bias, alpha)), labels)
        optimizer.zero_grad()
        alpha.grad = None
        loss.backward()
        optimizer.step()
        if step % options.BLOCK == 0:
            alpha.data -= alpha_rate * alpha.grad
            blocks[step] = tuple(parameter.detach().clone() for parameter in (weight, bias, alpha))
    if not loss.isfinite():
        raise UserError(f"the loss is {loss.item()}; lower MOMENTUM ({options.MOMENTUM})")
    best, selected = max(blocks), {}
    if options.SELECT and has_val(bank):
        best, entry = choose(sorted(blocks, reverse=True), lambda s: val_accuracy(classifier(text, blocks[s]), bank))
        selected = {"STEP": entry}
    number = sum(parameter.numel() for parameter in blocks[best])
    return Fitted(classifier(text, blocks[best]), number, options.STEPS, options.STEPS, selected)


def logits(features: Tensor, text: Tensor, weights: Weights) -> Tensor:
    """`f . w_k + b_k + alpha_k * f . t_k`, shape `[B, K]`."""
    weight, bias, alpha = weights
    return F.linear(features, weight, bias) + alpha * (features @ text.t())


def classifier(text: Tensor, weights: Weights) -> Callable[[Tensor], Tensor]:
    """Features to logits."""
    return lambda features: logits(features, text, weights)


def start(features: Tensor, labels: Tensor, text: Tensor, alpha_scale: float) -> Weights:
    """Where training starts, from the data."""
    weight = torch.zeros_like(text).index_add(0, labels, features)
    cosine = (features * text[labels]).sum(dim=1)
    counts = labels.bincount(minlength=len(text))
    of_class = cosine.new_zeros(len(text)).index_add(0, labels, cosine)[counts > 0] / counts[counts > 0]
    return weight, text.new_zeros(len(text)), text.new_full((len(text),), alpha_scale * of_class.mean().item())


def rates(features: Tensor, text: Tensor) -> tuple[float, float]:
    """The learning rates of w and of alpha, from the data."""
    largest = torch.linalg.eigvalsh(features.t() @ features)[-1].item()
    return 4 * len(features) / largest, len(features) / (4 * (features @ text.t()).square().sum(dim=0).max().item())
