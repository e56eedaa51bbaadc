"""None of these: scores that tell images of no known class, and the threshold that keeps a share of the known ones.

A score is higher for images of known classes. It is chosen and its threshold is fitted without any unknown image.

- "probability": the highest calibrated probability (Hendrycks and Gimpel: A Baseline for Detecting Misclassified and
  Out-of-Distribution Examples. ICLR 2017).
- "energy": `log sum_c exp(z_c / T)` (Liu, Wang, Owens, Li: Energy-based Out-of-distribution Detection. NeurIPS 2020).
- "distance": the negative distance to the nearest class node in the whitened space of the messages in closed form
  (`method/closed_form.py`), `-min_c |A^-1/2 (f - u_c)| / s`; "angle": the cosine there between the image and the
  nearest class node, both seen from the mean, as those messages compare them.
- "own text": the cosine `f . t_c` with the positive text node of the predicted class; "margin": `f . t_c - f . n_c`,
  with its negative text node; "margin, shuffled": with the negative text node of another class.

Shapes: B images, K classes, d feature width, n known images, m unknown ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from ..utils.schema import Finite, Part, Size

DEFAULT: Literal["energy"] = "energy"  # docs/confidence.md says how it was chosen
SHARES = 101  # quantiles that are kept of the scores of known images: 0 %, 1 % ... 100 %


class KnownScores(Part):
    """How the run's own images score, of which the classifier had not seen any: what thresholds are taken from.

    Attributes:
        quantiles: Of the score, at `SHARES` equal steps from the lowest to the highest.
        fitted_on: As of `Calibration`.
        num_images: How many images were scored.
        score: Name of the score.
    """

    quantiles: Annotated[tuple[Finite, ...], Field(strict=False, min_length=SHARES, max_length=SHARES)]
    fitted_on: str
    num_images: Size
    score: Literal["probability", "energy"] = DEFAULT

    @model_validator(mode="after")
    def quantiles_ascend(self) -> KnownScores:
        """Quantiles never fall."""
        if any(after < before for before, after in zip(self.quantiles, self.quantiles[1:])):
            raise ValueError("quantiles must not fall")
        return self

    @classmethod
    def of(cls, scores: Tensor, fitted_on: str) -> KnownScores:
        """What is kept of the scores `[n]` of known images."""
        steps = np.linspace(0, 1, SHARES)
        quantiles = np.quantile(scores.detach().double().cpu().numpy(), steps)
        return cls(quantiles=tuple(quantiles.tolist()), fitted_on=fitted_on, num_images=len(scores))

    def threshold(self, keep: float) -> float:
        """The score that a share of the known images reach.

        Args:
            keep: The share, between 0 and 1. Between two quantiles the threshold is interpolated.
        """
        return float(np.interp(1 - keep, np.linspace(0, 1, SHARES), self.quantiles))

    def share_below(self, score: float) -> float:
        """The share of the known images that score lower, from 0 to 1: between two quantiles it is interpolated."""
        return float(np.interp(score, self.quantiles, np.linspace(0, 1, SHARES)))


def known_score(logits: Tensor, temperature: float, score: str = DEFAULT) -> Tensor:
    """The score of images from their logits alone.

    Args:
        logits: Shape `[B, K]`.
        temperature: `T`.
        score: "probability" or "energy".

    Returns:
        Shape `[B]`.
    """
    scaled = logits / temperature
    return scaled.logsumexp(dim=1) if score == "energy" else scaled.softmax(dim=1).amax(dim=1)


def metric_scores(features: Tensor, mean: Tensor, whitening: Tensor, nodes: Tensor) -> dict[str, Tensor]:
    """The scores "distance" and "angle", each `[B]`.

    Args:
        features: Unit-norm image features, shape `[B, d]`.
        mean: `m`, shape `[d]`.
        whitening: `A^-1/2 / s`, shape `[d, d]`.
        nodes: `A^-1/2 (u_c - m) / s`, shape `[K, d]`.
    """
    whitened = (features - mean) @ whitening
    cosines = F.normalize(whitened, dim=1) @ F.normalize(nodes, dim=1).t()
    return {"distance": -torch.cdist(whitened, nodes).amin(dim=1), "angle": cosines.amax(dim=1)}


def text_scores(features: Tensor, predicted: Tensor, positive: Tensor, negatives: dict[str, Tensor]) -> dict:
    """The scores "own text" and, for each kind of negative text nodes, the margin against them; each `[B]`.

    Args:
        features: Unit-norm image features, shape `[B, d]`.
        predicted: Their predicted classes, shape `[B]`.
        positive: Positive text nodes, shape `[K, d]`.
        negatives: Name of a score -> negative text nodes, shape `[K, d]`.
    """
    own = (features * positive[predicted]).sum(dim=1)
    return {"own text": own} | {
        name: own - (features * negative[predicted]).sum(dim=1) for name, negative in negatives.items()
    }


def separation(known: Sequence[float] | Tensor, unknown: Sequence[float] | Tensor) -> dict[str, float]:
    """How well a score tells known from unknown images.

    Args:
        known: Scores of known images, shape `[n]`.
        unknown: Of unknown ones, shape `[m]`.

    Returns:
        "auroc" in percent: how often a known image has a higher score than an unknown one (scikit-learn's
        `roc_auc_score`). "fpr95" in percent: the share of unknown images that are kept by the highest threshold that
        keeps at least 95 % of the known ones (from scikit-learn's `roc_curve`).
    """
    from sklearn.metrics import roc_auc_score, roc_curve  # takes a second to import

    scores = np.concatenate([np.asarray(known, dtype=float), np.asarray(unknown, dtype=float)])
    is_known = np.arange(len(scores)) < len(known)
    false, true, _ = roc_curve(is_known, scores, drop_intermediate=False)
    return {
        "auroc": 100 * float(roc_auc_score(is_known, scores)),
        "fpr95": 100 * float(false[np.argmax(true >= 0.95)]),
    }
