"""TIMO and TIMO-S: Gaussian discriminant analysis in which text and images guide each other.

Li, Guo, Qi, Li, Shi: Text and Image Are Mutually Beneficial: Enhancing Training-Free Few-Shot Classification with CLIP.
AAAI 2025.

    z = alpha * cos(f, t'_k) + f . w_k + b_k
    t'_k = sum over the prompts p of class k of softmax_p(gamma * s_kp / |s_k|) * t_kp,    s_kp = cos(t_kp, m_k)

`m_k` is the mean image of class k, and `s_k` holds its cosines with the features `t_kp` of the class's P prompts. The
prompts are images as well, each multiplied by its cosine `s_kp`, and `w_k` and `b_k` are those of GDA (`gda.py`) on the
prompts and the views of the training images together. As in the released code: every prompt is taken once, and alpha is
chosen on val among nine powers of ten, of equally good ones the smallest. TIMO-S chooses alpha together with beta,
which is how many prompts of each class count as images: the beta that are most like the images or, beyond P, all of
them and the best ones twice. Beta is at most 2 P; of equally good candidates the smallest beta and then alpha are
taken.

Distance from the original: a bank holds one text feature for each class, so P is 1. Then `t'_k` is the text feature
itself, whatever gamma is, which TIMO-S does not search; each class has one more image in TIMO, and beta is 1 or 2 in
TIMO-S. Without val images, where the authors' code stops, alpha is 100, the scale of zero-shot CLIP, and beta 1. A
class without images has the mean of all images as its mean.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..features.bank import FeatureBank
from ..method.cache import FoldedClassifier
from ..training.choice import check_candidates
from ..utils.errors import UserError
from .base import Defaults, FittedMethod, Method, Options, best_on_val
from .gda import gaussian_classifier, means_of_classes, views_as_images


class TIMO(Method):
    """Adds the text features to Gaussian discriminant analysis, as images and as a classifier."""

    defaults: ClassVar[Defaults] = {
        "ALPHA": 100.0,  # weight of the text where nothing is chosen: CLIP's `tau`
        "SEARCH": True,  # choose ALPHA among CANDIDATES on val, if there are val images
        # Of equally good ones the first is taken
        "CANDIDATES": [1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0, 1e3, 1e4],
    }

    def fit(self, bank: FeatureBank, options: Options, seed: int, backbone: object = None) -> FittedMethod:
        """Trains nothing; `seed` changes nothing."""
        check_candidates("CANDIDATES", options.CANDIDATES)
        gaussians = text_guided_classifier(bank, times=1)

        def classifier(alpha: float) -> FoldedClassifier:
            return with_text(bank, gaussians, alpha)

        return best_on_val("ALPHA", options.ALPHA, options.CANDIDATES, classifier, bank, options.SEARCH)


class TIMOS(Method):
    """TIMO, with the number of text features that count as images chosen on val."""

    defaults: ClassVar[Defaults] = {
        **TIMO.defaults,
        "BETA": 1,  # how often each text feature counts as an image where nothing is chosen
        "BETAS": [1, 2],  # candidates for BETA, each with all of CANDIDATES; of equally good ones the first is taken
    }

    def fit(self, bank: FeatureBank, options: Options, seed: int, backbone: object = None) -> FittedMethod:
        """Trains nothing; `seed` changes nothing."""
        check_candidates("CANDIDATES", options.CANDIDATES)
        betas = [options.BETA, *options.BETAS]
        if len(betas) < 2 or not all(type(beta) is int and beta >= 1 for beta in betas):
            raise UserError(f"BETA and BETAS must be whole numbers from 1, got {options.BETA} and {options.BETAS}")
        gaussians = {beta: text_guided_classifier(bank, times=beta) for beta in betas}

        def classifier(values: tuple[int, float]) -> FoldedClassifier:
            beta, alpha = values
            return with_text(bank, gaussians[beta], alpha)

        candidates = [(beta, alpha) for beta in options.BETAS for alpha in options.CANDIDATES]
        start = (options.BETA, options.ALPHA)
        return best_on_val("BETA, ALPHA", start, candidates, classifier, bank, options.SEARCH)


def with_text(bank: FeatureBank, gaussians: tuple[Tensor, Tensor], alpha: float) -> FoldedClassifier:
    """The prediction `alpha * f . t_k + f . w_k + b_k`, from the weights and the biases of the Gaussians."""
    weight, bias = gaussians
    return FoldedClassifier(alpha * bank.text_positive + weight, bias)


def text_guided_classifier(bank: FeatureBank, times: int) -> tuple[Tensor, Tensor]:
    """The weights `w_k`, shape `[K, d]`, and biases `b_k`, `[K]`, where each text feature is so many times an image."""
    text, num_classes = bank.text_positive, len(bank.text_positive)
    means = F.normalize(means_of_classes(bank.cache_keys(), bank.train_labels, num_classes), dim=-1)
    scores = (text * means).sum(dim=1, keepdim=True)  # s_k, shape [K, 1]
    images, labels = views_as_images(bank)
    text_images = (scores * text).repeat(times, 1)
    text_labels = torch.arange(num_classes, device=labels.device).repeat(times)
    return gaussian_classifier(torch.cat([text_images, images]), torch.cat([text_labels, labels]), num_classes)
