"""Linear probe: logistic regression on the image features.

Radford, Kim, Hallacy, Ramesh, Goh, Agarwal, Sastry, Askell, Mishkin, Clark, Krueger, Sutskever: Learning Transferable
Visual Models From Natural Language Supervision. ICML 2021. The few-shot protocol is that of `lpclip` in CoOp.

    z = W f + b        minimise C * (sum of the cross-entropies) + |W|^2 / 2

The text is not looked at. As in CoOp's `lpclip`: L-BFGS from 0, at most 1,000 iterations, stopped like scikit-learn's;
C is the best on val of seven powers of ten, and then narrowed down around it in 8 steps of a binary search.

Away from the original: features are unit-norm, where theirs keep the norm that the image tower gives them, so the same
C regularises more here; the range is wide enough for both. Of val's equals theirs takes the largest C in the first
round and the smallest in the search, and ends where the search does; we take the one nearest to `C`, of all that were
tried. Without val images C stays: 100 is about where val put it on three banks of ViT-B/32 features (Caltech101,
OxfordPets, UCF101). An image is the mean of its views; theirs is the one view of the test transform.
"""

from __future__ import annotations

import math
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
    "C": 100.0,  # inverse strength of the penalty; where a search breaks its ties
    "SEARCH": True,  # choose C on val, where there is val
    "CANDIDATES": [1e6, 1e4, 1e2, 1.0, 1e-2, 1e-4, 1e-6],  # the first round's
    "STEPS": 8,  # of the binary search
    "MAX_ITERATIONS": 1000,  # of L-BFGS
}

GRADIENT_TOLERANCE = 1e-4  # scikit-learn's `tol`: the largest entry of the gradient of the mean loss


def fit(bank: FeatureBank, options: CfgNode, seed: int) -> Fitted:
    """Trains K * (d + 1) weights; `seed` changes nothing."""
    if min([options.C, *options.CANDIDATES]) <= 0:
        raise UserError(f"C and CANDIDATES must be above 0, got {options.C} and {list(options.CANDIDATES)}")
    features, num_classes = bank.cache_keys(), len(bank.text_positive)
    probes: dict[float, tuple[Tensor, Tensor, int]] = {}

    def probe(c: float) -> tuple[Tensor, Tensor, int]:
        if c not in probes:
            probes[c] = logistic_regression(features, bank.train_labels, num_classes, c, options.MAX_ITERATIONS)
        return probes[c]

    def accuracy(c: float) -> float:
        weight, bias, _ = probe(c)
        return val_accuracy(lambda x: F.linear(x, weight, bias), bank)

    c, selected = options.C, {}
    if options.SEARCH and has_val(bank):
        c, selected = search(options, accuracy)
    weight, bias, steps = probe(c)
    return Fitted(lambda x: F.linear(x, weight, bias), weight.numel() + bias.numel(), steps, steps, selected)


def search(options: CfgNode, accuracy_of: Callable[[float], float]) -> tuple[float, dict]:
    """C by powers of ten, then by halving the interval around the best in the logarithm."""
    accuracies = {c: accuracy_of(c) for c in options.CANDIDATES}

    def distance(c: float) -> float:
        return abs(math.log10(c / options.C))

    peak, _ = choose(sorted(accuracies, key=distance), accuracies.__getitem__)
    low, high = math.log10(peak) - 1, math.log10(peak) + 1
    for _ in range(options.STEPS):
        left, right = 10**low, 10**high
        accuracies |= {c: accuracy_of(c) for c in (left, right) if c not in accuracies}
        if accuracies[left] < accuracies[right]:
            low = (low + high) / 2
        else:
            high = (low + high) / 2
    best, entry = choose(sorted(accuracies, key=distance), accuracies.__getitem__)
    return best, {"C": entry}


def logistic_regression(
    features: Tensor, labels: Tensor, num_classes: int, c: float, max_iterations: int
) -> tuple[Tensor, Tensor, int]:
    """Multinomial logistic regression by L-BFGS.

    Args:
        features: Shape `[N, d]`.
        labels: Shape `[N]`.
        num_classes: K; a class may be without images.
        c: Inverse strength of the penalty on the weights; the bias is free.
        max_iterations: Of L-BFGS.

    Returns:
        Weights `[K, d]`, bias `[K]` and the number of iterations.
    """
    weight = features.new_zeros(num_classes, features.shape[1]).requires_grad_()
    bias = features.new_zeros(num_classes).requires_grad_()
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=max_iterations,
        tolerance_grad=GRADIENT_TOLERANCE,
        tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(F.linear(features, weight, bias), labels)
        value = value + weight.square().sum() / (2 * c * len(labels))
        value.backward()
        return value

    optimizer.step(loss)
    return weight.detach(), bias.detach(), optimizer.state[weight]["n_iter"]
