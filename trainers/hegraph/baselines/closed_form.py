"""Training-free methods that add a classifier in closed form to zero-shot CLIP: GDA, TIMO, TIMO-S, ProKeR, ReHARK.

GDA, TIMO and TIMO-S are Gaussian discriminant analysis: every class is a Gaussian with its own mean `m_k`, all share
one covariance `Sigma`, estimated from M images, and all classes are equally likely. The logits are

    f . w_k + b_k,   w_k = P m_k,   b_k = - m_k . P m_k / 2,   P = d * ((M - 1) Sigma + tr(Sigma) I)^+

`P` is the shrunken inverse of Kubokawa and Srivastava, and `^+` the pseudo-inverse. As in the released codes, each view
of an image counts as an image, and of equally good candidates on val the first is selected. The mean of a class without
images is the mean of all images.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..features.bank import FeatureBank
from ..method.cache import FoldedClassifier, affinities, cache_affinities, text_logits
from ..method.graph import sum_by_class
from ..method.training.choice import accuracy, choose, has_val, val_accuracy, val_images
from .base import FittedMethod, Method
from .options import BaselineOptions, by_dataset, by_shots, option

T = TypeVar("T")


@dataclass(frozen=True)
class GDAOptions(BaselineOptions):
    """Options of `GDA`."""

    alpha: float = option(0.1, "ALPHA", "weight of the Gaussians' logits without a search")
    search: bool = option(True, "SEARCH", "whether to select ALPHA among CANDIDATES on val, if there are val images")
    candidates: Sequence[float] = option(
        [1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0], "CANDIDATES", "candidates of ALPHA", numbers=0, least=0
    )


class GDA(Method[GDAOptions]):
    """GDA: adds the logits of Gaussian discriminant analysis to the zero-shot logits.

    Wang, Liang, Sheng, He, Wang, Tan: A Hard-to-Beat Baseline for Training-free CLIP-based Adaptation. ICLR 2024.

        z = tau * cos(f, t_k) + alpha * (f . w_k + b_k)

    Differences from the original: without val images alpha is 0.1, the initial value of the authors' search. With one
    view of one image per class, `Sigma` and `P` are 0, and the method equals zero-shot CLIP.
    """

    options: ClassVar[type] = GDAOptions

    def fit(self, bank: FeatureBank, options: GDAOptions, seed: int, backbone: object = None) -> FittedMethod:
        weight, bias = gaussian_classifier(*views_as_images(bank), len(bank.text_positive))

        def classifier(alpha: float) -> FoldedClassifier:
            return FoldedClassifier(bank.logit_scale * bank.text_positive + alpha * weight, alpha * bias)

        return best_on_val(bank, options.search, "ALPHA", options.alpha, options.candidates, classifier)


@dataclass(frozen=True)
class TIMOOptions(BaselineOptions):
    """Options of `TIMO`."""

    alpha: float = option(100.0, "ALPHA", "weight of the text without a search: CLIP's `tau`")
    search: bool = option(True, "SEARCH", "whether to select ALPHA among CANDIDATES on val, if there are val images")
    candidates: Sequence[float] = option(
        [1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0, 1e3, 1e4], "CANDIDATES", "candidates of ALPHA", numbers=0, least=0
    )


class TIMO(Method[TIMOOptions]):
    """TIMO: Gaussian discriminant analysis that uses the text features as images and as a classifier.

    Li, Guo, Qi, Li, Shi: Text and Image Are Mutually Beneficial: Enhancing Training-Free Few-Shot Classification with
    CLIP. AAAI 2025.

        z = alpha * cos(f, t'_k) + f . w_k + b_k
        t'_k = sum over the prompts p of class k of softmax_p(gamma * s_kp / |s_k|) * t_kp,    s_kp = cos(t_kp, m_k)

    The features `t_kp` of the class's P prompts, each multiplied by its cosine, count as one image each.

    Differences from the original: a bank holds one text feature per class, so P is 1, and `t'_k` is the text feature
    whatever gamma is. Without val images, which the authors' code requires, alpha is 100, zero-shot CLIP's scale.
    """

    options: ClassVar[type] = TIMOOptions

    def fit(self, bank: FeatureBank, options: TIMOOptions, seed: int, backbone: object = None) -> FittedMethod:
        weight, bias = text_guided_classifier(bank, times=1)

        def classifier(alpha: float) -> FoldedClassifier:
            return FoldedClassifier(alpha * bank.text_positive + weight, bias)

        return best_on_val(bank, options.search, "ALPHA", options.alpha, options.candidates, classifier)


@dataclass(frozen=True)
class TIMOSOptions(TIMOOptions):
    """Options of `TIMOS`."""

    beta: int = option(
        1, "BETA", "number of times that each text feature counts as an image, without a search", least=1
    )
    betas: Sequence[int] = option(
        [1, 2], "BETAS", "candidates of BETA, each combined with all CANDIDATES", numbers=0, least=1
    )


class TIMOS(Method[TIMOSOptions]):
    """TIMO-S: TIMO with beta, the number of a class's prompts that count as images, selected on val with alpha.

    Li, Guo, Qi, Li, Shi: Text and Image Are Mutually Beneficial: Enhancing Training-Free Few-Shot Classification with
    CLIP. AAAI 2025.

    Differences from the original: as for TIMO. With P = 1, beta is 1 or 2: the text feature counts once or twice. Gamma
    has no effect then and is not searched.
    """

    options: ClassVar[type] = TIMOSOptions

    def fit(self, bank: FeatureBank, options: TIMOSOptions, seed: int, backbone: object = None) -> FittedMethod:
        gaussians = {beta: text_guided_classifier(bank, times=beta) for beta in (options.beta, *options.betas)}

        def classifier(values: tuple[int, float]) -> FoldedClassifier:
            beta, alpha = values
            weight, bias = gaussians[beta]
            return FoldedClassifier(alpha * bank.text_positive + weight, bias)

        initial = (options.beta, options.alpha)
        candidates = [*itertools.product(options.betas, options.candidates)]
        return best_on_val(bank, options.search, "BETA, ALPHA", initial, candidates, classifier)


def best_on_val(
    bank: FeatureBank, search: bool, key: str, value: T, candidates: Sequence[T], fold: Callable[[T], FoldedClassifier]
) -> FittedMethod:
    """Return the classifier of the candidate with the best accuracy on val; without a search, of `value`.

    Args:
        search: Whether to select a candidate, if there are val images.
        key: Key of `FittedMethod.selected`.
        fold: Function from a candidate to its classifier.
    """
    selected = {}
    if search and has_val(bank):
        accuracies = {candidate: val_accuracy(fold(candidate).logits, bank) for candidate in candidates}
        value, selected[key] = choose(accuracies)
    classifier = fold(value)
    return FittedMethod(classifier.logits, selected=selected, classifier=classifier)


def text_guided_classifier(bank: FeatureBank, times: int) -> tuple[Tensor, Tensor]:
    """Return TIMO's weights `w_k`, shape `[K, d]`, and biases `b_k`, `[K]`.

    Each text feature counts `times` times as an image.
    """
    text = bank.text_positive
    num_classes = len(text)
    means = F.normalize(class_means(bank.cache_keys(), bank.train_labels, num_classes), dim=-1)
    scores = (text * means).sum(dim=1, keepdim=True)  # s_k, shape [K, 1]
    images, labels = views_as_images(bank)
    text_images = (scores * text).repeat(times, 1)
    text_labels = torch.arange(num_classes, device=labels.device).repeat(times)
    return gaussian_classifier(torch.cat([text_images, images]), torch.cat([text_labels, labels]), num_classes)


def views_as_images(bank: FeatureBank) -> tuple[Tensor, Tensor]:
    """Return all views of the training images, shape `[V * N, d]`, and their labels, shape `[V * N]`."""
    return bank.train_features.flatten(0, 1), bank.train_labels.repeat(len(bank.train_features))


def class_means(images: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Return the mean of each class's images `[M, d]`, shape `[K, d]`; for a class without images, of all images."""
    counts = labels.bincount(minlength=num_classes)[:, None]
    return torch.where(counts > 0, sum_by_class(images, labels, num_classes) / counts, images.mean(dim=0))


def gaussian_classifier(images: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Fit Gaussian discriminant analysis.

    Args:
        images: Unit-norm features, shape `[M, d]`.
        labels: Their classes, shape `[M]`.
        num_classes: K.

    Returns:
        Weights `w_k`, shape `[K, d]`, and biases `b_k`, shape `[K]`.
    """
    means = class_means(images, labels, num_classes)
    deviations = images - means[labels]
    scatter = deviations.t() @ deviations  # (M - 1) Sigma
    trace = scatter.trace() / max(len(images) - 1, 1)
    width = images.shape[1]
    precision = width * torch.linalg.pinv(scatter + trace * torch.eye(width).to(scatter), hermitian=True)
    weight = F.linear(means, precision)
    return weight, -(weight * means).sum(dim=1) / 2


@dataclass(frozen=True)
class ProKeROptions(BaselineOptions):
    """Options of `ProKeR`."""

    beta: float = by_shots({1: 3.0, 2: 2.6, 4: 1.5, 8: 1.66, 16: 1.7}, "BETA", "sharpness of the kernel", above=0)
    penalty: float = by_shots(
        {1: 0.05, 8: 0.07, 16: 0.1}, "LAMBDA", "penalty of the regression, and weight of its logits", above=0
    )
    search: bool = option(True, "SEARCH", "whether to select BETA and LAMBDA on val, if there are val images")
    search_range: Sequence[float] = by_dataset(
        [0.5, 3.0, 0.001, 1.0],
        "SEARCH_RANGE",
        "range of the grid, [minimum of BETA, maximum, minimum of LAMBDA, maximum]; by default the authors' for "
        "Caltech101, EuroSAT, FGVCAircraft, Food101 and UCF101",
        {
            "DescribableTextures": [0.1, 10.0, 0.001, 10.0], "ImageNet": [1.5, 3.0, 0.05, 0.25],
            "OxfordFlowers": [0.1, 10.0, 0.001, 10.0], "OxfordPets": [0.01, 5.0, 0.01, 0.3],
            "StanfordCars": [0.1, 10.0, 0.01, 1.0], "SUN397": [0.1, 10.0, 0.01, 10.0],
        },
        numbers=4,
        above=0,
    )  # fmt: skip
    search_step: Sequence[int] = option(
        [10, 10], "SEARCH_STEP", "number of values of [BETA, LAMBDA] in the grid", numbers=2, least=1
    )


class ProKeR(Method[ProKeROptions]):
    """ProKeR: adds a kernel ridge regression of the residuals of zero-shot CLIP to its logits.

    Bendou, Ouasfi, Gripon, Boukhayma: ProKeR: A Kernel Perspective on Few-Shot Adaptation of Large Vision-Language
    Models. CVPR 2025.

        z = cos(f, t_k) + sum over the training images i of k(f, F_i) * A_ik
        A = (K / lambda + I)^-1 (Y - T),    k(x, y) = exp(-beta * (1 - cos(x, y)))

    `Y` holds the one-hot labels of the N training images, `T` their cosines with the text features, and `K` the kernel
    between them. The sum is lambda times the kernel ridge regression of `Y - T` with the penalty lambda: the released
    code omits the factor 1 / lambda, so lambda is also the weight of the regression. As in that code, beta and lambda
    are searched on val, over its range for each data set. Of equally good candidates the smallest beta and then the
    smallest lambda are selected. The values without val are those that the authors transfer from ImageNet, by shots.

    Differences from the original: it counts each augmented view as an image; here an image is the mean of its views,
    which keeps the system at N by N. The few-shot val split is too small to distinguish up to 2,000 candidates, so the
    grid is 10 by 10. Logits are multiplied by CLIP's `tau`, which changes no prediction. The reference is a fork of the
    authors' code, github.com/omarnust/BReg-Adapter, at the authors' last commit there, f2ecb3d.
    """

    options: ClassVar[type] = ProKeROptions
    not_saved: ClassVar[str] = "each image of its cache has a weight for every class"

    def fit(self, bank: FeatureBank, options: ProKeROptions, seed: int, backbone: object = None) -> FittedMethod:
        beta = options.beta
        lam = options.penalty
        selected = {}
        if options.search and has_val(bank):
            (beta, lam), selected["BETA, LAMBDA"] = choose(accuracies_on_val(bank, options))
        keys = bank.cache_keys()
        coefficients = solve(bank, beta, [lam])[0]

        def logits(features: Tensor) -> Tensor:
            kernel = cache_affinities(features, keys, beta)
            text = text_logits(features, bank.text_positive, bank.logit_scale)
            return text + bank.logit_scale * kernel @ coefficients

        return FittedMethod(logits, selected=selected)


def solve(bank: FeatureBank, beta: float, lambdas: list[float]) -> list[Tensor]:
    """Solve the kernel ridge regression of ProKeR for each lambda; returns the coefficients A, each `[N, K]`."""
    keys = bank.cache_keys()
    kernel = cache_affinities(keys, keys, beta)
    targets = F.one_hot(bank.train_labels, len(bank.text_positive)) - text_logits(keys, bank.text_positive, 1.0)
    identity = torch.eye(len(kernel)).to(kernel)
    return [torch.cholesky_solve(targets, torch.linalg.cholesky(kernel / lam + identity)) for lam in lambdas]


def accuracies_on_val(bank: FeatureBank, options: ProKeROptions) -> dict[tuple[float, float], float]:
    """Return (beta, lambda) -> accuracy on val in percent for the grid, in ascending order."""
    least_beta, most_beta, least_lambda, most_lambda = options.search_range
    num_betas, num_lambdas = options.search_step
    betas = evenly_spaced(least_beta, most_beta, num_betas)
    lambdas = evenly_spaced(least_lambda, most_lambda, num_lambdas)
    features, labels = val_images(bank)
    text = text_logits(features, bank.text_positive, 1.0)
    accuracies: dict[tuple[float, float], float] = {}
    for beta in betas:
        kernel = cache_affinities(features, bank.cache_keys(), beta)
        for lam, coefficients in zip(lambdas, solve(bank, beta, lambdas)):
            accuracies[beta, lam] = accuracy(text + kernel @ coefficients, labels)
    return accuracies


def evenly_spaced(first: float, last: float, count: int) -> list[float]:
    """Return `count` evenly spaced numbers from `first` to `last`."""
    return torch.linspace(first, last, count, dtype=torch.float64).tolist()


@dataclass(frozen=True)
class ReHARKOptions(BaselineOptions):
    """Options of `ReHARK`."""

    sharpness: Sequence[float] = by_shots(
        {1: [15.0, 2.0]}, "SHARPNESS", "b_1 and b_2, sharpness of the kernels", numbers=2, above=0
    )
    mix: float = option(0.7, "MIX", "m, weight of the first kernel", least=0, most=1)
    penalty: float = by_shots({1: 2.0, 4: 0.1}, "PENALTY", "lambda, penalty of the regression", above=0)
    images: float = by_shots({1: 0.1}, "IMAGES", "w, weight of the images in the prior", least=0, most=1)
    shift: float = option(0.1, "SHIFT", "r, weight of the prior in the shifted images")
    scale: float = by_shots({1: 16.0, 4: 4.0}, "SCALE", "s, scale of the prior's logits", above=0)
    exponent: float = option(0.8, "EXPONENT", "e, exponent of the entries of a feature", above=0)


class ReHARK(Method[ReHARKOptions]):
    """ReHARK: kernel ridge regression with two kernels, on the images and on images shifted to a prior.

    Islam: ReHARK: Refined Hybrid Adaptive RBF Kernels for Robust One-Shot Vision-Language Adaptation. arXiv 2603.11542.

        z = s * f . p_k + sum over the 2 N support features j of k(f, S_j) * A_jk
        A = (K + lambda * I)^-1 (Y - s * S P^T),    k(x, y) = m * exp(-b_1 |x - y|^2) + (1 - m) * exp(-b_2 |x - y|^2)
        p_k = unit((1 - w) * t_k + w * m_k),        S = (F_i, unit(F_i + r * p_k of the image's class))

    Each entry x of a feature is first replaced by `sign(x) |x|^e`. `unit` normalises to unit norm. `m_k` is the mean
    image of class k, of unit norm, and 0 for a class without images.

    Differences from the original: its code searches all values in 1,000 trials on val; here they are fixed. They were
    chosen on validation images and training images outside the sample (results/README.md). The original also
    moves the test features to the mean and the deviation of the support features, which makes it transductive; here
    each test image is classified alone. A bank holds one text feature per class, so the text of GPT-3 has no part. The
    original counts each augmented view as an image.
    """

    options: ClassVar[type] = ReHARKOptions
    not_saved: ClassVar[str] = ProKeR.not_saved

    def fit(self, bank: FeatureBank, options: ReHARKOptions, seed: int, backbone: object = None) -> FittedMethod:
        scale = options.scale
        images = options.images

        def transform(features: Tensor) -> Tensor:
            return F.normalize(features.sign() * features.abs() ** options.exponent, dim=-1)

        def kernel(x: Tensor, y: Tensor) -> Tensor:  # |x - y|^2 = 2 (1 - x . y) for unit-norm rows
            b_1, b_2 = options.sharpness
            narrow = affinities(x @ y.t(), 2 * b_1)
            wide = affinities(x @ y.t(), 2 * b_2)
            return options.mix * narrow + (1 - options.mix) * wide

        labels = bank.train_labels
        keys = transform(bank.cache_keys())
        text = transform(bank.text_positive)
        means = F.normalize(sum_by_class(keys, labels, len(text)), dim=-1)
        prior = F.normalize((1 - images) * text + images * means, dim=-1)
        support = torch.cat([keys, F.normalize(keys + options.shift * prior[labels], dim=-1)])
        targets = F.one_hot(labels.repeat(2), len(text)) - scale * support @ prior.t()
        penalties = options.penalty * torch.eye(len(support)).to(support)
        coefficients = torch.linalg.solve(kernel(support, support) + penalties, targets)

        def logits(features: Tensor) -> Tensor:
            features = transform(features)
            return scale * features @ prior.t() + kernel(features, support) @ coefficients

        return FittedMethod(logits)
