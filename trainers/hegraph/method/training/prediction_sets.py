"""Prediction sets: classes that contain the class of a new image with a given probability, the coverage.

The set of an image has all classes whose calibrated probability is at least a threshold (LAC; Sadinle, Lei and
Wasserman: Least Ambiguous Set-Valued Classifiers with Bounded Error Levels. JASA 114, 2019), and always the predicted
class. The threshold for a coverage `1 - a` is an order statistic of the probabilities of the true classes of n images
that the classifier was not fitted to:

    threshold = the k-th smallest of them,  k = floor((n + 1) a)

The coverage holds on average over the classes, for new images of the same kind and sources. It needs `k >= 1`, that is,
`n >= (1 - a) / a` images.

At one shot, no image is held out with its class known. The sets are then those of zero-shot CLIP, which was not fitted
to the training images.

Shapes: n held-out images, B images of a batch, K classes.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Annotated

import torch
from pydantic import Field, model_validator
from torch import Tensor

from ...utils.errors import UserError
from ...utils.reading import Positive, Share, StrictModel, validate


class SetScores(StrictModel):
    """Probabilities of the true classes of images that the classifier was not fitted to.

    Attributes:
        scores: The probabilities in ascending order.
        temperature: Divisor of the logits that they were computed with.
        of_zero_shot: Whether the logits are those of zero-shot CLIP.
    """

    scores: Annotated[tuple[Annotated[float, Field(ge=0, le=1)], ...], Field(strict=False, min_length=1)]
    temperature: Positive
    of_zero_shot: bool = False

    @model_validator(mode="after")
    def scores_ascend(self) -> SetScores:
        if any(after < before for before, after in zip(self.scores, self.scores[1:])):
            raise ValueError("scores must be in ascending order")
        return self

    @classmethod
    def of(cls, logits: Tensor, labels: Tensor, temperature: float, of_zero_shot: bool = False) -> SetScores:
        """Scores of held-out images with logits `[n, K]` and classes `[n]`."""
        probabilities = (logits.detach().double().cpu() / temperature).softmax(dim=1)
        own = probabilities.gather(1, labels.cpu().unsqueeze(1))[:, 0]
        scores = own.sort().values.clamp(0, 1).tolist()
        return cls(scores=tuple(scores), temperature=temperature, of_zero_shot=of_zero_shot)

    def threshold(self, coverage: float) -> float:
        """Least probability of a class in a set; UserError if the coverage is no share or needs more images."""
        validate(Share, coverage, "coverage", convert=True)
        rest = 1 - Fraction(str(coverage))  # exact, as the coverage is written
        number = len(self.scores)
        rank = math.floor((number + 1) * rest)  # k
        if rank < 1:
            needed = math.ceil((1 - rest) / rest)
            images = f"needs at least {needed} held-out images, and the model has {number}"
            raise UserError(f"coverage {coverage:g} {images}; lower the coverage, or train with more images")
        return self.scores[rank - 1]

    def supports(self, coverage: float) -> bool:
        """Whether there are enough held-out images for the threshold of a coverage."""
        return (len(self.scores) + 1) * (1 - Fraction(str(coverage))) >= 1

    def sets_of(self, logits: Tensor, predicted: Tensor, coverage: float) -> Tensor:
        """Prediction sets of images, booleans of shape `[B, K]`.

        Args:
            logits: Logits of the classifier that the scores are of, shape `[B, K]`.
            predicted: Predicted classes `[B]`, which are always in their set.
            coverage: Probability with which a set contains the class of its image, such as 0.9.

        Raises:
            UserError: As in `threshold`.
        """
        probabilities = (logits.double() / self.temperature).softmax(dim=1)
        return prediction_sets(probabilities, self.threshold(coverage), predicted)


def prediction_sets(probabilities: Tensor, threshold: float, predicted: Tensor) -> Tensor:
    """Sets of classes, booleans of shape `[B, K]`.

    Args:
        probabilities: Probabilities at the temperature of the scores, shape `[B, K]`.
        threshold: Least probability of a class in a set.
        predicted: Predicted classes `[B]`, which are always in their set.
    """
    return (probabilities >= threshold).scatter(1, predicted.unsqueeze(1), torch.ones_like(predicted).bool()[:, None])
