"""Transductive methods, which predict all test images jointly: TransCLIP, ZLaP and StatA.

Zanella, Gérin, Ben Ayed: Boosting Vision-Language Models with Transduction. NeurIPS 2024. Stojnić, Kalantidis, Tolias:
Label Propagation for Zero-shot Classification with Vision-Language Models. CVPR 2024. Zanella, Fuchs, De Vleeschouwer,
Ben Ayed: Realistic Test-Time Adaptation of Vision-Language Models. CVPR 2025.

Each starts from the predictions `y_i = softmax(z_i)` of another method, its option `BASE`, and corrects them by the
features of all M test images. They need `--unlabelled test`, and their records are separate from those of inductive
methods.

TransCLIP models every class as a Gaussian, with one diagonal covariance for all classes. The assignment `q_i` of an
image depends on the likelihoods `p_i`, on the assignments of its three nearest images, and on `y_i`. The assignments
are updated five times, then the Gaussians once, and all of this ten times:

    q_i = softmax( log y_i + log p_i / 50 + (sum_j w_ij q_j + sum_j w_ji q_j) / 6 )

StatA is TransCLIP with one covariance per class, and averages each Gaussian with that of the text. If n images are
predicted as a class, their mean and covariance have the weight `n / (n + ANCHOR)`.

ZLaP builds a graph with edges from every image to the nearest images, and to the nearest of the class nodes `x_c`. The
class nodes are the class weights of BASE; for zero-shot CLIP these are the text features. Labels spread from the class
nodes:

    scores = (I - ALPHA S)^-1 e_c,   S = D^-1/2 (W + W^T) D^-1/2,   edges to classes: cos(f_i, x_c)^GAMMA

Differences from the original: in TransCLIP, labelled images enter through the predictions of BASE only, and not also
through the Gaussians with a weight that is selected on val. ZLaP's system is solved by summing its series instead of by
conjugate gradients; its "proxy" class nodes are not implemented. StatA omits the determinants of the Gaussians unless
`DETERMINANT` is set, because its accuracy on our banks is higher without them; and it divides the first covariance by
the number of images once, where the released code does so once for every 2,500 images.

Shapes: M test images, K classes, d feature width.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..features.bank import FeatureBank
from ..utils.option import OUR_METHOD
from .base import EPSILON, Defaults, FittedMethod, Method, Options

CHUNK_ROWS = 2048  # number of images to compare with all others at a time
NEIGHBOURS = 3  # edges of an image in TransCLIP and StatA
ASSIGNMENT_UPDATES, GAUSSIAN_UPDATES = 5, 10  # of TransCLIP and StatA
LIKELIHOOD = 1 / 50  # weight of the Gaussians' likelihoods
CONFIDENT = 8  # number of most confident images in the initial mean of a class
SERIES = 25  # number of terms of ZLaP's series; the remainder is of the order of ALPHA to this power


class TransductiveMethod(Method):
    """Base class of methods that correct the predictions of `BASE` on all test images jointly.

    `BASE` is "HeGraphAdapter", with the options of the run, or "ZeroShot".
    """

    needs_base: ClassVar[bool] = True
    not_saved: ClassVar[str] = "its prediction of an image depends on the other test images"

    def fit(
        self, bank: FeatureBank, options: Options, seed: int, backbone: object = None, base: FittedMethod | None = None
    ) -> FittedMethod:
        assert base is not None  # `needs_base`
        text = bank.text_positive
        weights = text if base.classifier is None else F.normalize(base.classifier.weights, dim=1)

        def logits(features: Tensor) -> Tensor:
            return self.correct(features, base.logits(features), text, weights, options)

        return FittedMethod(logits, num_parameters=base.num_parameters, transductive=True)

    @abstractmethod
    def correct(self, features: Tensor, logits: Tensor, text: Tensor, weights: Tensor, options: Options) -> Tensor:
        """Return corrected logits, shape `[M, K]`.

        Args:
            features: Unit-norm features of all test images, shape `[M, d]`.
            logits: Logits of the base method, shape `[M, K]`.
            text: Unit-norm text features, shape `[K, d]`.
            weights: Unit-norm class weights of the base method, or `text` if it has none, shape `[K, d]`.
        """


@dataclass(frozen=True)
class Neighbours:
    """Edges from every image to its nearest images.

    Attributes:
        indices: Indices of the nearest images, shape `[M, k]`.
        weights: Cosines with them, or 0 for negative ones, shape `[M, k]`.
    """

    indices: Tensor
    weights: Tensor

    @classmethod
    def nearest(cls, features: Tensor, count: int) -> "Neighbours":
        """Connect each image, of features `[M, d]`, with its `count` nearest images, or all if there are fewer."""
        count = min(count, len(features) - 1)
        indices, weights = [], []
        for start, rows in zip(range(0, len(features), CHUNK_ROWS), features.split(CHUNK_ROWS)):
            cosines = rows @ features.t()
            positions = torch.arange(len(rows), device=features.device)
            cosines[positions, positions + start] = -2.0  # no edge to itself: lower than any cosine
            top = cosines.topk(count, dim=1)
            indices.append(top.indices)
            weights.append(top.values.clamp_min(0))
        return cls(torch.cat(indices), torch.cat(weights))

    def propagate(self, labels: Tensor) -> Tensor:
        """Return `sum_j w_ij q_j + sum_j w_ji q_j` for labels `q` of shape `[M, K]`."""
        total = torch.zeros_like(labels)
        for indices, weight in zip(self.indices.t(), self.weights.t().unsqueeze(2)):
            total += weight * labels[indices]
            total.index_add_(0, indices, weight * labels)
        return total


class TransCLIP(TransductiveMethod):
    """TransCLIP: Gaussian classes with one diagonal covariance, and a graph of three nearest neighbours."""

    defaults: ClassVar[Defaults] = {"BASE": OUR_METHOD}  # method whose predictions to correct

    def correct(self, features: Tensor, logits: Tensor, text: Tensor, weights: Tensor, options: Options) -> Tensor:
        initial, neighbours = logits.log_softmax(dim=1), Neighbours.nearest(features, NEIGHBOURS)
        labels = initial.exp()
        confident = labels.topk(min(CONFIDENT, len(labels)), dim=0)  # [8, K]
        means = F.normalize(torch.einsum("nk,nkd->kd", confident.values, features[confident.indices]), dim=1)
        variance = torch.full_like(features[0], 1 / features.shape[1])
        for _ in range(GAUSSIAN_UPDATES):
            labels = _assign(initial, _log_gaussian(features, means, variance), labels, neighbours).exp()
            means = F.normalize(labels.t() @ features, dim=1)
            variance = _shared_variance(features, labels, means)
        return _assign(initial, _log_gaussian(features, means, variance), labels, neighbours)


class StatA(TransductiveMethod):
    """StatA: TransCLIP with one diagonal covariance per class, and Gaussians anchored at the text features."""

    defaults: ClassVar[Defaults] = {
        "BASE": OUR_METHOD,  # method whose predictions to correct
        "ANCHOR": 1.0,  # number of images that the Gaussian of the text counts as
        "DETERMINANT": False,  # include the determinants of the covariances in the likelihoods
    }

    def correct(self, features: Tensor, logits: Tensor, text: Tensor, weights: Tensor, options: Options) -> Tensor:
        initial, neighbours = logits.log_softmax(dim=1), Neighbours.nearest(features, NEIGHBOURS)
        labels, means = initial.exp(), text
        first_variance = _shared_variance(features, labels, means)
        variances = first_variance.expand_as(means)

        def assign(labels: Tensor) -> Tensor:  # with the current means and variances
            likelihood = _log_gaussian(features, means, variances)
            if options.DETERMINANT:
                likelihood = likelihood - variances.log().sum(dim=-1) / 2
            return _assign(initial, likelihood, labels, neighbours)

        for _ in range(GAUSSIAN_UPDATES):
            labels = assign(labels).exp()
            predicted = labels.argmax(dim=1).bincount(minlength=labels.shape[1]).to(labels.dtype)[:, None]
            trust = predicted / (predicted + options.ANCHOR + EPSILON)
            counts = labels.sum(dim=0)[:, None].clamp_min(EPSILON)
            image_means = labels.t() @ features / counts
            means = F.normalize(trust * F.normalize(image_means, dim=1) + (1 - trust) * text, dim=1)
            image_variances = (labels.t() @ features.square()) / counts - 2 * image_means * means + means.square()
            text_variances = first_variance + (text - means).square()
            variances = (trust * image_variances + (1 - trust) * text_variances).clamp_min(EPSILON)
        return assign(labels)


class ZLaP(TransductiveMethod):
    """ZLaP: label propagation from class nodes over a graph of nearest neighbours."""

    defaults: ClassVar[Defaults] = {
        "BASE": OUR_METHOD,  # method whose class weights are the class nodes
        "NEIGHBOURS": 5,  # edges of an image to images, counting itself, and to classes
        "GAMMA": 5.0,  # exponent of the edges to classes
        "ALPHA": 0.3,  # strength of the propagation, below 1
    }

    def correct(self, features: Tensor, logits: Tensor, text: Tensor, weights: Tensor, options: Options) -> Tensor:
        num_images, num_classes = logits.shape
        neighbours = Neighbours.nearest(features, options.NEIGHBOURS - 1)
        nearest = (features @ weights.t()).clamp_min(0).topk(min(options.NEIGHBOURS, num_classes), dim=1)
        class_edges = torch.zeros_like(logits).scatter_(1, nearest.indices, nearest.values.pow(options.GAMMA))
        class_degrees = class_edges.sum(dim=0)
        ones = torch.ones(num_images, 1, dtype=features.dtype, device=features.device)
        image_degrees = class_edges.sum(dim=1) + neighbours.propagate(ones)[:, 0]
        class_root, image_root = (d.clamp_min(EPSILON).rsqrt().unsqueeze(1) for d in (class_degrees, image_degrees))
        edges = image_root * class_edges * class_root.t()
        classes, images = torch.eye(num_classes).to(features), torch.zeros_like(logits)
        for _ in range(SERIES):  # x <- e + ALPHA S x
            propagated = options.ALPHA * (edges @ classes + image_root * neighbours.propagate(image_root * images))
            classes = torch.eye(num_classes).to(features) + options.ALPHA * (edges.t() @ images)
            images = propagated
        return images.clamp_min(EPSILON).log()


def _assign(initial: Tensor, likelihood: Tensor, labels: Tensor, neighbours: Neighbours) -> Tensor:
    """Return `log q` after the updates of the assignments, from `log y`, `log p` and the current `q`, all `[M, K]`."""
    fixed = initial + LIKELIHOOD * likelihood
    for _ in range(ASSIGNMENT_UPDATES):
        log_labels = (fixed + neighbours.propagate(labels) / (2 * NEIGHBOURS)).log_softmax(dim=1)
        labels = log_labels.exp()
    return log_labels


def _shared_variance(features: Tensor, labels: Tensor, means: Tensor) -> Tensor:
    """Return the diagonal covariance of all classes around their means, shape `[d]`."""
    products = (labels.t() @ features * means).sum(dim=0) / len(features)
    squares = (labels.sum(dim=0)[:, None] * means.square()).sum(dim=0) / len(features)
    return (features.square().mean(dim=0) - 2 * products + squares).clamp_min(EPSILON)


def _log_gaussian(features: Tensor, means: Tensor, variances: Tensor) -> Tensor:
    """Return `-((f - mu) / sigma)^2 / 2` summed over the width, shape `[M, K]`, for variances `[d]` or `[K, d]`."""
    inverse = 1 / variances
    distance = features.square() @ inverse.expand_as(means).t() - 2 * features @ (means * inverse).t()
    return -(distance + (means.square() * inverse).sum(dim=1)) / 2
