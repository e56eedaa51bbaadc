"""Methods in closed form beside zero-shot CLIP: Gaussian discriminant analysis (GDA, TIMO, TIMO-S) and ProKeR.

In the first three, every class is a Gaussian with its own mean `m_k` and a covariance `Sigma` that all share, estimated
from M images, and all classes are equally likely:

    f . w_k + b_k,   w_k = P m_k,   b_k = - m_k . P m_k / 2,   P = d * ((M - 1) Sigma + tr(Sigma) I)^+

`P` is the shrunken inverse of Kubokawa and Srivastava, and `^+` the pseudo-inverse. As in the released codes, each view
of an image counts as an image, and of equally good candidates on val the first is taken. A class without images has the
mean of all images as its mean.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..features.bank import FeatureBank
from ..method.cache import FoldedClassifier, cache_affinities, text_logits
from ..training.choice import accuracy, choose, has_val, val_accuracy, val_images
from .base import Defaults, FittedMethod, Method, Options, by_dataset, check_numbers, value_for_task

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

        return best_on_val(bank, options, "ALPHA", options.ALPHA, options.CANDIDATES, classifier)


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

        return best_on_val(bank, options, "ALPHA", options.ALPHA, options.CANDIDATES, classifier)


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
        return best_on_val(bank, options, "BETA, ALPHA", (options.BETA, options.ALPHA), candidates, classifier)


def best_on_val(
    bank: FeatureBank, options: Options, name: str, start: T, candidates: list[T], fold: Callable[[T], FoldedClassifier]
) -> FittedMethod:
    """The classifier of the candidate that is best on val, which the record calls `name`; without val, of `start`."""
    check_numbers("CANDIDATES", options.CANDIDATES, 0)
    selected = {}
    if options.SEARCH and has_val(bank):
        start, selected[name] = choose({values: val_accuracy(fold(values).logits, bank) for values in candidates})
    fitted = fold(start)
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
    return torch.where(counts > 0, sums / counts, images.mean(dim=0))


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


class ProKeR(Method):
    """ProKeR: adds a kernel ridge regression of what zero-shot CLIP leaves open to its logits.

    Bendou, Ouasfi, Gripon, Boukhayma: ProKeR: A Kernel Perspective on Few-Shot Adaptation of Large Vision-Language
    Models. CVPR 2025.

        z = cos(f, t_k) + sum over the training images i of k(f, F_i) * A_ik
        A = (K / lambda + I)^-1 (Y - T),    k(x, y) = exp(-beta * (1 - cos(x, y)))

    `Y` holds the one-hot labels of the N training images, `T` their cosines with the text features, and `K` the kernel
    between them. The sum is lambda times the kernel ridge regression of `Y - T` with the penalty lambda: the released
    code leaves out the factor 1 / lambda, so lambda also says how much it counts beside zero-shot CLIP. As in that
    code: beta and lambda are searched on val, over its range for each data set, and of equally good candidates the
    smallest beta and then the smallest lambda are taken; the values without val are those that the authors transfer
    from ImageNet, by shots.

    Distance from the original: it takes each augmented view as an image of its own, here an image is the mean of its
    views, which keeps the system at N by N. The few-shot val split is too small to tell up to 2,000 candidates apart,
    so the grid is 10 by 10. Logits are multiplied by CLIP's `tau`, which changes no prediction. The authors' code was
    read in a fork, github.com/omarnust/BReg-Adapter, at their last commit there, f2ecb3d.
    """

    defaults: ClassVar[Defaults] = {
        # Rows [from this many shots, value]
        "BETA": [[1, 3.0], [2, 2.6], [4, 1.5], [8, 1.66], [16, 1.7]],  # of the kernel
        "LAMBDA": [[1, 0.05], [8, 0.07], [16, 0.1]],  # weight of zero-shot CLIP
        "SEARCH": True,  # choose BETA and LAMBDA on val, if there are val images
        # [smallest BETA, largest BETA, smallest LAMBDA, largest LAMBDA]; for all others the authors' for Caltech101,
        # EuroSAT, FGVCAircraft, Food101 and UCF101
        "SEARCH_RANGE": by_dataset(
            [0.5, 3.0, 0.001, 1.0], DescribableTextures=[0.1, 10.0, 0.001, 10.0], ImageNet=[1.5, 3.0, 0.05, 0.25],
            OxfordFlowers=[0.1, 10.0, 0.001, 10.0], OxfordPets=[0.01, 5.0, 0.01, 0.3],
            StanfordCars=[0.1, 10.0, 0.01, 1.0], SUN397=[0.1, 10.0, 0.01, 10.0],
        ),
        "SEARCH_STEP": [10, 10],  # how many values of BETA and of LAMBDA the grid holds
    }  # fmt: skip
    not_saved: ClassVar[str] = "each image of its cache has a weight for every class"

    def fit(self, bank: FeatureBank, options: Options, seed: int, backbone: object = None) -> FittedMethod:
        beta, strength = (value_for_task(options, key, bank) for key in ("BETA", "LAMBDA"))
        check_numbers("BETA and LAMBDA", [beta, strength])
        selected = {}
        if options.SEARCH and has_val(bank):
            (beta, strength), selected["BETA, LAMBDA"] = choose(accuracies_on_val(bank, options))
        keys, coefficients = bank.cache_keys(), solve(bank, beta, [strength])[0]

        def logits(features: Tensor) -> Tensor:
            kernel = cache_affinities(features, keys, beta)
            text = text_logits(features, bank.text_positive, bank.logit_scale)
            return text + bank.logit_scale * kernel @ coefficients

        return FittedMethod(logits, selected=selected)


def solve(bank: FeatureBank, beta: float, strengths: list[float]) -> list[Tensor]:
    """The coefficients A, shape `[N, K]`, for each of the lambdas `strengths`."""
    keys = bank.cache_keys()
    kernel = cache_affinities(keys, keys, beta)
    targets = F.one_hot(bank.train_labels, len(bank.text_positive)) - text_logits(keys, bank.text_positive, 1.0)
    identity = torch.eye(len(kernel)).to(kernel)
    return [torch.cholesky_solve(targets, torch.linalg.cholesky(kernel / lam + identity)) for lam in strengths]


def accuracies_on_val(bank: FeatureBank, options: Options) -> dict[tuple[float, float], float]:
    """The accuracy in percent on val of every pair of beta and lambda, the smallest first."""
    ends = value_for_task(options, "SEARCH_RANGE", bank)
    check_numbers("a value of SEARCH_RANGE", ends, count=4)
    check_numbers("SEARCH_STEP", options.SEARCH_STEP, 1, count=2, whole=True)
    betas, strengths = (
        torch.linspace(low, high, count, dtype=torch.float64).tolist()
        for (low, high), count in zip((ends[:2], ends[2:]), options.SEARCH_STEP)
    )
    features, labels = val_images(bank)
    text, accuracies = text_logits(features, bank.text_positive, 1.0), {}
    for beta in betas:
        to_val = cache_affinities(features, bank.cache_keys(), beta)
        for strength, coefficients in zip(strengths, solve(bank, beta, strengths)):
            accuracies[beta, strength] = accuracy(text + to_val @ coefficients, labels)
    return accuracies
