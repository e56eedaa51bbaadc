"""Multi-label head: ridge regression of label indicators on image features, shrunk towards the text classifier.

An image may have any number of labels. With image features `F`, indicators `Y`, their means `m` and `y`, and text `T`:

    X = F - m,  R = Y - y,  W0 = g (T - mean_c T_c)^T,  s = tr(X^T X) / d
    W = W0 + (X^T X + lambda s I)^-1 X^T (R - X W0)
    score(f) = y + (f - m) W

Leave-one-out is exact (PRESS; Allen, 1974): with `H = X (X^T X + lambda s I)^-1 X^T + 1/N`, the score of image i for a
head that is fitted without image i, with the same ridge `lambda s` and `W0`, is

    Y_i - (Y_i - score(F_i)) / (1 - H_ii)

All choices use these scores, so that no validation images are needed:

- `lambda` and `g >= 0` have the least squared leave-one-out error, which is quadratic in `g`. Without text, `g` is 0.
- The threshold of a class is the mean of its own threshold with the best F1 and the common one with the best micro F1.
- Probabilities are `sigmoid(a score + b)` (Platt, 1999), with one `a` and one `b` for all classes. If few images
  have lower scores with a label than without, `a` is `LEAST_SLOPE`, which keeps the order of the scores.

The absence of a label among few images is weak evidence. A class without positive images therefore has the mean
indicator of the other classes as the indicator of all images, so that text alone distinguishes them. Without text, it
has 0. Classes with equal indicators take no part in the choices.

Shapes: N images, K classes, d feature width, B images of a batch. Computed in float64, in chunks of rows.
"""

import logging
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .cache import FoldedClassifier
from .closed_form import CHUNK_ROWS, RIDGES, SMALLEST

logger = logging.getLogger(__name__)

MAX_ROWS = 5_000  # most images in the choice of `lambda` and `g`
MAX_SCORES = 2**20  # most scores in the calibration
CLASS_BLOCK = 64  # classes whose scores are sorted at once
CANDIDATES = 4096  # most candidates of the common threshold
NEWTON_STEPS = 25
ROUNDING = 1e-9  # relative increase of the loss that a Newton step may have by rounding
LEAST_SLOPE = 0.01  # far above the rounding errors of log-odds in float32
SLOPE, PRIOR_WEIGHT = 4.0, 1.0  # prior of `a`: the logistic function has the slope of the score at 0.5


