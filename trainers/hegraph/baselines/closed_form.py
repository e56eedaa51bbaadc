"""Training-free methods that add a classifier in closed form to zero-shot CLIP: GDA, TIMO, TIMO-S, ProKeR, ReHARK.

GDA, TIMO and TIMO-S are Gaussian discriminant analysis: every class is a Gaussian with its own mean `m_k`, all share
one covariance `Sigma`, estimated from M images, and all classes are equally likely. The logits are

    f . w_k + b_k,   w_k = P m_k,   b_k = - m_k . P m_k / 2,   P = d * ((M - 1) Sigma + tr(Sigma) I)^+

`P` is the shrunken inverse of Kubokawa and Srivastava, and `^+` the pseudo-inverse. As in the released codes, each view
of an image counts as an image, and of equally good candidates on val the first is selected. The mean of a class without
images is the mean of all images.
"""

from collections.abc import Callable
from typing import ClassVar, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..features.bank import FeatureBank
from ..method.cache import FoldedClassifier, affinities, cache_affinities, text_logits
from ..method.graph import sum_by_class
from ..method.training.choice import accuracy, choose, has_val, val_accuracy, val_images
from .base import Defaults, FittedMethod, Method, Options, by_dataset, check_number, check_numbers, value_for_task

T = TypeVar("T")


class GDA(Method):
    """GDA: adds the logits of Gaussian discriminant analysis to the zero-shot logits.

    Wang, Liang, Sheng, He, Wang, Tan: A Hard-to-Beat Baseline for Training-free CLIP-based Adaptation. ICLR 2024.

        z = tau * cos(f, t_k) + alpha * (f . w_k + b_k)

    Differences from the original: without val images alpha is 0.1, the initial value of the authors' search. With one
    view of one image per class, `Sigma` and `P` are 0, and the method equals zero-shot CLIP.
    """

    defaults: ClassVar[Defaults] = {
        "ALPHA": 0.1,  # weight of the Gaussians' logits without a search
        "SEARCH": True,  # select ALPHA among CANDIDATES on val, if there are val images
        "CANDIDATES": [1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0],
    }

    def fit(self, bank: FeatureBank, options: Options, seed: int, backbone: object = None) -> FittedMethod:
        weight, bias = gaussian_classifier(*views_as_images(bank), len(bank.text_positive))

        def classifier(alpha: float) -> FoldedClassifier:
            return FoldedClassifier(bank.logit_scale * bank.text_positive + alpha * weight, alpha * bias)

        return best_on_val(bank, options, "ALPHA", options.ALPHA, options.CANDIDATES, classifier)


class TIMO(Method):
    """TIMO: Gaussian discriminant analysis that uses the text features as images and as a classifier.

    Li, Guo, Qi, Li, Shi: Text and Image Are Mutually Beneficial: Enhancing Training-Free Few-Shot Classification with
    CLIP. AAAI 2025.

        z = alpha * cos(f, t'_k) + f . w_k + b_k
        t'_k = sum over the prompts p of class k of softmax_p(gamma * s_kp / |s_k|) * t_kp,    s_kp = cos(t_kp, m_k)

    The features `t_kp` of the class's P prompts, each multiplied by its cosine, count as one image each.

    Differences from the original: a bank holds one text feature per class, so P is 1, and `t'_k` is the text feature
    whatever gamma is. Without val images, which the authors' code requires, alpha is 100, zero-shot CLIP's scale.
    """

    defaults: ClassVar[Defaults] = {
        "ALPHA": 100.0,  # weight of the text without a search: CLIP's `tau`
        "SEARCH": True,  # select ALPHA among CANDIDATES on val, if there are val images
        "CANDIDATES": [1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0, 1e3, 1e4],
    }

    def fit(self, bank: FeatureBank, options: Options, seed: int, backbone: object = None) -> FittedMethod:
        weight, bias = text_guided_classifier(bank, times=1)

        def classifier(alpha: float) -> FoldedClassifier:
            return FoldedClassifier(alpha * bank.text_positive + weight, bias)

        return best_on_val(bank, options, "ALPHA", options.ALPHA, options.CANDIDATES, classifier)


