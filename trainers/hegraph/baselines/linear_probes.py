"""Linear classifiers of the image features, averaged over the views of an image: the linear probe and LP++."""

import math
from collections.abc import Callable
from functools import cache, partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..features.bank import FeatureBank
from ..method.cache import FoldedClassifier
from ..method.graph import sum_by_class
from ..method.training.choice import choose, has_val, val_accuracy
from ..utils.errors import UserError
from .base import Defaults, FittedMethod, Method, Options, check_number, check_numbers
from .trained import BestEpoch, count_parameters

TOLERANCE = 1e-4  # scikit-learn's `tol`: L-BFGS stops once no entry of the mean loss's gradient is larger


class LinearProbe(Method):
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

    defaults: ClassVar[Defaults] = {
        "C": 100.0,  # inverse penalty; of equally good candidates, the search selects the nearest to it
        "SEARCH": True,  # select C on val, if there are val images
        "CANDIDATES": [1e6, 1e4, 1e2, 1.0, 1e-2, 1e-4, 1e-6],  # values of C in the first round
        "STEPS": 8,  # steps of the binary search
        "MAX_ITERATIONS": 1000,  # maximum number of iterations of L-BFGS
    }

    def fit(self, bank: FeatureBank, options: Options, seed: int, backbone: object = None) -> FittedMethod:
        check_numbers("CANDIDATES", options.CANDIDATES)
        check_number("C", options.C)
        probe = cache(lambda c: logistic_regression(bank, c, options.MAX_ITERATIONS))
        c, selected = options.C, {}
        if options.SEARCH and has_val(bank):
            c, selected["C"] = search(options, lambda c: val_accuracy(lambda x: F.linear(x, *probe(c)[:2]), bank))
        weight, bias, steps = probe(c)
        logits, classifier = partial(F.linear, weight=weight, bias=bias), FoldedClassifier(weight, bias)
        return FittedMethod(logits, count_parameters([weight, bias]), steps, steps, selected, classifier=classifier)


def search(options: Options, val_accuracy_of: Callable[[float], float]) -> tuple[float, dict]:
    """Select C among CANDIDATES, then by a binary search on a logarithmic scale around the best one.

    Returns:
        C, and its entry of `FittedMethod.selected`.
    """
    accuracies = {c: val_accuracy_of(c) for c in options.CANDIDATES}

    def distance(c: float) -> float:
        return abs(math.log10(c / options.C))

    peak, _ = choose(accuracies, distance)
    low, high = math.log10(peak) - 1, math.log10(peak) + 1
    for _ in range(options.STEPS):
        left, right = 10**low, 10**high
        accuracies |= {c: val_accuracy_of(c) for c in (left, right) if c not in accuracies}
        middle = (low + high) / 2
        low, high = (middle, high) if accuracies[left] < accuracies[right] else (low, middle)
    return choose(accuracies, distance)


def logistic_regression(bank: FeatureBank, c: float, iterations: int) -> tuple[Tensor, Tensor, int]:
    """Fit a multinomial logistic regression to the training images by L-BFGS, without a penalty on the bias.

    Returns:
        Weights `[K, d]`, biases `[K]` and the number of iterations.
    """
    features, labels = bank.cache_keys(), bank.train_labels
    weight = torch.zeros_like(bank.text_positive).requires_grad_()
    bias = weight.new_zeros(len(weight)).requires_grad_()
    rules: dict[str, Any] = {"tolerance_grad": TOLERANCE, "tolerance_change": 0.0, "line_search_fn": "strong_wolfe"}
    optimizer = torch.optim.LBFGS([weight, bias], 1.0, iterations, **rules)

    def loss() -> Tensor:
        optimizer.zero_grad()
        cross_entropy = F.cross_entropy(F.linear(features, weight, bias), labels)
        value = cross_entropy + weight.square().sum() / (2 * c * len(labels))
        value.backward()
        return value

    optimizer.step(loss)
    return weight.detach(), bias.detach(), optimizer.state[weight]["n_iter"]


class LPPlusPlus(Method):
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

    defaults: ClassVar[Defaults] = {
        "STEPS": 300,  # steps on w and b
        "BLOCK": 10,  # steps on w and b before each step on alpha
        "MOMENTUM": 0.9,  # momentum of w and b
        "ALPHA_SCALE": 250.0,  # initial alpha, relative to the mean cosine of an image and its class
        "SELECT": True,  # select the best step on val, if there are val images
    }

    def fit(self, bank: FeatureBank, options: Options, seed: int, backbone: object = None) -> FittedMethod:
        check_number("BLOCK", options.BLOCK, 1, integer=True)
        check_number("STEPS", options.STEPS, options.BLOCK, integer=True)
        check_number("MOMENTUM", options.MOMENTUM, 0)
        features, labels, text = bank.cache_keys(), bank.train_labels, bank.text_positive
        weights = weight, bias, alpha = [w.requires_grad_() for w in initial_weights(bank, options.ALPHA_SCALE)]
        largest = torch.linalg.eigvalsh(features.t() @ features)[-1].item()
        alpha_rate = len(features) / (4 * (features @ text.t()).square().sum(dim=0).max().item())
        optimizer = torch.optim.SGD([weight, bias], lr=4 * len(features) / largest, momentum=options.MOMENTUM)
        best = BestEpoch(weights)

        def logits(features: Tensor) -> Tensor:
            return F.linear(features, weight, bias) + alpha * (features @ text.t())

        for step in range(1, options.STEPS + 1):
            loss = F.cross_entropy(logits(features), labels)
            weight.grad, bias.grad, gradient = torch.autograd.grad(loss, weights)
            optimizer.step()
            if step % options.BLOCK == 0:
                alpha.data -= alpha_rate * gradient
            if options.SELECT and has_val(bank):
                best.record(step, val_accuracy(logits, bank))
        for parameter in weights:
            parameter.requires_grad_(False)
        if not loss.isfinite():
            raise UserError(f"the loss is {loss.item()}; lower MOMENTUM ({options.MOMENTUM})")
        selected = {"STEP": best.restore()} if best.candidates else {}
        number, classifier = count_parameters(weights), FoldedClassifier(weight + alpha[:, None] * text, bias)
        return FittedMethod(logits, number, options.STEPS, options.STEPS, selected, classifier=classifier)


def initial_weights(bank: FeatureBank, alpha_scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return the initial w `[K, d]`, b `[K]` and alpha `[K]` of LP++."""
    features, labels, text = bank.cache_keys(), bank.train_labels, bank.text_positive
    weight, counts = sum_by_class(features, labels, len(text)), labels.bincount(minlength=len(text))
    cosines = (features * text[labels]).sum(dim=1)
    means = (sum_by_class(cosines, labels, len(text)) / counts)[counts > 0]
    return weight, text.new_zeros(len(text)), text.new_full((len(text),), alpha_scale * means.mean().item())
