"""Multi-label head: ridge regression of label indicators on image features, shrunk towards the text classifier.

An image may have any number of labels. With image features `F`, indicators `Y`, their means `m` and `y`, and text `T`:

    X = F - m,  R = Y - y,  W0 = g (T - mean_c T_c)^T,  s = tr(X^T X) / d
    W = W0 + (X^T X + lambda s I)^-1 X^T (R - X W0)
    score(f) = y + (f - m) W

Leave-one-out is exact (PRESS; Allen, 1974): with `H = X (X^T X + lambda s I)^-1 X^T + 1/N`, the score of image i for a
head that is fitted without image i, with the same ridge `lambda s` and `W0`, is

    Y_i - (Y_i - score(F_i)) / (1 - H_ii)

Without a group G of images, such as the frames of a video, the scores of its images are

    Y_G - (I - H_GG)^-1 (Y_G - score(F_G))

All choices use these scores, so that no validation images are needed:

- `lambda` and `g >= 0` have the least squared leave-one-out error, which is quadratic in `g`. Without text, `g` is 0.
  They leave out single images also where there are groups.
- The threshold of a class is the mean of its own threshold with the best F1 and the common one with the best micro F1.
- Probabilities are `sigmoid(a score + b)` (Platt, 1999), with one `a` and one `b` for all classes. If few images
  have lower scores with a label than without, `a` is `LEAST_SLOPE`, which keeps the order of the scores.

The absence of a label among few images is weak evidence. A class without positive images therefore has the mean
indicator of the other classes as the indicator of all images, so that text alone distinguishes them. Without text, it
has 0. Classes with equal indicators take no part in the choices.

Shapes: N images, K classes, d feature width, B images of a batch. Computed in float64, in chunks of rows.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...utils.errors import UserError
from ..cache import FoldedClassifier
from .closed_form import CHUNK_ROWS, RIDGES, SMALLEST

logger = logging.getLogger(__name__)

MAX_ROWS = 5_000  # most images in the choice of `lambda` and `g`
MAX_SCORES = 2**20  # most scores in the calibration
CLASS_BLOCK = 64  # classes whose scores are sorted at once
CANDIDATES = 4096  # most candidates of the common threshold
NEWTON_STEPS = 25
ROUNDING = 1e-9  # relative increase of the loss that a Newton step may have by rounding
LEAST_SLOPE = 0.01  # far above the rounding errors of log-odds in float32
SLOPE = 4.0  # prior of `a`, with which the logistic function has the slope of the score at 0.5
SLOPE_PRIOR_WEIGHT = 1.0  # weight of the prior of `a` and `b`


@dataclass(frozen=True)
class MultiLabelHead:
    """Linear scores of the classes, with thresholds and calibration.

    Attributes:
        weights, bias: `W^T` and `y - m W`, shapes `[K, d]` and `[K]`, float64.
        ridge, gain: `lambda` and `g`.
        left_out: Score of each training image without the image, or without its group, shape `[N, K]`, float32.
        thresholds: Least score with which a class is predicted, shape `[K]`, float64.
        slope, intercept: `a` and `b`.
        varied: Classes with both positive and negative images, booleans of shape `[K]`.
    """

    weights: Tensor
    bias: Tensor
    ridge: float
    gain: float
    left_out: Tensor
    thresholds: Tensor
    slope: float
    intercept: float
    varied: Tensor

    @classmethod
    def fit(
        cls, features: Tensor, labels: Tensor, text: Tensor | None = None, groups: Tensor | None = None
    ) -> MultiLabelHead:
        """Fit the regression, and choose `lambda`, `g`, thresholds and calibration by left-out scores.

        Args:
            features: Unit-norm image features, shape `[N, d]`, at least two.
            labels: Label indicators, booleans of shape `[N, K]`.
            text: Unit-norm text features, shape `[K, d]`; None for a ridge regression without a prior.
            groups: Groups of the images, integers of shape `[N]`, which are left out as a whole; None without groups.

        Raises:
            UserError: If all images are of one group.
        """
        task = _Indicators.of(features, labels, with_text=text is not None)
        regression = _Regression.of(task, text)
        ridge, gain = regression.choose()
        w = regression.weights(ridge, gain)
        weights = w.t().contiguous()
        bias = task.mean_label - task.mean @ w
        left_out = torch.cat([*regression.left_out(weights, ridge)])
        if groups is not None:
            left_out = regression.without_groups(left_out, weights, ridge, groups)
        thresholds = best_thresholds(left_out.cpu(), labels.cpu(), task.varied.cpu()).to(bias)
        step = _step(labels.numel(), MAX_SCORES)
        scores = left_out[::step, task.varied]
        slope, intercept = logistic_calibration(scores, labels[::step, task.varied])
        return cls(weights, bias, ridge, gain, left_out, thresholds, slope, intercept, task.varied)

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


@dataclass(frozen=True)
class _Indicators:
    """Images with label indicators, centred in chunks.

    Attributes:
        features, labels: Image features `F`, shape `[N, d]`, and label indicators, booleans of shape `[N, K]`.
        mean: `m`, shape `[d]`.
        mean_label: `y`, shape `[K]`; of a class without positive images the mean of the others, if there is text.
        absent: Classes without positive images, booleans of shape `[K]`.
        varied: Classes with both positive and negative images, booleans of shape `[K]`.
    """

    features: Tensor
    labels: Tensor
    mean: Tensor
    mean_label: Tensor
    absent: Tensor
    varied: Tensor

    @classmethod
    def of(cls, features: Tensor, labels: Tensor, with_text: bool) -> _Indicators:
        """Means of images and labels; logs how many classes have equal indicators."""
        counts = labels.sum(dim=0).double()
        absent = counts == 0
        varied = (counts > 0) & (counts < len(labels))
        if not varied.all():
            scores = "text alone predicts them" if with_text else "their scores are constant"
            message = "of %d classes, %d have no positive image and %d no negative one: %s"
            logger.warning(message, len(counts), int(absent.sum()), int((counts == len(labels)).sum()), scores)
        mean_label = counts / len(labels)
        if with_text and varied.any():
            mean_label[absent] = mean_label[varied].mean()
        return cls(features, labels, features.double().mean(dim=0), mean_label, absent, varied)

    def chunks(self, step: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
        """Iterate over `X` and `Y`, or every `step`-th row of both, in float64."""
        features = self.features[::step].split(CHUNK_ROWS)
        labels = self.labels[::step].split(CHUNK_ROWS)
        for rows, answers in zip(features, labels):
            yield self.centred(rows, answers)

    def centred(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Rows of `X` and `Y` in float64, from rows of `F` and of the label indicators."""
        indicators = labels.double()
        indicators[:, self.absent] = self.mean_label[self.absent]
        return features.double() - self.mean, indicators


