"""Differences of accuracies or mAPs with their intervals.

**Analysis of variance.** `y_ir` is the value of test image i in draw r of the training images, which is a seed:

    y_ir = m + a_i + b_r + e_ir,    i = 1 ... M,    r = 1 ... R

A mean over i or r has a dot in place of the index. The mean squares of images, draws and residuals are

    MSI = R / (M - 1) sum_i (y_i. - y..)^2                            M - 1 degrees of freedom
    MSD = M / (R - 1) sum_r (y_.r - y..)^2                            R - 1
    MSR = sum_ir (y_ir - y_i. - y_.r + y..)^2 / ((M - 1) (R - 1))     (M - 1) (R - 1)

The variance of the mean over n data sets, for other test images and other draws, is estimated by

    v = 1 / n^2 sum_datasets (MSI + max(0, MSD - MSR)) / (R M)

and the interval is `y.. +- t_f sqrt(v)`, with the quantile of Student's t for Satterthwaite's degrees of freedom

    f = v^2 / sum_k (c_k MS_k)^2 / f_k

over the mean squares with their coefficients `c_k` in v (F. E. Satterthwaite: An Approximate Distribution of Estimates
of Variance Components. Biometrics Bulletin 2, 1946). In simulations, such intervals of 95 % cover the true mean in 94
to 97 %; with three draws of a single data set that vary much more than its images, in 92 %. With one draw,
`v = MSI / (n^2 M)`, and the interval holds for these training images only.

**Draws from a small pool.** Two draws have a share p of their training images in common, on average over all pairs.
Then the covariance of `b_r` and `b_s` is at most p times their variance (W. Hoeffding: A Class of Statistics with
Asymptotically Normal Distribution. Annals of Mathematical Statistics 19, 1948). Such draws vary less than independent
ones, and their mean varies more. In v, `MSD - MSR` is therefore multiplied by

    c = (1 + (R - 1) p) / (1 - p)

which is 1 for draws without a common image. The variance is right if the covariance is p times the variance, and too
large otherwise. With p = 1, c is 1 as well, and the interval holds for these training images only.

**Data sets with the same draws.** Models that are trained once and tested on several data sets bring the same draws
into each of them, so `b_r` of one data set and `b_r` of another are not independent. Such data sets are a cluster. In
v, the sum of the `MSD / (R M)` of its data sets is replaced by the variance of the sum of their means, which contains
all covariances:

    1 / (R (R - 1)) sum_r (s_r - s.)^2,    s_r = sum_datasets y_.r

**Groups.** Images of one group, such as the frames of a video, are no independent observations. The units are then the
G groups in place of the images, with the values

    z_gr = y.. + G / M sum_{i in g} (y_ir - y..)

whose mean over the groups is `y_.r`: the linearised mean over images of a sample of groups.

**Bootstrap.** The mAP is no mean over images. Its variances over images are those of bootstrap samples.

Shapes: M test images, R draws, G groups of test images, K classes, B bootstrap samples.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit

from .table import CONFIDENCE

RESAMPLES = 2000
LARGEST = 100.0  # points of a difference
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


class Variances(NamedTuple):
    """Mean of a data set in points, and the parts of its variance.

    Attributes:
        images, residuals: `MSI / (R M)` and `MSR / (R M)`; the latter is 0 with one draw.
        num_images: M, or G with groups.
        by_draw: `y_.r`, shape `[R]`.
        overlap: p.
    """

    images: float
    residuals: float
    num_images: int
    by_draw: np.ndarray
    overlap: float = 0.0

    @property
    def mean(self) -> float:
        """`y..`."""
        return float(self.by_draw.mean())

    @property
    def draws(self) -> float:
        """`MSD / (R M)`, 0 with one draw."""
        return variance_of_mean(self.by_draw)


def variance_of_mean(values: np.ndarray) -> float:
    """Estimated variance of the mean of independent values `[R]`; 0 for a single value."""
    return float(values.var(ddof=1)) / len(values) if len(values) > 1 else 0.0


def weight_of_draws(overlap: float, draws: int) -> float:
    """Factor `c` of the variance of R draws, from the share `p` of training images that two draws have in common."""
    return 1.0 if overlap == 1 else (1 + (draws - 1) * overlap) / (1 - overlap)


def analyse_variance(values: np.ndarray) -> Variances:
    """Analysis of variance of values by draw and image, shape `[R, M]`, with at least two images."""
    draws, images = values.shape
    by_draw = values.mean(axis=1)
    of_images = values.mean(axis=0) - values.mean()
    ms_images = draws / (images - 1) * (of_images**2).sum()
    ms_residuals = 0.0
    if draws > 1:
        residuals = values - by_draw[:, None] - of_images
        ms_residuals = (residuals**2).sum() / ((images - 1) * (draws - 1))
    count = draws * images
    return Variances(ms_images / count, ms_residuals / count, images, by_draw)


def values_of_groups(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Values `z_gr` of groups, shape `[R, G]`, from values by draw and image `[R, M]` and the groups `[M]`."""
    numbers = np.unique(groups, return_inverse=True)[1]
    num_groups = int(numbers.max()) + 1
    mean = values.mean()
    sums = np.stack([np.bincount(numbers, row - mean, num_groups) for row in values])
    return mean + num_groups / values.shape[1] * sums


