"""GDA, TIMO and TIMO-S: Gaussian discriminant analysis of the image features, beside zero-shot CLIP, without training.

Every class is a Gaussian with its own mean `m_k` and a covariance `Sigma` that all share, estimated from M images, and
all classes are equally likely:

    f . w_k + b_k,   w_k = P m_k,   b_k = - m_k . P m_k / 2,   P = d * ((M - 1) Sigma + tr(Sigma) I)^+

`P` is the shrunken inverse of Kubokawa and Srivastava, and `^+` the pseudo-inverse. As in the released codes, each view
of an image counts as an image, and of equally good candidates on val the first is taken. A class without images has the
mean of all images as its mean.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..features.bank import FeatureBank
from ..method.cache import FoldedClassifier
from ..training.choice import choose, has_val, val_accuracy
from .base import Defaults, FittedMethod, Method, Options, check_numbers

T = TypeVar("T")


class GDA(Method):
    """Adds the logits of the Gaussians of the training images' views to the zero-shot logits.

    Wang, Liang, Sheng, He, Wang, Tan: A Hard-to-Beat Baseline for Training-free CLIP-based Adaptation. ICLR 2024.

        z = tau * cos(f, t_k) + alpha * (f . w_k + b_k)

    Distance from the original: without val images alpha is 0.1, the value that the authors' search starts at. With one
    view of one image of each class `Sigma` and `P` are 0, and the method is zero-shot CLIP.
    """

    defaults: ClassVar[Defaults] = {
        "ALPHA": 0.1,  # weight of the Gaussians' logits where nothing is chosen
        "SEARCH": True,  # choose ALPHA among CANDIDATES on val, if there are val images
        "CANDIDATES": [1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0],
    }

    def fit(self, bank: FeatureBank, options: Options, seed: int, backbone: object = None) -> FittedMethod:
        weight, bias = gaussian_classifier(*views_as_images(bank), len(bank.text_positive))

        def classifier(alpha: float) -> FoldedClassifier:
            return FoldedClassifier(bank.logit_scale * bank.text_positive + alpha * weight, alpha * bias)

        return best_on_val("ALPHA", options.ALPHA, options.CANDIDATES, classifier, bank, options)


class TIMO(Method):
    """Adds the text features to Gaussian discriminant analysis, as images and as a classifier.

    Li, Guo, Qi, Li, Shi: Text and Image Are Mutually Beneficial: Enhancing Training-Free Few-Shot Classification with
    CLIP. AAAI 2025.

        z = alpha * cos(f, t'_k) + f . w_k + b_k
        t'_k = sum over the prompts p of class k of softmax_p(gamma * s_kp / |s_k|) * t_kp,    s_kp = cos(t_kp, m_k)

    The features `t_kp` of the class's P prompts are images as well, each multiplied by its cosine and taken once.

    Distance from the original: a bank holds one text feature for each class, so P is 1, and `t'_k` is the text feature
    itself, whatever gamma is. Without val images, where the authors' code stops, alpha is 100, zero-shot CLIP's scale.
    """

    defaults: ClassVar[Defaults] = {
        "ALPHA": 100.0,  # weight of the text where nothing is chosen: CLIP's `tau`
        "SEARCH": True,  # choose ALPHA among CANDIDATES on val, if there are val images
        "CANDIDATES": [1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0, 1e3, 1e4],
    }

    def fit(self, bank: FeatureBank, options: Options, seed: int, backbone: object = None) -> FittedMethod:
        weight, bias = text_guided_classifier(bank, times=1)

        def classifier(alpha: float) -> FoldedClassifier:
            return FoldedClassifier(alpha * bank.text_positive + weight, bias)

        return best_on_val("ALPHA", options.ALPHA, options.CANDIDATES, classifier, bank, options)


class TIMOS(Method):
    """TIMO-S: TIMO, with the number beta of prompts of a class that count as images chosen on val together with alpha.

    Li, Guo, Qi, Li, Shi: Text and Image Are Mutually Beneficial: Enhancing Training-Free Few-Shot Classification with
    CLIP. AAAI 2025.

    Distance from the original: TIMO's. With P = 1, beta is 1 or 2: the text feature counts once or twice. Gamma, which
    changes nothing then, is not searched.
    """

    defaults: ClassVar[Defaults] = {
        **TIMO.defaults,
        "BETA": 1,  # how often each text feature counts as an image where nothing is chosen
        "BETAS": [1, 2],  # candidates for BETA, each with all of CANDIDATES
    }

    def fit(self, bank: FeatureBank, options: Options, seed: int, backbone: object = None) -> FittedMethod:
        check_numbers("BETA", [options.BETA], 1, whole=True)
        check_numbers("BETAS", options.BETAS, 1, whole=True)
        gaussians = {beta: text_guided_classifier(bank, times=beta) for beta in (options.BETA, *options.BETAS)}

        def classifier(values: tuple[int, float]) -> FoldedClassifier:
            beta, alpha = values
            weight, bias = gaussians[beta]
            return FoldedClassifier(alpha * bank.text_positive + weight, bias)

        candidates = [(beta, alpha) for beta in options.BETAS for alpha in options.CANDIDATES]
        return best_on_val("BETA, ALPHA", (options.BETA, options.ALPHA), candidates, classifier, bank, options)


def best_on_val(
    name: str,
    start: T,
    candidates: Sequence[T],
    classifier: Callable[[T], FoldedClassifier],
    bank: FeatureBank,
    options: Options,
) -> FittedMethod:
    """The classifier of the candidate that is best on val, which the record calls `name`; without val, of `start`."""
    check_numbers("CANDIDATES", options.CANDIDATES, 0)
    selected = {}
    if options.SEARCH and has_val(bank):
        accuracies = {values: val_accuracy(classifier(values).logits, bank) for values in candidates}
        start, selected[name] = choose(accuracies)
    fitted = classifier(start)
    return FittedMethod(fitted.logits, selected=selected, classifier=fitted)


def text_guided_classifier(bank: FeatureBank, times: int) -> tuple[Tensor, Tensor]:
    """The weights `w_k`, shape `[K, d]`, and biases `b_k`, `[K]`, where each text feature is so many times an image."""
    text, num_classes = bank.text_positive, len(bank.text_positive)
    means = F.normalize(means_of_classes(bank.cache_keys(), bank.train_labels, num_classes), dim=-1)
    scores = (text * means).sum(dim=1, keepdim=True)  # s_k, shape [K, 1]
    images, labels = views_as_images(bank)
    text_images = (scores * text).repeat(times, 1)
    text_labels = torch.arange(num_classes, device=labels.device).repeat(times)
    return gaussian_classifier(torch.cat([text_images, images]), torch.cat([text_labels, labels]), num_classes)


def views_as_images(bank: FeatureBank) -> tuple[Tensor, Tensor]:
    """All views of the training images, shape `[V * N, d]`, and their labels, shape `[V * N]`."""
    return bank.train_features.flatten(0, 1), bank.train_labels.repeat(len(bank.train_features))


def means_of_classes(images: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """The mean of each class's images `[M, d]`, shape `[K, d]`; the mean of all images for a class without images."""
    counts = labels.bincount(minlength=num_classes)[:, None]
    sums = images.new_zeros(num_classes, images.shape[1]).index_add(0, labels, images)
    return torch.where(counts > 0, sums / counts.clamp_min(1), images.mean(dim=0))


def gaussian_classifier(images: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """The weights `w_k`, shape `[K, d]`, and the biases `b_k`, shape `[K]`; arguments as of `means_of_classes`."""
    means = means_of_classes(images, labels, num_classes)
    deviations = images - means[labels]
    scatter = deviations.t() @ deviations  # (M - 1) Sigma
    trace = scatter.trace() / max(len(images) - 1, 1)
    width = images.shape[1]
    precision = width * torch.linalg.pinv(scatter + trace * torch.eye(width).to(scatter), hermitian=True)
    weight = F.linear(means, precision)
    return weight, -(weight * means).sum(dim=1) / 2