@dataclass(frozen=True)
class _Regression:
    """Ridge regressions in the basis of the eigenvectors of `X^T X`, where ridges are diagonal.

    Attributes:
        task: Images and labels.
        basis: Eigenvectors in columns, shape `[d, d]`.
        eigenvalues: Their eigenvalues, shape `[d, 1]`.
        spread: `s`.
        cross: `X^T R` in the basis, shape `[d, K]`.
        text: `(T - mean_c T_c)^T` in the basis, shape `[d, K]`; 0 without text.
    """

    task: _Indicators
    basis: Tensor
    eigenvalues: Tensor
    spread: Tensor
    cross: Tensor
    text: Tensor

    @classmethod
    def of(cls, task: _Indicators, text: Tensor | None) -> _Regression:
        """Decompose `X^T X`; `text` has the text features, shape `[K, d]`."""
        width = len(task.mean)
        gram = task.mean.new_zeros(width, width)  # X^T X
        cross = task.mean.new_zeros(width, len(task.mean_label))  # X^T R
        for deviations, indicators in task.chunks():
            gram += deviations.t() @ deviations
            cross += deviations.t() @ (indicators - task.mean_label)
        eigenvalues, basis = torch.linalg.eigh(gram)
        eigenvalues = eigenvalues.clamp_min(0).unsqueeze(1)
        spread = eigenvalues.mean().clamp_min(SMALLEST)
        in_basis = torch.zeros_like(cross)
        if text is not None:
            in_basis = basis.t() @ (text.double() - text.double().mean(dim=0)).t()
        return cls(task, basis, eigenvalues, spread, basis.t() @ cross, in_basis)

    def parts(self, ridge: float) -> tuple[Tensor, Tensor]:
        """`W` in the basis for `lambda`: the part without text, and the part that is added `g` times, each `[d, K]`."""
        strength = ridge * self.spread  # lambda s
        plain = self.cross / (self.eigenvalues + strength)
        prior = self.text * (strength / (self.eigenvalues + strength))
        return plain, prior

    def weights(self, ridge: float, gain: float) -> Tensor:
        """`W` for `lambda` and `g`, shape `[d, K]`."""
        plain, prior = self.parts(ridge)
        return self.basis @ (plain + gain * prior)

    def error_weight(self, projected: Tensor, ridge: float) -> Tensor:
        """`1 / (1 - H_ii)` of centred images in the basis `[B, d]`, shape `[B, 1]`."""
        inverse = 1 / (self.eigenvalues + ridge * self.spread)
        leverage = projected.square() @ inverse + 1 / len(self.task.features)  # H_ii
        return 1 / (1 - leverage).clamp_min(SMALLEST)

    def choose(self) -> tuple[float, float]:
        """`lambda` and `g` with the least squared leave-one-out error, on at most `MAX_ROWS` images."""
        varied = self.task.varied
        # Per ridge, the products of the error at `g = 0` and of its decrease at `g = 1` with each other
        products = self.task.mean.new_zeros(len(RIDGES), 2, 2)
        plain = []
        prior = []
        for ridge in RIDGES:
            without_text, of_text = self.parts(ridge)
            plain.append(without_text[:, varied])
            prior.append(of_text[:, varied])
        for deviations, indicators in self.task.chunks(_step(len(self.task.features), MAX_ROWS)):
            projected = deviations @ self.basis
            target = (indicators - self.task.mean_label)[:, varied]
            for number, ridge in enumerate(RIDGES):
                error = torch.addmm(target, projected, plain[number], alpha=-1)
                decrease = projected @ prior[number]
                both = torch.stack([error, decrease])
                both = (both * self.error_weight(projected, ridge)).flatten(1)
                products[number] += both @ both.t()
        of_error = products[:, 0, 0]
        mixed = products[:, 0, 1]
        of_decrease = products[:, 1, 1]
        gains = (mixed / of_decrease.clamp_min(SMALLEST)).clamp_min(0)
        errors = of_error - 2 * gains * mixed + gains.square() * of_decrease
        best = int(errors.argmin())
        return RIDGES[best], float(gains[best])

    def left_out(self, weights: Tensor, ridge: float) -> Iterator[Tensor]:
        """Leave-one-out scores of `weights` `[K, d]`, by chunk, float32."""
        for deviations, indicators in self.task.chunks():
            scores = torch.addmm(self.task.mean_label, deviations, weights.t())
            weight = self.error_weight(deviations @ self.basis, ridge)
            yield scores.sub_(indicators).mul_(weight).add_(indicators).float()

    def without_groups(self, left_out: Tensor, weights: Tensor, ridge: float, groups: Tensor) -> Tensor:
        """Score of each image by a head without the image's group, shape `[N, K]`, float32.

        Args:
            left_out: Result of `left_out`, which images keep that are alone in their group.
            weights: Weights of the head, shape `[K, d]`.
            ridge: `lambda`.
            groups: Groups of the images, integers of shape `[N]`; UserError if all are equal.
        """
        numbers = groups.unique(return_inverse=True)[1]
        sizes = numbers.bincount()
        if len(sizes) < 2:
            raise UserError("expected images of at least two groups, got one; add images of another group")
        left_out = left_out.clone()
        whitening = self.basis / (self.eigenvalues[:, 0] + ridge * self.spread).sqrt()
        for images in numbers.argsort(stable=True).split(sizes.tolist()):
            if len(images) > 1:
                deviations, indicators = self.task.centred(self.task.features[images], self.task.labels[images])
                errors = indicators - self.task.mean_label - deviations @ weights.t()
                of_mean = deviations.new_full((len(images), 1), len(self.task.features) ** -0.5)
                factor = torch.cat([deviations @ whitening, of_mean], dim=1)
                left_out[images] = (indicators - solve_without(factor, errors)).float()
        return left_out


