"""How sure a classifier is: the temperature of its probabilities, how honest they are, and the score of a known image.

Guo, Pleiss, Sun, Weinberger: On Calibration of Modern Neural Networks. ICML 2017. Probabilities are
`softmax(logits / T)`. One temperature `T` for all classes never changes which class is the likeliest.

An image of no known class is told by its score, which is higher for images of known classes, and by a threshold that
keeps a share of the known ones. Both are chosen without any unknown image.

- "probability": the highest calibrated probability (Hendrycks and Gimpel: A Baseline for Detecting Misclassified and
  Out-of-Distribution Examples. ICLR 2017).
- "energy": `log sum_c exp(z_c / T)` (Liu, Wang, Owens, Li: Energy-based Out-of-distribution Detection. NeurIPS 2020).

Shapes: n images that a temperature is fitted on, M test images, B images of a batch, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from ..utils.reading import Finite, Part, Size

BINS = 15  # of the expected calibration error
# The fitted log T has a normal prior of mean 0 and this deviation. It counts where there are few images: without it,
# ten that are all classified well would make T 0.
LOG_DEVIATION = 0.5
LOG_RANGE = (-3.0, 3.0)  # log T lies in this range
DEFAULT: Literal["energy"] = "energy"  # docs/confidence.md says how it was chosen
SHARES = 101  # quantiles that are kept of the scores of known images: 0 %, 1 % ... 100 %
STEPS = np.linspace(0, 1, SHARES)
BATCH = 8192  # images that are scored at once, so that ImageNet's test images take little memory


class KnownScores(Part):
    """How the run's own images score, none of which the classifier had seen: what thresholds are taken from.

    `quantiles` are those of the score, at `SHARES` equal steps from the lowest to the highest.
    """

    quantiles: Annotated[tuple[Finite, ...], Field(strict=False, min_length=SHARES, max_length=SHARES)]
    fitted_on: str
    num_images: Size
    score: Literal["probability", "energy"] = DEFAULT

    @model_validator(mode="after")
    def quantiles_ascend(self) -> KnownScores:
        if any(after < before for before, after in zip(self.quantiles, self.quantiles[1:])):
            raise ValueError("quantiles must not fall")
        return self

    @classmethod
    def of(cls, scores: Tensor, fitted_on: str) -> KnownScores:
        """What is kept of the scores `[n]` of known images."""
        quantiles = np.quantile(scores.detach().double().cpu().numpy(), STEPS)
        return cls(quantiles=tuple(quantiles.tolist()), fitted_on=fitted_on, num_images=len(scores))

    def threshold(self, keep: float) -> float:
        """The score that a share `keep` of the known images reach; between two quantiles it is interpolated."""
        return float(np.interp(1 - keep, STEPS, self.quantiles))

    def share_below(self, score: float) -> float:
        """The share of the known images that score lower, from 0 to 1: between two quantiles it is interpolated."""
        return float(np.interp(score, self.quantiles, STEPS))


@dataclass(frozen=True)
class Calibration:
    """The temperature of a fitted method, and what it was fitted on.

    Attributes:
        temperature: `T`.
        fitted_on: "val", "held-out images", "held-out classes", "model" (it came with a trained model) or "nothing".
        seconds: How long that took, with the training for it.
        known: How these images score, for thresholds that tell images of no known class; None if there were none.
    """

    temperature: float = 1.0
    fitted_on: str = "nothing"
    num_images: int = 0
    seconds: float = 0.0
    known: KnownScores | None = None


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature of the lowest cross-entropy, with a little weight on 1 (`LOG_DEVIATION`).

        T = argmin_T  sum_i -log softmax(z_i / T)[y_i] + (log T)^2 / (2 LOG_DEVIATION^2)

    The logits `[n, K]` are of images that the classifier was not fitted to.
    """
    from scipy.optimize import minimize_scalar  # takes a while to import, and a finished run needs no temperature

    logits, labels = logits.detach().double().cpu(), labels.cpu()

    def loss(log_temperature: float) -> float:
        fit = F.cross_entropy(logits * math.exp(-log_temperature), labels, reduction="sum").item()
        return fit + 0.5 * (log_temperature / LOG_DEVIATION) ** 2

    return math.exp(minimize_scalar(loss, bounds=LOG_RANGE, method="bounded").x)


def match_confidence(logits: Sequence[Tensor], confidence: float) -> float:
    """The temperature at which `mean_confidence` is `confidence`; if none in `LOG_RANGE` is, the nearest end of it."""
    from scipy.optimize import brentq

    def excess(log_temperature: float) -> float:
        return mean_confidence(logits, math.exp(log_temperature)) - confidence

    low, high = LOG_RANGE  # the confidence falls with the temperature
    if excess(low) <= 0:
        return math.exp(low)
    if excess(high) >= 0:
        return math.exp(high)
    return math.exp(brentq(excess, low, high))


