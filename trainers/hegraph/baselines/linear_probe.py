"""Linear probe: logistic regression on the image features.

Radford, Kim, Hallacy, Ramesh, Goh, Agarwal, Sastry, Askell, Mishkin, Clark, Krueger, Sutskever: Learning Transferable
Visual Models From Natural Language Supervision. ICML 2021. The few-shot protocol is that of `lpclip` in CoOp.

    z = W f + b        minimise C * (sum of the cross-entropies) + |W|^2 / 2

As in CoOp's `lpclip`: L-BFGS starts from 0, runs at most 1,000 iterations, and has scikit-learn's tolerance. Where C is
large neither has converged by then, and accuracy differs by up to 2.5 points. C is chosen on val: first the best of
seven powers of ten, then 8 steps of a binary search around it.

Distance from the original: its features keep the norm that the image tower gives them, ours are unit-norm, so the same
C regularises more here; the range of C is wide enough for both. Of several C that are equally good on val, it takes the
largest in the first round and the smallest in the binary search, and returns the C at which the search ends; here it is
the C nearest to the option `C` among all that were tried. Without val images C stays: 100 is about what val chose on
three banks of ViT-B/32 features (Caltech101, OxfordPets, UCF101). An image is the mean of its views here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..features.bank import FeatureBank
from ..method.cache import FoldedClassifier
from ..training.choice import check_candidates, choose, has_val, val_accuracy
from ..utils.errors import UserError
from .base import Defaults, FittedMethod, Method, Options

GRADIENT_TOLERANCE = 1e-4  # scikit-learn's `tol`: L-BFGS stops once no entry of the mean loss's gradient is larger


class LinearProbe(Method):
    """Trains a linear classifier of the image features."""

    defaults: ClassVar[Defaults] = {
        "C": 100.0,  # inverse strength of the penalty; a search takes the C nearest to it of those equally good
        "SEARCH": True,  # choose C on val, if there are val images
        "CANDIDATES": [1e6, 1e4, 1e2, 1.0, 1e-2, 1e-4, 1e-6],  # C in the first round
        "STEPS": 8,  # steps of the binary search
        "MAX_ITERATIONS": 1000,  # of L-BFGS
    }

    def fit(self, bank: FeatureBank, options: Options, seed: int, backbone: object = None) -> FittedMethod:
        """Trains K * (d + 1) weights; `seed` changes nothing."""
        check_candidates("CANDIDATES", options.CANDIDATES)
        if min([options.C, *options.CANDIDATES]) <= 0:
            raise UserError(f"C and CANDIDATES must be above 0, got {options.C} and {list(options.CANDIDATES)}")
        features, num_classes = bank.cache_keys(), len(bank.text_positive)

        @cache
        def probe(c: float) -> tuple[Tensor, Tensor, int]:
            return logistic_regression(features, bank.train_labels, num_classes, c, options.MAX_ITERATIONS)

        def accuracy(c: float) -> float:
            weight, bias, _ = probe(c)
            return val_accuracy(lambda x: F.linear(x, weight, bias), bank)

        c, selected = options.C, {}
        if options.SEARCH and has_val(bank):
            c, entry = search(options, accuracy)
            selected = {"C": entry}
        weight, bias, steps = probe(c)
        return FittedMethod(
            lambda x: F.linear(x, weight, bias),
            num_parameters=weight.numel() + bias.numel(),
            epochs=steps,
            steps=steps,
            selected=selected,
            classifier=FoldedClassifier(weight, bias),
        )


def search(options: Options, accuracy_of: Callable[[float], float]) -> tuple[float, dict]:
    """Chooses C among powers of ten, then by halving the interval around the best one, on a logarithmic scale.

    Returns C, and its entry of `FittedMethod.selected`.
    """
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
    return choose(sorted(accuracies, key=distance), accuracies.__getitem__)


def logistic_regression(
    features: Tensor, labels: Tensor, num_classes: int, c: float, max_iterations: int
) -> tuple[Tensor, Tensor, int]:
    """Fits a multinomial logistic regression to features `[N, d]` by L-BFGS; the bias has no penalty.

    Returns weights `[K, d]`, bias `[K]` and the number of iterations.
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
