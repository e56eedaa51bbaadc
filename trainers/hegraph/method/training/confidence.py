"""Calibration by temperature scaling, calibration errors, and scores for open-set rejection.

Temperature scaling (Guo, Pleiss, Sun, Weinberger: On Calibration of Modern Neural Networks. ICML 2017) uses the
probabilities `softmax(logits / T)`. The temperature `T` never changes the predicted class.

Open-set rejection marks an image as unknown if its score is below a threshold that a given rate of images of known
classes reaches. Score and threshold are chosen without unknown images. The scores are

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

from ...utils.reading import Finite, Size, StrictModel
from .options import BINS
from .prediction_sets import SetScores, effective_number, evenly_weighted

# Standard deviation of the normal prior of log T, with mean 0. Without a prior, ten correctly classified images would
# make T zero.
LOG_DEVIATION = 0.5
LOG_RANGE = (-3.0, 3.0)  # range of log T
DEFAULT_SCORE: Literal["energy"] = "energy"  # docs/guides/confidence.md says how it was chosen
NUM_QUANTILES = 101  # stored quantiles of the scores of known images: 0 %, 1 % ... 100 %
QUANTILES = np.linspace(0, 1, NUM_QUANTILES)
SCORED_AT_ONCE = 8192  # images scored at once, which limits the memory for large test sets


class KnownScores(StrictModel):
    """Distribution of the score over images of known classes that the classifier was not fitted to.

    Attributes:
        quantiles: `NUM_QUANTILES` quantiles of the score, from the minimum to the maximum.
        fitted_on: Source of the images, as in `Calibration`.
        num_images: Number of images.
        score: Name of the score.
    """

    quantiles: Annotated[tuple[Finite, ...], Field(strict=False, min_length=NUM_QUANTILES, max_length=NUM_QUANTILES)]
    fitted_on: str
    num_images: Size
    score: Literal["probability", "energy"] = DEFAULT_SCORE

    @model_validator(mode="after")
    def quantiles_ascend(self) -> KnownScores:
        if any(after < before for before, after in zip(self.quantiles, self.quantiles[1:])):
            raise ValueError("quantiles must be in ascending order")
        return self

    @classmethod
    def of(cls, scores: Tensor, fitted_on: str, weights: Tensor | None = None) -> KnownScores:
        """Distribution of the scores `[n]` of known images, with weights `[n]`; None: equal ones."""
        if weights is not None:
            evenly = evenly_weighted(scores.detach().double().cpu(), weights.cpu())
            return cls.of(evenly, fitted_on).model_copy(update={"num_images": len(scores)})
        quantiles = np.quantile(scores.detach().double().cpu().numpy(), QUANTILES)
        return cls(quantiles=tuple(quantiles.tolist()), fitted_on=fitted_on, num_images=len(scores))

    def threshold(self, rate: float) -> float:
        """Score that the fraction `rate` of the known images reaches, interpolated between quantiles."""
        return float(np.interp(1 - rate, QUANTILES, self.quantiles))

    def share_below(self, score: float) -> float:
        """Fraction of the known images with a lower score, from 0 to 1, interpolated between quantiles."""
        return float(np.interp(score, self.quantiles, QUANTILES))


@dataclass(frozen=True)
class Calibration:
    """Temperature of a fitted method, and the images that it was fitted on.

    Attributes:
        temperature: `T`.
        fitted_on: "val", "held-out images", "held-out classes", "model" (stored in a trained model) or "nothing".
        num_images: Number of images.
        seconds: Time of the fit, including trainings for it.
        known: Scores of these images, for open-set rejection; None without images.
        sets: Probabilities of their true classes, for prediction sets; None without images.
    """

    temperature: float = 1.0
    fitted_on: str = "nothing"
    num_images: int = 0
    seconds: float = 0.0
    known: KnownScores | None = None
    sets: SetScores | None = None


def fit_temperature(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> float:
    """Fit the temperature by cross-entropy, with a normal prior of log T.

        T = argmin_T  sum_i -w_i log softmax(z_i / T)[y_i] + (log T)^2 / (2 LOG_DEVIATION^2)

    Args:
        logits: Logits `[n, K]` of images that the classifier was not fitted to.
        labels: Their classes, shape `[n]`.
        weights: `w_i` up to a factor, float64 of shape `[n]`; they are scaled to the sum `effective_number`. None: 1.
    """
    from scipy.optimize import minimize_scalar  # slow to import, and a finished run needs no temperature

    logits = logits.detach().double().cpu()
    labels = labels.cpu()

    scaled = None if weights is None else effective_number(weights) * (weights / weights.sum()).cpu()

    def loss(log_temperature: float) -> float:
        divided = logits * math.exp(-log_temperature)
        if scaled is None:
            fit = F.cross_entropy(divided, labels, reduction="sum").item()
        else:
            fit = (scaled * F.cross_entropy(divided, labels, reduction="none")).sum().item()
        return fit + 0.5 * (log_temperature / LOG_DEVIATION) ** 2

    return math.exp(minimize_scalar(loss, bounds=LOG_RANGE, method="bounded").x)


def match_confidence(logits: Sequence[Tensor], confidence: float) -> float:
    """Temperature at which `mean_confidence` equals `confidence`, clipped to `LOG_RANGE`."""
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
    """Mean confidence over groups of images, each with logits `[n, K]` of its own number of classes."""
    highest = [(part.detach().double() / temperature).softmax(dim=1).amax(dim=1) for part in logits]
    return torch.cat(highest).mean().item()


def calibration_on(
    logits: Tensor,
    labels: Tensor,
    fitted_on: str,
    weights: Tensor | None = None,
    few: tuple[int, ...] = (),
    of_few: Tensor | None = None,
) -> Calibration:
    """Calibration on images that the method was not fitted to.

    Args:
        logits, labels: Logits `[n, K]` and classes `[n]` of the images.
        fitted_on: Source of the images.
        weights: Weights of the images, float64 of shape `[n]`; None: equal ones.
        few, of_few: Classes with few training images, and images like theirs, as in `SetScores.of`.
    """
    temperature = fit_temperature(logits, labels, weights)
    known = KnownScores.of(known_score(logits, temperature), fitted_on, weights)
    sets = SetScores.of(logits, labels, temperature, weights=weights, few=few, of_few=of_few)
    return Calibration(temperature, fitted_on, len(labels), known=known, sets=sets)


def calibration_by_zero_shot(
    held_out: Sequence[Tensor], held_out_clip: Sequence[Tensor], train_clip: Tensor, labels: Tensor
) -> Calibration:
    """Calibrate a method on held-out classes by matching the mean confidence of calibrated zero-shot CLIP.

    The temperature of zero-shot CLIP is fitted on the training images. The open-set scores of known images are its
    scores of the training images, plus the mean difference between the method and zero-shot CLIP on the held-out
    classes. Prediction sets are those of zero-shot CLIP.

    Args:
        held_out: Logits of the method for images of held-out classes, one `[n, K]` for each group of classes.
        held_out_clip: Logits of zero-shot CLIP for the same images.
        train_clip: Logits of zero-shot CLIP for the training images, shape `[N, K]`.
        labels: Classes of the training images, shape `[N]`.
    """
    fitted_on = "held-out classes"
    weights = class_weights(labels)
    clip_temperature = fit_temperature(train_clip, labels, weights)
    temperature = match_confidence(held_out, mean_confidence(held_out_clip, clip_temperature))
    pairs = zip(held_out, held_out_clip)
    gains = [known_score(logits, temperature) - known_score(clip, clip_temperature) for logits, clip in pairs]
    known = KnownScores.of(known_score(train_clip, clip_temperature) + torch.cat(gains).mean(), fitted_on, weights)
    sets = SetScores.of(train_clip, labels, clip_temperature, of_zero_shot=True, weights=weights)
    return Calibration(temperature, fitted_on, sum(map(len, held_out)), known=known, sets=sets)


def class_weights(labels: Tensor) -> Tensor | None:
    """Weights of images with labels `[n]` by which every class counts equally, on the CPU; None for equal ones."""
    labels = labels.cpu()
    counts = labels.bincount()[labels].double()
    return None if (counts == counts[0]).all() else 1 / counts


def known_score(logits: Tensor, temperature: float, score: str = DEFAULT_SCORE) -> Tensor:
    """Open-set score of images, "probability" or "energy", from their logits `[B, K]`; shape `[B]`."""
    scaled = logits / temperature
    return scaled.logsumexp(dim=1) if score == "energy" else scaled.softmax(dim=1).amax(dim=1)


def confidence_scores(logits: Tensor, labels: Tensor, temperature: float = 1.0) -> dict:
    """Calibration scores of the probabilities `softmax(logits / temperature)`, computed by scikit-learn.

    Args:
        logits: Logits, shape `[M, K]`.
        labels: Classes, shape `[M]`.
        temperature: `T`.

    Returns:
        "nll", the mean negative log-likelihood in nats; "brier", the mean squared distance between probabilities and
        one-hot labels, from 0 to 2; "ece", the expected calibration error over `BINS` equal bins in percent; "bins",
        with the "count" of images of each bin, and their mean "confidence" and "accuracy" in percent (0 for an empty
        bin). Values of bins are rounded.
    """
    from sklearn.metrics import brier_score_loss, log_loss  # takes a second to import

    classes = np.arange(logits.shape[1])
    nll = brier = 0.0
    confidence = []
    correct = []
    for batch, true in zip(logits.split(SCORED_AT_ONCE), labels.cpu().split(SCORED_AT_ONCE)):
        probabilities = (batch.detach().double() / temperature).softmax(dim=1).cpu()
        pair = true.numpy(), probabilities.numpy()
        nll += len(true) * float(log_loss(*pair, labels=classes))
        brier += len(true) * float(brier_score_loss(*pair, labels=classes, scale_by_half=False))
        highest = probabilities.max(dim=1)
        confidence.append(highest.values.numpy())
        correct.append((highest.indices == true).numpy())
    bins = reliability(np.concatenate(confidence), np.concatenate(correct))
    gaps = np.abs(np.subtract(bins["confidence"], bins["accuracy"]))
    ece = float(np.average(gaps, weights=bins["count"]))  # over the images
    rounded = {}
    for name, values in bins.items():
        rounded[name] = [round(value, 3) for value in values]
    return {"nll": nll / len(labels), "brier": brier / len(labels), "ece": ece, "bins": rounded}


def reliability(confidence: np.ndarray, correct: np.ndarray) -> dict[str, list]:
    """Bins of a reliability diagram, as in `confidence_scores`.

    Args:
        confidence: Confidence of each image, shape `[M]`. A value between two bins belongs to the lower one.
        correct: Whether each prediction is correct, shape `[M]`.
    """
    from sklearn.calibration import calibration_curve

    accuracy, mean = calibration_curve(correct, confidence, n_bins=BINS)  # of bins with images
    inner_edges = np.linspace(0, 1, BINS + 1)[1:-1]
    count = np.bincount(np.searchsorted(inner_edges, confidence), minlength=BINS)
    table = np.zeros((2, BINS))
    table[:, count > 0] = 100 * np.stack([mean, accuracy])
    return {"count": count.tolist(), "confidence": table[0].tolist(), "accuracy": table[1].tolist()}