class TIMOS(Method):
    """TIMO-S: TIMO with beta, the number of a class's prompts that count as images, selected on val with alpha.

    Li, Guo, Qi, Li, Shi: Text and Image Are Mutually Beneficial: Enhancing Training-Free Few-Shot Classification with
    CLIP. AAAI 2025.

    Differences from the original: as for TIMO. With P = 1, beta is 1 or 2: the text feature counts once or twice. Gamma
    has no effect then and is not searched.
    """

    defaults: ClassVar[Defaults] = {
        **TIMO.defaults,
        "BETA": 1,  # number of times that each text feature counts as an image, without a search
        "BETAS": [1, 2],  # candidates of BETA, each combined with all CANDIDATES
    }

    def fit(self, bank: FeatureBank, options: Options, seed: int, backbone: object = None) -> FittedMethod:
        check_number("BETA", options.BETA, 1, integer=True)
        check_numbers("BETAS", options.BETAS, 1, integer=True)
        gaussians = {beta: text_guided_classifier(bank, times=beta) for beta in (options.BETA, *options.BETAS)}

        def classifier(values: tuple[int, float]) -> FoldedClassifier:
            beta, alpha = values
            weight, bias = gaussians[beta]
            return FoldedClassifier(alpha * bank.text_positive + weight, bias)

        candidates = [(beta, alpha) for beta in options.BETAS for alpha in options.CANDIDATES]
        return best_on_val(bank, options, "BETA, ALPHA", (options.BETA, options.ALPHA), candidates, classifier)


def best_on_val(
    bank: FeatureBank, options: Options, key: str, value: T, candidates: list[T], fold: Callable[[T], FoldedClassifier]
) -> FittedMethod:
    """Return the classifier of the candidate with the best accuracy on val; without a search, of `value`.

    Args:
        key: Key of `FittedMethod.selected`.
        fold: Function from a candidate to its classifier.
    """
    check_numbers("CANDIDATES", options.CANDIDATES, 0)
    selected = {}
    if options.SEARCH and has_val(bank):
        value, selected[key] = choose({value: val_accuracy(fold(value).logits, bank) for value in candidates})
    classifier = fold(value)
    return FittedMethod(classifier.logits, selected=selected, classifier=classifier)


def text_guided_classifier(bank: FeatureBank, times: int) -> tuple[Tensor, Tensor]:
    """Return TIMO's weights `w_k`, shape `[K, d]`, and biases `b_k`, `[K]`.

    Each text feature counts `times` times as an image.
    """
    text, num_classes = bank.text_positive, len(bank.text_positive)
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
    """Fit Gaussian discriminant analysis: weights `[K, d]` and biases `[K]`; arguments as of `class_means`."""
    means = class_means(images, labels, num_classes)
    deviations = images - means[labels]
    scatter = deviations.t() @ deviations  # (M - 1) Sigma
    trace = scatter.trace() / max(len(images) - 1, 1)
    width = images.shape[1]
    precision = width * torch.linalg.pinv(scatter + trace * torch.eye(width).to(scatter), hermitian=True)
    weight = F.linear(means, precision)
    return weight, -(weight * means).sum(dim=1) / 2


class ProKeR(Method):
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

    defaults: ClassVar[Defaults] = {
        # Rows [minimum number of shots, value]
        "BETA": [[1, 3.0], [2, 2.6], [4, 1.5], [8, 1.66], [16, 1.7]],  # sharpness of the kernel
        "LAMBDA": [[1, 0.05], [8, 0.07], [16, 0.1]],  # penalty of the regression, and weight of its logits
        "SEARCH": True,  # select BETA and LAMBDA on val, if there are val images
        # Range of the grid, [minimum of BETA, maximum, minimum of LAMBDA, maximum]; by default the authors' for
        # Caltech101, EuroSAT, FGVCAircraft, Food101 and UCF101
        "SEARCH_RANGE": by_dataset(
            [0.5, 3.0, 0.001, 1.0], DescribableTextures=[0.1, 10.0, 0.001, 10.0], ImageNet=[1.5, 3.0, 0.05, 0.25],
            OxfordFlowers=[0.1, 10.0, 0.001, 10.0], OxfordPets=[0.01, 5.0, 0.01, 0.3],
            StanfordCars=[0.1, 10.0, 0.01, 1.0], SUN397=[0.1, 10.0, 0.01, 10.0],
        ),
        "SEARCH_STEP": [10, 10],  # number of values of [BETA, LAMBDA] in the grid
    }  # fmt: skip
    not_saved: ClassVar[str] = "each image of its cache has a weight for every class"

    def fit(self, bank: FeatureBank, options: Options, seed: int, backbone: object = None) -> FittedMethod:
        beta, lam = (value_for_task(options, key, bank) for key in ("BETA", "LAMBDA"))
        selected = {}
        if options.SEARCH and has_val(bank):
            (beta, lam), selected["BETA, LAMBDA"] = choose(accuracies_on_val(bank, options))
        keys, coefficients = bank.cache_keys(), solve(bank, beta, [lam])[0]

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