def mean_confidence(logits: Sequence[Tensor], temperature: float) -> float:
    """The mean of the highest probability over groups of images, each with logits `[n, K]` and a K of its own."""
    highest = [(part.detach().double() / temperature).softmax(dim=1).amax(dim=1) for part in logits]
    return torch.cat(highest).mean().item()


def calibration_on(logits: Tensor, labels: Tensor, fitted_on: str) -> Calibration:
    """From logits `[n, K]` of images that the method was not fitted to."""
    temperature = fit_temperature(logits, labels)
    known = KnownScores.of(known_score(logits, temperature), fitted_on)
    return Calibration(temperature, fitted_on, len(labels), known=known)


def as_sure_as(clips: Sequence[Tensor], ours: Sequence[Tensor], own: Tensor, labels: Tensor) -> Calibration:
    """From logits of images of held-out classes, `ours` and `clips`, those of zero-shot CLIP, which gives the training
    images `own`, `[N, K]`: the method is as sure as zero-shot CLIP of the held-out ones, and scores known images as
    zero-shot CLIP scores the training images, plus the mean difference of the two on the held-out ones.
    """
    honest, fitted_on = fit_temperature(own, labels), "held-out classes"
    temperature = match_confidence(ours, mean_confidence(clips, honest))
    gains = [known_score(z, temperature) - known_score(clip, honest) for z, clip in zip(ours, clips)]
    known = KnownScores.of(known_score(own, honest) + torch.cat(gains).mean(), fitted_on)
    return Calibration(temperature, fitted_on, sum(map(len, ours)), known=known)


def known_score(logits: Tensor, temperature: float, score: str = DEFAULT) -> Tensor:
    """The score of images, "probability" or "energy", from their logits `[B, K]` alone; shape `[B]`."""
    scaled = logits / temperature
    return scaled.logsumexp(dim=1) if score == "energy" else scaled.softmax(dim=1).amax(dim=1)


def confidence_scores(logits: Tensor, labels: Tensor, temperature: float = 1.0) -> dict:
    """Scores of the probabilities that logits `[M, K]` give at a temperature, by scikit-learn.

    Returns:
        "nll", the mean negative log-likelihood in nats; "brier", the mean over images of the squared distance between
        probabilities and truth, from 0 to 2; "ece", the expected calibration error over `BINS` equal bins in percent;
        and "bins": for each bin the "count" of its images, their mean "confidence" and their "accuracy" in percent,
        which are 0 for a bin without images. Bins are rounded for the record; the scores are not.
    """
    from sklearn.metrics import brier_score_loss, log_loss  # takes a second to import

    classes = np.arange(logits.shape[1])
    nll = brier = 0.0
    confidence, correct = [], []
    for some, true in zip(logits.split(BATCH), labels.cpu().split(BATCH)):
        probabilities = (some.detach().double() / temperature).softmax(dim=1).cpu()
        given = true.numpy(), probabilities.numpy()
        nll += len(true) * float(log_loss(*given, labels=classes))
        brier += len(true) * float(brier_score_loss(*given, labels=classes, scale_by_half=False))
        highest = probabilities.max(dim=1)
        confidence.append(highest.values.numpy())
        correct.append((highest.indices == true).numpy())
    bins = reliability(np.concatenate(confidence), np.concatenate(correct))
    gaps = np.abs(np.subtract(bins["confidence"], bins["accuracy"]))
    ece = float(np.average(gaps, weights=bins["count"]))  # over the images
    rounded = {name: [round(value, 3) for value in values] for name, values in bins.items()}
    return {"nll": nll / len(labels), "brier": brier / len(labels), "ece": ece, "bins": rounded}


def reliability(confidence: np.ndarray, correct: np.ndarray) -> dict[str, list]:
    """How often predictions of each confidence are right, as "bins" of `confidence_scores`, from the highest
    probability of every image and whether its class is the right one, each `[M]`. A confidence on the border of two
    bins belongs to the lower one."""
    from sklearn.calibration import calibration_curve

    accuracy, mean = calibration_curve(correct, confidence, n_bins=BINS)  # of the bins that hold an image
    inner_edges = np.linspace(0, 1, BINS + 1)[1:-1]
    count = np.bincount(np.searchsorted(inner_edges, confidence), minlength=BINS)
    table = np.zeros((2, BINS))
    table[:, count > 0] = 100 * np.stack([mean, accuracy])
    return {"count": count.tolist(), "confidence": table[0].tolist(), "accuracy": table[1].tolist()}
