"""Linear classifiers of the image features, averaged over the views of an image: the linear probe and LP++."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..features.bank import FeatureBank
from ..method.cache import FoldedClassifier
from ..method.graph import sum_by_class
from ..method.training.choice import choose, has_val, val_accuracy
from ..utils.errors import UserError
from .base import FittedMethod, Method
from .options import BaselineOptions, option
from .trained import BestEpoch, count_parameters

TOLERANCE = 1e-4  # scikit-learn's `tol`: L-BFGS stops once no entry of the mean loss's gradient is larger


@dataclass(frozen=True)
class LinearProbeOptions(BaselineOptions):
    """Options of `LinearProbe`."""

    inverse_penalty: float = option(
        100.0, "C", "inverse penalty; of equally good candidates, the search selects the nearest to it", above=0
    )
    search: bool = option(True, "SEARCH", "whether to select C on val, if there are val images")
    candidates: Sequence[float] = option(
        [1e6, 1e4, 1e2, 1.0, 1e-2, 1e-4, 1e-6], "CANDIDATES", "values of C in the first round", numbers=0, above=0
    )
    steps: int = option(8, "STEPS", "steps of the binary search", least=0)
    most_iterations: int = option(1000, "MAX_ITERATIONS", "maximum number of iterations of L-BFGS", least=1)


class LinearProbe(Method[LinearProbeOptions]):
    """Linear probe: logistic regression on the image features.

    Radford, Kim, Hallacy, Ramesh, Goh, Agarwal, Sastry, Askell, Mishkin, Clark, Krueger, Sutskever: Learning
    Transferable Visual Models From Natural Language Supervision. ICML 2021. The few-shot protocol is that of `lpclip`
    in CoOp.

        z = W f + b        minimise C * (sum of the cross-entropies) + |W|^2 / 2

    As in CoOp's `lpclip`, L-BFGS starts from 0, runs at most 1,000 iterations, and has scikit-learn's tolerance. With a
    large C neither implementation converges within them, and accuracies differ by up to 2.5 points. C is selected on
    val: first the best of seven powers of ten, then by 8 steps of a binary search around it.

    Differences from the original: its features have the norm of the image encoder's output, so that the same C
    regularises more here; the range of C is wide enough for both. Of equally good C it selects the largest in the first
    round and the smallest in the binary search, and returns the C at which the search ends. Here the best of all
    candidates is selected, of equally good ones the nearest to the option `C`. Without val images C is 100, about the
    value that val selected on three banks.
    """

    options: ClassVar[type] = LinearProbeOptions
    needs_text: ClassVar[bool] = False

    def fit(self, bank: FeatureBank, options: LinearProbeOptions, seed: int, backbone: object = None) -> FittedMethod:
        probes: dict[float, tuple[Tensor, Tensor, int]] = {}  # by C

        def accuracy_of(c: float) -> float:
            probes[c] = logistic_regression(bank, c, options.most_iterations)
            weight, bias, _ = probes[c]
            return val_accuracy(partial(F.linear, weight=weight, bias=bias), bank)

        c = options.inverse_penalty
        selected = {}
        if options.search and has_val(bank):
            c, selected["C"] = search_penalty(options, accuracy_of)
        else:
            probes[c] = logistic_regression(bank, c, options.most_iterations)
        weight, bias, iterations = probes[c]
        return FittedMethod(
            partial(F.linear, weight=weight, bias=bias),
            count_parameters([weight, bias]),
            iterations,
            iterations,
            selected,
            classifier=FoldedClassifier(weight, bias),
        )


def search_penalty(options: LinearProbeOptions, val_accuracy_of: Callable[[float], float]) -> tuple[float, dict]:
    """Select C among CANDIDATES, then by a binary search on a logarithmic scale around the best one.

    Args:
        val_accuracy_of: Function from C to the accuracy on val in percent, called once for each C.

    Returns:
        C, and its entry of `FittedMethod.selected`.
    """
    accuracies = {c: val_accuracy_of(c) for c in options.candidates}

    def distance(c: float) -> float:
        return abs(math.log10(c / options.inverse_penalty))

    peak, _ = choose(accuracies, distance)
    low = math.log10(peak) - 1
    high = math.log10(peak) + 1
    for _ in range(options.steps):
        left = 10**low
        right = 10**high
        for c in (left, right):
            if c not in accuracies:
                accuracies[c] = val_accuracy_of(c)
        middle = (low + high) / 2
        if accuracies[left] < accuracies[right]:
            low = middle
        else:
            high = middle
    return choose(accuracies, distance)


def logistic_regression(bank: FeatureBank, inverse_penalty: float, most_iterations: int) -> tuple[Tensor, Tensor, int]:
    """Fit a multinomial logistic regression to the training images by L-BFGS, without a penalty on the bias.

    Args:
        inverse_penalty: C; the penalty on the weights is `|W|^2 / (2 C)`, beside the sum of the cross-entropies.
        most_iterations: Largest number of iterations. L-BFGS may stop before.

    Returns:
        Weights `[K, d]`, biases `[K]` and the number of iterations that it took.
    """
    features = bank.cache_keys()
    labels = bank.train_labels
    weight = torch.zeros_like(bank.text_positive).requires_grad_()
    bias = weight.new_zeros(len(weight)).requires_grad_()
    rules: dict[str, Any] = {"tolerance_grad": TOLERANCE, "tolerance_change": 0.0, "line_search_fn": "strong_wolfe"}
    optimizer = torch.optim.LBFGS([weight, bias], 1.0, most_iterations, **rules)

    def loss() -> Tensor:
        optimizer.zero_grad()
        cross_entropy = F.cross_entropy(F.linear(features, weight, bias), labels)
        value = cross_entropy + weight.square().sum() / (2 * inverse_penalty * len(labels))
        value.backward()
        return value

    optimizer.step(loss)
    return weight.detach(), bias.detach(), optimizer.state[weight]["n_iter"]


@dataclass(frozen=True)
class LPPlusPlusOptions(BaselineOptions):
    """Options of `LPPlusPlus`; UserError if there are fewer STEPS than one BLOCK has."""

    steps: int = option(300, "STEPS", "steps on w and b", least=1)
    block: int = option(10, "BLOCK", "steps on w and b before each step on alpha", least=1)
    momentum: float = option(0.9, "MOMENTUM", "momentum of w and b", least=0)
    alpha_scale: float = option(
        250.0, "ALPHA_SCALE", "initial alpha, relative to the mean cosine of an image and its class"
    )
    select: bool = option(True, "SELECT", "whether to select the best step on val, if there are val images")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < self.block:
            raise UserError(f"STEPS must be at least BLOCK, {self.block}, got {self.steps}", "option")


class LPPlusPlus(Method[LPPlusPlusOptions]):
    """LP++: trains a linear classifier of the image features, and a weight for the text feature of each class.

    Huang, Shakeri, Dolz, Boudiaf, Bahig, Ben Ayed: LP++: A Surprisingly Strong Linear Probe for Few-Shot CLIP. CVPR
    2024.

        z_k = f . w_k + b_k + alpha_k * f . t_k

    Training minimises the cross-entropy over all images at once, in blocks: ten steps on w and b, then one on the
    weights alpha. The data determine the learning rates. Let F be the features of the N images and t the unit-norm text
    features. Then w starts at the sum of each class's features and has the rate 4 N / (largest eigenvalue of F'F);
    alpha starts at 250 times the mean over classes of the mean f . t_k of the class's images and has the rate
    N / (4 max_k sum_i (F_i . t_k)^2). As in the released code, w and b have momentum and alpha has none, and val
    selects one of 300 steps, the last of equally good ones.

    Differences from the original: its code never clears the gradient of alpha, so that alpha steps along the sum of all
    past gradients; here it steps along the current gradient, as in the paper. It samples as many val images per class
    as there are shots (on ImageNet: other training images); here there are at most 4, and without val images the last
    step counts. Here b starts at 0, in the original at random. A class without images starts at w = 0.
    """

    options: ClassVar[type] = LPPlusPlusOptions

    def fit(self, bank: FeatureBank, options: LPPlusPlusOptions, seed: int, backbone: object = None) -> FittedMethod:
        features = bank.cache_keys()
        labels = bank.train_labels
        text = bank.text_positive
        weights = [parameter.requires_grad_() for parameter in initial_weights(bank, options.alpha_scale)]
        weight, bias, alpha = weights
        largest = torch.linalg.eigvalsh(features.t() @ features)[-1].item()
        alpha_rate = len(features) / (4 * (features @ text.t()).square().sum(dim=0).max().item())
        optimizer = torch.optim.SGD([weight, bias], lr=4 * len(features) / largest, momentum=options.momentum)
        best = BestEpoch(weights)

        def logits(features: Tensor) -> Tensor:
            return F.linear(features, weight, bias) + alpha * (features @ text.t())

        for step in range(1, options.steps + 1):
            loss = F.cross_entropy(logits(features), labels)
            weight.grad, bias.grad, gradient = torch.autograd.grad(loss, weights)
            optimizer.step()
            if step % options.block == 0:
                alpha.data -= alpha_rate * gradient
            if options.select and has_val(bank):
                best.record(step, val_accuracy(logits, bank))
        for parameter in weights:
            parameter.requires_grad_(False)
        if not loss.isfinite():
            raise UserError(f"the loss is {loss.item()}; lower MOMENTUM ({options.momentum})")
        selected = {"STEP": best.restore()} if best.candidates else {}
        classifier = FoldedClassifier(weight + alpha[:, None] * text, bias)
        return FittedMethod(
            logits, count_parameters(weights), options.steps, options.steps, selected, classifier=classifier
        )


def initial_weights(bank: FeatureBank, alpha_scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return the initial w `[K, d]`, b `[K]` and alpha `[K]` of LP++."""
    features = bank.cache_keys()
    labels = bank.train_labels
    text = bank.text_positive
    weight = sum_by_class(features, labels, len(text))
    counts = labels.bincount(minlength=len(text))
    cosines = (features * text[labels]).sum(dim=1)
    means = (sum_by_class(cosines, labels, len(text)) / counts)[counts > 0]
    bias = text.new_zeros(len(text))
    alpha = text.new_full((len(text),), alpha_scale * means.mean().item())
    return weight, bias, alpha