def analyse_bootstrap(values: np.ndarray, images: int) -> Variances:
    """Parts of the variance of a score by draw, from its bootstrap samples over M images.

    Args:
        values: Score of all images in the first column, then of each bootstrap sample, shape `[R, 1 + B]`.
        images: M.
    """
    draws = len(values)
    of_images = values.mean(axis=0)
    var_residuals = 0.0
    if draws > 1:
        var_residuals = (values - of_images)[:, 1:].var(axis=1).sum() / (draws - 1) / draws
    return Variances(float(of_images[1:].var()), var_residuals, images, values[:, 0])


def interval_of_mean(clusters: Sequence[Sequence[Variances]]) -> Difference:
    """Mean over data sets in points, with its interval for other test images and other draws of training images.

    Args:
        clusters: Data sets. Those of one cluster have the same draws, in the same order.
    """
    parts = [part for cluster in clusters for part in cluster]
    variance = 0.0
    squares = 0.0  # the denominator of f
    for part in parts:
        variance += part.images
        squares += part.images**2 / (part.num_images - 1)
    for cluster in clusters:
        of_draws, square = _variance_of_draws(cluster)
        variance += of_draws
        squares += square
    mean = float(np.mean([part.mean for part in parts]))
    half_width = 0.0
    if variance > 0:
        freedom = variance**2 / squares
        half_width = stdtrit(freedom, (1 + CONFIDENCE) / 2) * variance**0.5 / len(parts)
    low = max(mean - half_width, -LARGEST)
    high = min(mean + half_width, LARGEST)
    return Difference(mean, _rounded(low), _rounded(high))


def _variance_of_draws(cluster: Sequence[Variances]) -> tuple[float, float]:
    """Variance of the sum of the means of a cluster over draws, and its part of the denominator of `f`."""
    sums = np.sum([part.by_draw for part in cluster], axis=0)  # s_r, [R]
    draws = variance_of_mean(sums)
    residuals = sum(part.residuals for part in cluster)
    if draws <= residuals:
        return 0.0, 0.0
    freedom = len(sums) - 1
    weight = max(weight_of_draws(part.overlap, len(sums)) for part in cluster)
    square = draws**2 / freedom
    for part in cluster:
        square += part.residuals**2 / ((part.num_images - 1) * freedom)
    return weight * (draws - residuals), weight**2 * square


def _rounded(end: float) -> float:
    """Round an end of an interval, so that a rounding error does not exclude 0."""
    return round(float(end), 9) + 0.0


# Bootstrap over test images


def mean_difference(by_image: Sequence[np.ndarray]) -> Difference:
    """Mean of differences in points, for each data set `[M]`, averaged over data sets, with its bootstrap interval."""
    from scipy.stats import bootstrap  # takes half a second to import

    def mean_of_means(*samples: np.ndarray, axis: int = -1) -> np.ndarray:
        return np.mean([sample.mean(axis=axis) for sample in samples], axis=0)

    options = {"n_resamples": RESAMPLES, "batch": 100, "confidence_level": CONFIDENCE, "method": "percentile"}
    result = bootstrap(by_image, mean_of_means, random_state=np.random.default_rng(0), **options)
    low, high = result.confidence_interval
    return Difference(float(mean_of_means(*by_image)), _rounded(low), _rounded(high))


def bootstrap_weights(images: int, rng: np.random.Generator) -> np.ndarray:
    """Weights of images: 1 for all of them in the first row, then `RESAMPLES` bootstrap samples; `[1 + B, M]`.

    For groups, pass their number, and take the columns of the groups of the images.
    """
    return np.vstack([np.ones(images), rng.multinomial(images, np.full(images, 1 / images), RESAMPLES)])


def percentile_interval(values: np.ndarray) -> Difference:
    """First value, with the interval of the others, which are its bootstrap samples."""
    low, high = np.quantile(values[1:], [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Difference(values[0], _rounded(low), _rounded(high))


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
