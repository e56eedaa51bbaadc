"""LP++: a linear probe whose class weights blend image and text.

Huang, Shakeri, Dolz, Boudiaf, Bahig, Ben Ayed: LP++: A Surprisingly Strong Linear Probe for Few-Shot CLIP. CVPR 2024.

    z_k = f . w_k + b_k + alpha_k * f . t_k

It is trained with cross-entropy on all images at once, in blocks: ten steps on w and b, then one on the multipliers
alpha. The data give the learning rates. Let F be the features of the N images and t the unit-norm text features. Then w
starts at the sum of each class's features and has the rate 4 N / (largest eigenvalue of F'F); alpha starts at 250 times
the mean over classes of the mean f . t_k of the class's images and has the rate N / (4 max_k sum_i (F_i . t_k)^2). As
in the released code: momentum on w and b, none on alpha, and of 300 steps the last that is best on val.

Distance from the original: that code never clears the gradient of alpha, so its step runs along the sum of all past
gradients; here it is the gradient at the step, as in the paper. It draws as many val images of a class as there are
shots (on ImageNet: other training images), here there are at most 4; without val images the last step counts. Here b
starts at 0, in the original at random. An image is the mean of its views. A class without images starts at w = 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..features.bank import FeatureBank
from ..method.cache import FoldedClassifier
from ..training.choice import has_val, val_accuracy
from ..utils.errors import UserError
from .base import Defaults, FittedMethod, Method, Options
from .trained import BestEpoch

Weights = tuple[Tensor, Tensor, Tensor]  # w [K, d], b [K], alpha [K]


class LPPlusPlus(Method):
    """Trains a linear classifier of the image features, and how much each class's text feature counts in it."""

    defaults: ClassVar[Defaults] = {
        "STEPS": 300,  # steps on w and b
        "BLOCK": 10,  # steps on w and b before each step on alpha
        "MOMENTUM": 0.9,  # of w and b
        "ALPHA_SCALE": 250.0,  # alpha at the start, relative to the mean cosine of an image and its class
        "SELECT": True,  # keep the step that is best on val, if there are val images
    }

    def fit(self, bank: FeatureBank, options: Options, seed: int, backbone: object = None) -> FittedMethod:
        """Trains K * (d + 2) weights; `seed` changes nothing."""
        if options.BLOCK < 1 or options.STEPS < options.BLOCK:
            raise UserError(f"STEPS must be at least BLOCK, and that 1, got {options.STEPS} and {options.BLOCK}")
        text = bank.text_positive
        weights = start(bank.cache_keys(), bank.train_labels, text, options.ALPHA_SCALE)
        best = BestEpoch(weights)

        def logits(features: Tensor) -> Tensor:
            weight, bias, alpha = weights
            return F.linear(features, weight, bias) + alpha * (features @ text.t())

        def look_at_val(step: int) -> None:
            if options.SELECT and has_val(bank):
                best.record(step, val_accuracy(logits, bank))

        train(bank, options, weights, logits, look_at_val)
        selected = {"STEP": best.restore()} if best.candidates else {}
        weight, bias, alpha = weights
        return FittedMethod(
            logits,
            num_parameters=sum(parameter.numel() for parameter in weights),
            epochs=options.STEPS,
            steps=options.STEPS,
            selected=selected,
            classifier=FoldedClassifier(weight + alpha[:, None] * text, bias),
        )


def train(
    bank: FeatureBank,
    options: Options,
    weights: Weights,
    logits: Callable[[Tensor], Tensor],
    after_step: Callable[[int], None],
) -> None:
    """Trains the weights in place, from which `logits` are made; calls `after_step` with the number of steps done."""
    features, (weight, bias, alpha) = bank.cache_keys(), weights
    weight_rate, alpha_rate = rates(features, bank.text_positive)
    optimizer = torch.optim.SGD([weight, bias], lr=weight_rate, momentum=options.MOMENTUM)
    for parameter in weights:
        parameter.requires_grad_()
    for step in range(1, options.STEPS + 1):
        loss = F.cross_entropy(logits(features), bank.train_labels)
        weight.grad, bias.grad, gradient = torch.autograd.grad(loss, weights)
        optimizer.step()
        if step % options.BLOCK == 0:
            alpha.data -= alpha_rate * gradient
        after_step(step)
    for parameter in weights:
        parameter.requires_grad_(False)
    if not loss.isfinite():
        raise UserError(f"the loss is {loss.item()}; lower MOMENTUM ({options.MOMENTUM})")


def start(features: Tensor, labels: Tensor, text: Tensor, alpha_scale: float) -> Weights:
    """The weights that training starts at, from the data."""
    weight = torch.zeros_like(text).index_add(0, labels, features)
    cosine = (features * text[labels]).sum(dim=1)
    counts = labels.bincount(minlength=len(text))
    of_class = cosine.new_zeros(len(text)).index_add(0, labels, cosine)[counts > 0] / counts[counts > 0]
    return weight, text.new_zeros(len(text)), text.new_full((len(text),), alpha_scale * of_class.mean().item())


def rates(features: Tensor, text: Tensor) -> tuple[float, float]:
    """The learning rates of w and of alpha, from the data."""
    largest = torch.linalg.eigvalsh(features.t() @ features)[-1].item()
    return 4 * len(features) / largest, len(features) / (4 * (features @ text.t()).square().sum(dim=0).max().item())