def accuracies_on_val(bank: FeatureBank, options: Options) -> dict[tuple[float, float], float]:
    """Return (beta, lambda) -> accuracy on val in percent for the grid, in ascending order."""
    ends = value_for_task(options, "SEARCH_RANGE", bank, length=4)
    check_numbers("SEARCH_STEP", options.SEARCH_STEP, 1, length=2, integer=True)
    betas, lambdas = (
        torch.linspace(low, high, count, dtype=torch.float64).tolist()
        for (low, high), count in zip((ends[:2], ends[2:]), options.SEARCH_STEP)
    )
    features, labels = val_images(bank)
    text, accuracies = text_logits(features, bank.text_positive, 1.0), {}
    for beta in betas:
        kernel = cache_affinities(features, bank.cache_keys(), beta)
        for lam, coefficients in zip(lambdas, solve(bank, beta, lambdas)):
            accuracies[beta, lam] = accuracy(text + kernel @ coefficients, labels)
    return accuracies


class ReHARK(Method):
    """ReHARK: kernel ridge regression with two kernels, on the images and on images shifted to a prior.

    Islam: ReHARK: Refined Hybrid Adaptive RBF Kernels for Robust One-Shot Vision-Language Adaptation. arXiv 2603.11542.

        z = s * f . p_k + sum over the 2 N support features j of k(f, S_j) * A_jk
        A = (K + lambda * I)^-1 (Y - s * S P^T),    k(x, y) = m * exp(-b_1 |x - y|^2) + (1 - m) * exp(-b_2 |x - y|^2)
        p_k = unit((1 - w) * t_k + w * m_k),        S = (F_i, unit(F_i + r * p_k of the image's class))

    Each entry x of a feature is first replaced by `sign(x) |x|^e`. `unit` normalises to unit norm. `m_k` is the mean
    image of class k, of unit norm, and 0 for a class without images.

    Differences from the original: its code searches all values in 1,000 trials on val; here they are fixed. They were
    chosen on validation images and training images outside the sample (docs/development/trials.md). The original also
    moves the test features to the mean and the deviation of the support features, which makes it transductive; here
    each test image is classified alone. A bank holds one text feature per class, so the text of GPT-3 has no part. The
    original counts each augmented view as an image.
    """

    defaults: ClassVar[Defaults] = {
        # Rows [minimum number of shots, value]
        "SHARPNESS": [[1, [15.0, 2.0]]],  # b_1 and b_2, sharpness of the kernels
        "MIX": 0.7,  # m, weight of the first kernel
        "PENALTY": [[1, 2.0], [4, 0.1]],  # lambda, penalty of the regression
        "IMAGES": [[1, 0.1]],  # w, weight of the images in the prior
        "SHIFT": 0.1,  # r, weight of the prior in the shifted images
        "SCALE": [[1, 16.0], [4, 4.0]],  # s, scale of the prior's logits
        "EXPONENT": 0.8,  # e, exponent of the entries of a feature
    }
    not_saved: ClassVar[str] = ProKeR.not_saved

    def fit(self, bank: FeatureBank, options: Options, seed: int, backbone: object = None) -> FittedMethod:
        sharpness = value_for_task(options, "SHARPNESS", bank, length=2)
        penalty, scale = (value_for_task(options, key, bank) for key in ("PENALTY", "SCALE"))
        images = value_for_task(options, "IMAGES", bank, 0, 1)
        check_number("EXPONENT", options.EXPONENT)
        check_number("MIX", options.MIX, 0, 1)

        def transform(features: Tensor) -> Tensor:
            return F.normalize(features.sign() * features.abs() ** options.EXPONENT, dim=-1)

        def kernel(x: Tensor, y: Tensor) -> Tensor:  # |x - y|^2 = 2 (1 - x . y) for unit-norm rows
            narrow, wide = (affinities(x @ y.t(), 2 * b) for b in sharpness)
            return options.MIX * narrow + (1 - options.MIX) * wide

        keys, labels, text = transform(bank.cache_keys()), bank.train_labels, transform(bank.text_positive)
        means = F.normalize(sum_by_class(keys, labels, len(text)), dim=-1)
        prior = F.normalize((1 - images) * text + images * means, dim=-1)
        support = torch.cat([keys, F.normalize(keys + options.SHIFT * prior[labels], dim=-1)])
        targets = F.one_hot(labels.repeat(2), len(text)) - scale * support @ prior.t()
        penalties = penalty * torch.eye(len(support)).to(support)
        coefficients = torch.linalg.solve(kernel(support, support) + penalties, targets)

        def logits(features: Tensor) -> Tensor:
            features = transform(features)
            return scale * features @ prior.t() + kernel(features, support) @ coefficients

        return FittedMethod(logits)
