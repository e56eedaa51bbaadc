"""Methods that predict all test images together: TransCLIP, ZLaP and StatA.

Zanella, Gérin, Ben Ayed: Boosting Vision-Language Models with Transduction. NeurIPS 2024. Stojnić, Kalantidis, Tolias:
Label Propagation for Zero-shot Classification with Vision-Language Models. CVPR 2024. Zanella, Fuchs, De Vleeschouwer,
Ben Ayed: Realistic Test-Time Adaptation of Vision-Language Models. CVPR 2025.

Each starts from the predictions `y_i = softmax(z_i)` of another method, `BASE`, and lets the M test images correct each
other. They run with `--unlabelled test` alone, and their records stay apart from those of single images.

TransCLIP: every class is a Gaussian, with one diagonal covariance for all; each image is drawn to its three nearest
ones, and to `y_i`. Five times this, and then the Gaussians from `q`, ten times:

    q_i = softmax( log y_i + log p_i / 50 + (sum_j w_ij q_j + sum_j w_ji q_j) / 6 )

StatA is the same with a covariance for each class, and with each Gaussian drawn to the text's: a class that n images
are predicted as counts with `n / (n + ANCHOR)` of their mean and covariance.

ZLaP: images are nodes with edges to the nearest images, and to the nearest of the class nodes `x_c`, the class weights
of BASE, which zero-shot are the text features. Labels spread from these:

    scores = (I - ALPHA S)^-1 e_c,   S = D^-1/2 (W + W^T) D^-1/2,   edges to classes: cos(f_i, x_c)^GAMMA

Distance from the original: in TransCLIP, labelled images enter through the predictions of BASE alone, and not through
the Gaussians as well, with a weight that is chosen on val. ZLaP's system is solved by summing its series, and not by
conjugate gradients; its "proxy" class nodes are not here. StatA leaves out the Gaussians' determinants unless
`DETERMINANT` is set, since it is better on our banks without them; and it divides the first covariance by the number of
images once, where the released code does so once for every 2,500 images.

Shapes: M test images, K classes, d feature width.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..features.bank import FeatureBank
from .base import SMALLEST, Defaults, FittedMethod, Method, Options

ROWS = 2048  # images that are compared with all others at once
NEIGHBOURS, INNER, OUTER = 3, 5, 10  # of TransCLIP and StatA: edges of an image, rounds of `q`, rounds of the Gaussians
LIKELIHOOD = 1 / 50  # weight of the Gaussians beside the predictions
CONFIDENT = 8  # images with the surest predictions that the first mean of a class is made of
SERIES = 25  # terms of ZLaP's series; ALPHA to this power is left out


class TransductiveMethod(Method):
    """Corrects what `BASE`, "HeGraphAdapter" with the options of the run or "ZeroShot", says of all test images."""

    needs_base: ClassVar[bool] = True
    not_saved: ClassVar[str] = "what it says of an image depends on the other test images"

    def fit(
        self, bank: FeatureBank, options: Options, seed: int, backbone: object = None, base: FittedMethod | None = None
    ) -> FittedMethod:
        assert base is not None  # `needs_base`
        text = bank.text_positive
        weights = text if base.classifier is None else F.normalize(base.classifier.weights, dim=1)

        def logits(features: Tensor) -> Tensor:
            return self.together(features, base.logits(features), text, weights, options)

        return FittedMethod(logits, num_parameters=base.num_parameters, together=True)

    @abstractmethod
    def together(self, features: Tensor, logits: Tensor, text: Tensor, weights: Tensor, options: Options) -> Tensor:
        """Corrected logits `[M, K]` from the features of all test images, `[M, d]`, and what the base says of them.

        `weights` are the base's class weights or, if it has none, the text, like that of unit norm and shape `[K, d]`.
        """


@dataclass(frozen=True)
class Neighbours:
    """Edges from every image to those with the largest cosines: their positions and cosines, not negative, `[M, k]`."""

    to: Tensor
    weights: Tensor

    @classmethod
    def among(cls, features: Tensor, count: int) -> Neighbours:
        """The `count` nearest others of each image, or all others if there are fewer."""
        count = min(count, len(features) - 1)
        places, weights = [], []
        for start, rows in zip(range(0, len(features), ROWS), features.split(ROWS)):
            cosines = rows @ features.t()
            own = torch.arange(len(rows), device=features.device)
            cosines[own, own + start] = -2.0  # below every cosine
            found = cosines.topk(count, dim=1)
            places.append(found.indices)
            weights.append(found.values.clamp_min(0))
        return cls(torch.cat(places), torch.cat(weights))

    def both_ways(self, labels: Tensor) -> Tensor:
        """`sum_j w_ij q_j + sum_j w_ji q_j` for rows `[M, K]`."""
        total = torch.zeros_like(labels)
        for to, weight in zip(self.to.t(), self.weights.t().unsqueeze(2)):
            total += weight * labels[to]
            total.index_add_(0, to, weight * labels)
        return total


class TransCLIP(TransductiveMethod):
    """Gaussians with one diagonal covariance, and a Laplacian of three neighbours."""

    defaults: ClassVar[Defaults] = {"BASE": "HeGraphAdapter"}  # the method whose predictions are corrected

    def together(self, features: Tensor, logits: Tensor, text: Tensor, weights: Tensor, options: Options) -> Tensor:
        start, neighbours = logits.log_softmax(dim=1), Neighbours.among(features, NEIGHBOURS)
        labels = start.exp()
        surest = labels.topk(min(CONFIDENT, len(labels)), dim=0)  # [8, K]
        means = F.normalize(torch.einsum("nk,nkd->kd", surest.values, features[surest.indices]), dim=1)
        variance = torch.full_like(features[0], 1 / features.shape[1])
        for _ in range(OUTER):
            labels = _spread(start, _log_gaussian(features, means, variance), labels, neighbours).exp()
            means = F.normalize(labels.t() @ features, dim=1)
            variance = _shared_variance(features, labels, means)
        return _spread(start, _log_gaussian(features, means, variance), labels, neighbours)


class StatA(TransductiveMethod):
    """Gaussians with a diagonal covariance each, anchored at the text, and a Laplacian of three neighbours."""

    defaults: ClassVar[Defaults] = {
        "BASE": "HeGraphAdapter",  # the method whose predictions are corrected
        "ANCHOR": 1.0,  # images that the text's Gaussian counts as
        "DETERMINANT": False,  # whether the likelihoods hold the determinants of the covariances
    }

    def together(self, features: Tensor, logits: Tensor, text: Tensor, weights: Tensor, options: Options) -> Tensor:
        start, neighbours = logits.log_softmax(dim=1), Neighbours.among(features, NEIGHBOURS)
        labels, means = start.exp(), text
        first = _shared_variance(features, labels, means)
        variances = first.expand_as(means)

        def spread(labels: Tensor) -> Tensor:  # with the means and the variances of the moment
            likelihood = _log_gaussian(features, means, variances)
            if options.DETERMINANT:
                likelihood = likelihood - variances.log().sum(dim=-1) / 2
            return _spread(start, likelihood, labels, neighbours)

        for _ in range(OUTER):
            labels = spread(labels).exp()
            predicted = labels.argmax(dim=1).bincount(minlength=labels.shape[1]).to(labels.dtype)[:, None]
            trust = predicted / (predicted + options.ANCHOR + SMALLEST)
            counts = labels.sum(dim=0)[:, None].clamp_min(SMALLEST)
            own = labels.t() @ features / counts
            means = F.normalize(trust * F.normalize(own, dim=1) + (1 - trust) * text, dim=1)
            around = (labels.t() @ features.square()) / counts - 2 * own * means + means.square()
            anchored = first + (text - means).square()
            variances = (trust * around + (1 - trust) * anchored).clamp_min(SMALLEST)
        return spread(labels)


class ZLaP(TransductiveMethod):
    """Label propagation from the class nodes over a graph of nearest neighbours."""

    defaults: ClassVar[Defaults] = {
        "BASE": "HeGraphAdapter",  # the method whose class weights are the class nodes
        "NEIGHBOURS": 5,  # edges of an image to images, itself among them, and to classes
        "GAMMA": 5.0,  # power of the edges to classes
        "ALPHA": 0.3,  # how far labels spread, less than 1
    }

    def together(self, features: Tensor, logits: Tensor, text: Tensor, weights: Tensor, options: Options) -> Tensor:
        num_images, num_classes = logits.shape
        to_images = Neighbours.among(features, options.NEIGHBOURS - 1)
        found = (features @ weights.t()).clamp_min(0).topk(min(options.NEIGHBOURS, num_classes), dim=1)
        to_classes = torch.zeros_like(logits).scatter_(1, found.indices, found.values.pow(options.GAMMA))
        degree_class = to_classes.sum(dim=0)
        ones = torch.ones(num_images, 1, dtype=features.dtype, device=features.device)
        degree_image = to_classes.sum(dim=1) + to_images.both_ways(ones)[:, 0]
        root_class, root_image = (d.clamp_min(SMALLEST).rsqrt().unsqueeze(1) for d in (degree_class, degree_image))
        edges = root_image * to_classes * root_class.t()
        classes, images = torch.eye(num_classes).to(features), torch.zeros_like(logits)
        for _ in range(SERIES):  # x <- e + ALPHA S x
            spread = options.ALPHA * (edges @ classes + root_image * to_images.both_ways(root_image * images))
            classes = torch.eye(num_classes).to(features) + options.ALPHA * (edges.t() @ images)
            images = spread
        return images.clamp_min(SMALLEST).log()


def _spread(start: Tensor, likelihood: Tensor, labels: Tensor, neighbours: Neighbours) -> Tensor:
    """The logarithm of `q` after its rounds, `[M, K]`."""
    fixed = start + LIKELIHOOD * likelihood
    for _ in range(INNER):
        logarithm = (fixed + neighbours.both_ways(labels) / (2 * NEIGHBOURS)).log_softmax(dim=1)
        labels = logarithm.exp()
    return logarithm


def _shared_variance(features: Tensor, labels: Tensor, means: Tensor) -> Tensor:
    """The diagonal covariance of all classes around their means, `[d]`."""
    inner = (labels.t() @ features * means).sum(dim=0) / len(features)
    spread = (labels.sum(dim=0)[:, None] * means.square()).sum(dim=0) / len(features)
    return (features.square().mean(dim=0) - 2 * inner + spread).clamp_min(SMALLEST)


def _log_gaussian(features: Tensor, means: Tensor, variances: Tensor) -> Tensor:
    """`-((f - mu) / sigma)^2 / 2`, summed over the width, shape `[M, K]`; variances are `[d]` or `[K, d]`."""
    inverse = 1 / variances
    distance = features.square() @ inverse.expand_as(means).t() - 2 * features @ (means * inverse).t()
    return -(distance + (means.square() * inverse).sum(dim=1)) / 2