class MultiLabelHead:
    """Linear scores of the classes, with thresholds and calibration.

    Args:
        features: Unit-norm image features, shape `[N, d]`, at least two.
        labels: Label indicators, booleans of shape `[N, K]`.
        text: Unit-norm text features, shape `[K, d]`; None for a ridge regression without a prior.

    Attributes:
        weights, bias: `W^T` and `y - m W`, shapes `[K, d]` and `[K]`, float64.
        ridge, gain: `lambda` and `g`.
        left_out: Leave-one-out scores of the training images, shape `[N, K]`, float32.
        thresholds: Least score with which a class is predicted, shape `[K]`, float64.
        slope, intercept: `a` and `b`.
        varied: Classes with both positive and negative images, booleans of shape `[K]`.
    """

    def __init__(self, features: Tensor, labels: Tensor, text: Tensor | None = None) -> None:
        self._features, self._labels = features, labels
        counts = labels.sum(dim=0).double()
        self._absent, self.varied = counts == 0, (counts > 0) & (counts < len(labels))
        if not self.varied.all():
            scores = "their scores are constant" if text is None else "text alone predicts them"
            message = "of %d classes, %d have no positive image and %d no negative one: %s"
            logger.warning(message, len(counts), int(self._absent.sum()), int((counts == len(labels)).sum()), scores)
        self._mean, self._mean_label = features.double().mean(dim=0), counts / len(labels)
        if text is not None and self.varied.any():
            self._mean_label[self._absent] = self._mean_label[self.varied].mean()
        self._decompose(text)
        self.ridge, self.gain = self._choose()
        plain, prior = self._parts(self.ridge)
        weights = self._basis @ (plain + self.gain * prior)
        self.weights, self.bias = weights.t().contiguous(), self._mean_label - self._mean @ weights
        self.left_out = torch.cat([*self._left_out()])
        self.thresholds = best_thresholds(self.left_out.cpu(), labels.cpu(), self.varied.cpu()).to(self.bias)
        rows = slice(None, None, -(-labels.numel() // MAX_SCORES))
        self.slope, self.intercept = logistic_calibration(self.left_out[rows, self.varied], labels[rows, self.varied])

    def scores(self, features: Tensor) -> Tensor:
        """Scores of unit-norm image features `[B, d]`, shape `[B, K]`, float64."""
        return features.double() @ self.weights.t() + self.bias

    def predict(self, features: Tensor) -> Tensor:
        """Predicted labels of unit-norm image features `[B, d]`, booleans of shape `[B, K]`."""
        return self.scores(features) >= self.thresholds

    def probabilities(self, features: Tensor) -> Tensor:
        """Probability of each label, shape `[B, K]`, float64."""
        return self.log_odds(self.scores(features)).sigmoid()

    def log_odds(self, scores: Tensor) -> Tensor:
        """Calibrated log-odds `a score + b`."""
        return self.slope * scores + self.intercept

    @property
    def classifier(self) -> FoldedClassifier:
        """Linear classifier in float32 whose logits are the log-odds."""
        return FoldedClassifier((self.slope * self.weights).float(), self.log_odds(self.bias).float())

    def _chunks(self, step: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
        """Iterate over `X` and `Y`, or every `step`-th row of both, in float64."""
        for features, labels in zip(self._features[::step].split(CHUNK_ROWS), self._labels[::step].split(CHUNK_ROWS)):
            indicators = labels.double()
            indicators[:, self._absent] = self._mean_label[self._absent]
            yield features.double() - self._mean, indicators

    def _decompose(self, text: Tensor | None) -> None:
        """Eigenvectors of `X^T X`, and `X^T R` and the centred text in their basis, where ridges are diagonal."""
        width, num_classes = len(self._mean), len(self._mean_label)
        gram, cross = self._mean.new_zeros(width, width), self._mean.new_zeros(width, num_classes)
        for deviations, indicators in self._chunks():
            gram += deviations.t() @ deviations
            cross += deviations.t() @ (indicators - self._mean_label)
        eigenvalues, self._basis = torch.linalg.eigh(gram)
        self._eigenvalues = eigenvalues.clamp_min(0).unsqueeze(1)
        self._spread = self._eigenvalues.mean().clamp_min(SMALLEST)
        self._cross = self._basis.t() @ cross
        self._text = torch.zeros_like(cross)
        if text is not None:
            self._text = self._basis.t() @ (text.double() - text.double().mean(dim=0)).t()

    def _parts(self, ridge: float) -> tuple[Tensor, Tensor]:
        """`W` in the eigenbasis: the part without text, and the part that is added `g` times, each `[d, K]`."""
        strength = ridge * self._spread
        return self._cross / (self._eigenvalues + strength), self._text * (strength / (self._eigenvalues + strength))

    def _error_weight(self, projected: Tensor, ridge: float) -> Tensor:
        """`1 / (1 - H_ii)` of centred images in the eigenbasis `[B, d]`, shape `[B, 1]`."""
        leverage = projected.square() @ (1 / (self._eigenvalues + ridge * self._spread)) + 1 / len(self._features)
        return 1 / (1 - leverage).clamp_min(SMALLEST)

    def _choose(self) -> tuple[float, float]:
        """`lambda` and `g` with the least squared leave-one-out error."""
        # Per ridge, the products of the error at `g = 0` and of its decrease at `g = 1` with each other
        products = self._mean.new_zeros(len(RIDGES), 2, 2)
        parts = [[part[:, self.varied] for part in self._parts(ridge)] for ridge in RIDGES]
        for deviations, indicators in self._chunks(-(-len(self._features) // MAX_ROWS)):
            projected = deviations @ self._basis
            target = (indicators - self._mean_label)[:, self.varied]
            for number, (ridge, (plain, prior)) in enumerate(zip(RIDGES, parts)):
                error = torch.stack([torch.addmm(target, projected, plain, alpha=-1), projected @ prior])
                error = (error * self._error_weight(projected, ridge)).flatten(1)
                products[number] += error @ error.t()
        gains = (products[:, 0, 1] / products[:, 1, 1].clamp_min(SMALLEST)).clamp_min(0)
        errors = products[:, 0, 0] - 2 * gains * products[:, 0, 1] + gains.square() * products[:, 1, 1]
        best = int(errors.argmin())
        return RIDGES[best], float(gains[best])

    def _left_out(self) -> Iterator[Tensor]:
        """Leave-one-out scores by chunk."""
        for deviations, indicators in self._chunks():
            scores = torch.addmm(self._mean_label, deviations, self.weights.t())
            weight = self._error_weight(deviations @ self._basis, self.ridge)
            yield scores.sub_(indicators).mul_(weight).add_(indicators).float()


def best_thresholds(scores: Tensor, labels: Tensor, varied: Tensor) -> Tensor:
    """Thresholds of scores `[N, K]` with labels `[N, K]`, shape `[K]`, float64.

    The best F1 of a class is reached at the score of one of its positive images. Its own threshold lies halfway between
    that score and the next smaller one. Classes that are not `varied`, booleans `[K]`, have the common threshold.
    """
    positive = scores[labels & varied]
    if not len(positive):
        return torch.full((scores.shape[1],), 0.5, dtype=torch.float64)
    common = np.sort(positive.numpy())[:: -(-len(positive) // CANDIDATES)]
    accepted, correct = np.zeros(len(common)), np.zeros(len(common))
    own: dict[int, float] = {}
    for block in varied.nonzero().flatten().split(CLASS_BLOCK):
        columns, flags = scores[:, block].t().contiguous().numpy(), labels[:, block].t().contiguous().numpy()
        for number, column, flag in zip(block.tolist(), columns, flags):
            hits, column = np.sort(column[flag]), np.sort(column)
            accepted += len(column) - np.searchsorted(column, common)
            correct += len(hits) - np.searchsorted(hits, common)
            places = np.searchsorted(column, hits)
            f1 = 2 * np.arange(len(hits), 0, -1) / (len(hits) + len(column) - places)
            place = places[f1.argmax()]
            own[number] = (float(column[place]) + float(column[max(place - 1, 0)])) / 2
    best = float(common[(correct / (len(positive) + accepted)).argmax()])
    return torch.tensor([(own.get(number, best) + best) / 2 for number in range(scores.shape[1])], dtype=torch.float64)


def logistic_calibration(scores: Tensor, labels: Tensor) -> tuple[float, float]:
    """`a >= LEAST_SLOPE` and `b` of `sigmoid(a score + b)` with the largest likelihood (Platt, 1999).

    Newton's method with shorter steps where a whole step raises the loss. A weak prior keeps `a` and `b` finite where
    the scores separate the labels.
    """
    target, scores = labels.double().flatten(), scores.double().flatten()
    design = torch.stack([scores, torch.ones_like(scores)], dim=1)
    prior = design.new_tensor([SLOPE, -SLOPE / 2])

    def loss(solution: Tensor) -> Tensor:
        logits = design @ solution
        penalty = PRIOR_WEIGHT / 2 * (solution - prior).square().sum()
        return F.binary_cross_entropy_with_logits(logits, target, reduction="sum") + penalty

    solution, least = prior.clone(), loss(prior)
    for _ in range(NEWTON_STEPS):
        probability = (design @ solution).sigmoid()
        gradient = design.t() @ (probability - target) + PRIOR_WEIGHT * (solution - prior)
        curvature = (design * (probability * (1 - probability)).unsqueeze(1)).t() @ design
        step = torch.linalg.solve(curvature + PRIOR_WEIGHT * torch.eye(2).to(curvature), gradient)
        while loss(solution - step) > (1 + ROUNDING) * least:
            step = step / 2
        solution = solution - step
        least = loss(solution)
    slope, intercept = solution.tolist()
    if slope < LEAST_SLOPE:
        return LEAST_SLOPE, logistic_calibration(torch.zeros_like(scores), labels)[1]
    return slope, intercept