def solve_without(factor: Tensor, errors: Tensor) -> Tensor:
    """`(I - Q Q^T)^-1 E`, shape `[n, K]`, from the factor `Q` `[n, q]` of a hat matrix and errors `E` `[n, K]`.

    The smaller of two systems is solved, of n or of q equations; the second is Woodbury's identity:

        (I - Q Q^T)^-1 E = E + Q (I - Q^T Q)^-1 Q^T E
    """
    rows, columns = factor.shape
    unit = torch.eye(min(rows, columns), dtype=factor.dtype, device=factor.device)
    if rows <= columns:
        return torch.linalg.solve(unit - factor @ factor.t(), errors)
    return errors + factor @ torch.linalg.solve(unit - factor.t() @ factor, factor.t() @ errors)


def _step(count: int, most: int) -> int:
    """Least step with which at most `most` of `count` rows are taken."""
    return math.ceil(count / most)


def best_thresholds(scores: Tensor, labels: Tensor, varied: Tensor) -> Tensor:
    """Thresholds of scores `[N, K]` with labels `[N, K]`, shape `[K]`, float64.

    The best F1 of a class is reached at the score of one of its positive images. Its own threshold lies halfway between
    that score and the next smaller one. Classes that are not `varied`, booleans `[K]`, have the common threshold.
    """
    positive = scores[labels & varied]
    if not len(positive):
        return torch.full((scores.shape[1],), 0.5, dtype=torch.float64)
    common = np.sort(positive.numpy())
    common = common[:: _step(len(positive), CANDIDATES)]  # candidates of the common threshold
    accepted = np.zeros(len(common))  # images of all classes that each candidate accepts
    correct = np.zeros(len(common))  # of these with the label
    own: dict[int, float] = {}
    for block in varied.nonzero().flatten().split(CLASS_BLOCK):
        columns = scores[:, block].t().contiguous().numpy()
        flags = labels[:, block].t().contiguous().numpy()
        for number, column, flag in zip(block.tolist(), columns, flags):
            hits = np.sort(column[flag])
            ordered = np.sort(column)
            accepted += len(ordered) - np.searchsorted(ordered, common)
            correct += len(hits) - np.searchsorted(hits, common)
            own[number] = best_threshold(ordered, hits)
    best = float(common[(correct / (len(positive) + accepted)).argmax()])
    return torch.tensor([(own.get(number, best) + best) / 2 for number in range(scores.shape[1])], dtype=torch.float64)


