"""Differences of accuracies or mAPs with bootstrap intervals over test images.

Shapes: M test images, K classes, B bootstrap samples.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .table import CONFIDENCE

RESAMPLES = 2000
EPSILON = 1e-12  # least number of images in a denominator


class Ranking(NamedTuple):
    """Scores and label indicators of test images with several labels, each `[M, K]`."""

    scores: np.ndarray
    labels: np.ndarray


class Difference(NamedTuple):
    """Difference of two accuracies or mAPs in points, with the ends of its interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        """Text such as "+0.65 (0.12 to 1.18)"; bold if the interval excludes 0."""
        text = f"{self.mean:+.2f} ({self.low:.2f} to {self.high:.2f})"
        return f"**{text}**" if self.low > 0 or self.high < 0 else text


def mean_difference(by_image: Sequence[np.ndarray]) -> Difference:
    """Mean of differences in points, for each data set `[M]`, averaged over data sets, with its bootstrap interval."""
    from scipy.stats import bootstrap  # takes half a second to import

    def mean_of_means(*samples: np.ndarray, axis: int = -1) -> np.ndarray:
        return np.mean([sample.mean(axis=axis) for sample in samples], axis=0)

    options = {"n_resamples": RESAMPLES, "batch": 100, "confidence_level": CONFIDENCE, "method": "percentile"}
    result = bootstrap(by_image, mean_of_means, random_state=np.random.default_rng(0), **options)
    low, high = (round(float(end), 9) + 0.0 for end in result.confidence_interval)  # without rounding errors
    return Difference(float(mean_of_means(*by_image)), low, high)


def bootstrap_weights(images: int, rng: np.random.Generator) -> np.ndarray:
    """Weights of images: 1 for all of them in the first row, then `RESAMPLES` bootstrap samples; `[1 + R, M]`."""
    return np.vstack([np.ones(images), rng.multinomial(images, np.full(images, 1 / images), RESAMPLES)])


def percentile_interval(values: np.ndarray) -> Difference:
    """First value, with the interval of the others, which are its bootstrap samples."""
    low, high = np.quantile(values[1:], [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Difference(values[0], round(low, 9) + 0.0, round(high, 9) + 0.0)


def mean_precision(ranking: Ranking, weights: np.ndarray) -> np.ndarray:
    """Mean over classes of the average precision for B weightings of M images `[B, M]`, shape `[B]`.

    Equal scores share one threshold, as in scikit-learn's `average_precision_score` with `sample_weight`. A class
    without a positive image in a weighting is left out of its mean.
    """
    by_class = []
    for scores, labels in zip(ranking.scores.T, ranking.labels.T):
        order = np.argsort(-scores, kind="stable")
        last = np.flatnonzero(np.diff(scores[order], append=np.nan))  # of each group of equal scores
        hits = (weights[:, order] * labels[order]).cumsum(axis=1)[:, last]
        precision = hits / np.maximum(weights[:, order].cumsum(axis=1)[:, last], EPSILON)
        with np.errstate(invalid="ignore"):  # 0 / 0 without a positive image
            by_class.append((precision * np.diff(hits, prepend=0)).sum(axis=1) / hits[:, -1])
    return np.nanmean(by_class, axis=0)
