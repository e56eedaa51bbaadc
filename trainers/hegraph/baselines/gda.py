"""GDA: Gaussian discriminant analysis of the image features, added to zero-shot CLIP.

Wang, Liang, Sheng, He, Wang, Tan: A Hard-to-Beat Baseline for Training-free CLIP-based Adaptation. ICLR 2024.

    z = tau * cos(f, t_k) + alpha * (f . w_k + b_k)
    w_k = P m_k      b_k = - m_k . P m_k / 2      P = d * ((M - 1) Sigma + tr(Sigma) I)^+

Every class is a Gaussian with its own mean `m_k` and a covariance `Sigma` that all share, estimated from the M views of
the training images; `P` is the shrunken inverse of Kubokawa and Srivastava, and `^+` the pseudo-inverse. All classes
are equally likely. As in the released code: each view of an image counts as an image, and alpha is chosen on val among
seven powers of ten, of equally good ones the smallest.

Distance from the original: without val images alpha is 0.1, the value that the authors' search starts at. With one view
of one image of each class `Sigma` and `P` are 0, and the method is zero-shot CLIP. A class without images has the mean
of all images as its mean.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..features.bank import FeatureBank
from ..method.cache import FoldedClassifier
from ..training.choice import check_candidates
from .base import Defaults, FittedMethod, Method, Options, best_on_val


class GDA(Method):
    """Adds the logits of Gaussian discriminant analysis to the zero-shot logits."""

    defaults: ClassVar[Defaults] = {
        "ALPHA": 0.1,  # weight of the Gaussians' logits where nothing is chosen
        "SEARCH": True,  # choose ALPHA among CANDIDATES on val, if there are val images
        "CANDIDATES": [1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0],  # of equally good ones the first is taken
    }

    def fit(self, bank: FeatureBank, options: Options, seed: int, backbone: object = None) -> FittedMethod:
        """Trains nothing; `seed` changes nothing."""
        check_candidates("CANDIDATES", options.CANDIDATES)
        images, labels = views_as_images(bank)
        weight, bias = gaussian_classifier(images, labels, len(bank.text_positive))

        def classifier(alpha: float) -> FoldedClassifier:
            return FoldedClassifier(bank.logit_scale * bank.text_positive + alpha * weight, alpha * bias)

        return best_on_val("ALPHA", options.ALPHA, options.CANDIDATES, classifier, bank, options.SEARCH)


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