def best_threshold(scores: np.ndarray, positive: np.ndarray) -> float:
    """Threshold with the best F1 of one class, from the ascending scores of all images and of the positive ones."""
    places = np.searchsorted(scores, positive)
    accepted = len(scores) - places
    f1 = 2 * np.arange(len(positive), 0, -1) / (len(positive) + accepted)
    place = places[f1.argmax()]
    return (float(scores[place]) + float(scores[max(place - 1, 0)])) / 2


def logistic_calibration(scores: Tensor, labels: Tensor) -> tuple[float, float]:
    """`a >= LEAST_SLOPE` and `b` of `sigmoid(a score + b)` with the largest likelihood (Platt, 1999).

    Scores and labels have any shape, with an entry for each image and class.

    Newton's method with shorter steps where a whole step raises the loss. A weak prior keeps `a` and `b` finite where
    the scores separate the labels.
    """
    target = labels.double().flatten()
    scores = scores.double().flatten()
    design = torch.stack([scores, torch.ones_like(scores)], dim=1)
    prior = design.new_tensor([SLOPE, -SLOPE / 2])

    def loss(solution: Tensor) -> Tensor:
        logits = design @ solution
        penalty = SLOPE_PRIOR_WEIGHT / 2 * (solution - prior).square().sum()
        return F.binary_cross_entropy_with_logits(logits, target, reduction="sum") + penalty

    solution = prior.clone()
    least = loss(prior)
    for _ in range(NEWTON_STEPS):
        probability = (design @ solution).sigmoid()
        gradient = design.t() @ (probability - target) + SLOPE_PRIOR_WEIGHT * (solution - prior)
        curvature = (design * (probability * (1 - probability)).unsqueeze(1)).t() @ design
        step = torch.linalg.solve(curvature + SLOPE_PRIOR_WEIGHT * torch.eye(2).to(curvature), gradient)
        while loss(solution - step) > (1 + ROUNDING) * least:
            step = step / 2
        solution = solution - step
        least = loss(solution)
    slope, intercept = solution.tolist()
    if slope < LEAST_SLOPE:
        return LEAST_SLOPE, logistic_calibration(torch.zeros_like(scores), labels)[1]
    return slope, intercept
