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

Where some classes have far fewer training images than others, they have a threshold of their own, since the classifier
prefers classes with many images. It comes from their held-out images. A single image cannot be held out, so `G` other
classes stand for classes with one. A class of its own counts as one more, whose images are missed (Dunn, Wasserman and
Ramdas: Distribution-Free Prediction Sets for Two-Layer Hierarchical Models. JASA 118, 2023), so that the share of
missed images becomes `a - (1 - a) / G`, or `2 a / 3` if that is more:

    threshold = the k-th smallest of the m scores,  k = floor((m + 1) max(a - (1 - a) / G, 2 a / 3))

If one of the two has too few images for its threshold, it takes the smallest score of both.

Shapes: n held-out images, B images of a batch, K classes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Annotated, Any

import torch
from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator
from torch import Tensor

from ...utils.errors import UserError
from ...utils.reading import Positive, Share, StrictModel, validate

Scores = Annotated[tuple[Annotated[float, Field(ge=0, le=1)], ...], Field(strict=False, min_length=1)]


class FewScores(StrictModel):
    """Probabilities of the true classes of held-out images of classes with few training images, or like them.

    Attributes:
        classes: Positions of the classes with few training images.
        scores: The probabilities in ascending order, each of the same weight.
        stand_ins: Number of other classes that the images are of, `G`; None if they are of the classes themselves.
    """

    classes: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(strict=False, min_length=1)]
    scores: Scores
    stand_ins: Annotated[int, Field(ge=1)] | None = None

    @model_validator(mode="after")
    def scores_ascend(self) -> FewScores:
        check_ascending(self.scores)
        return self

    def missed(self, share: Fraction) -> Fraction:
        """Share of the images of stand-ins to miss for a share `a` of the images of the classes."""
        if self.stand_ins is None:
            return share
        return max(share - (1 - share) / self.stand_ins, 2 * share / 3)


class SetScores(StrictModel):
    """Probabilities of the true classes of images that the classifier was not fitted to.

    Attributes:
        scores: The probabilities in ascending order, each of the same weight.
        temperature: Divisor of the logits that they were computed with.
        of_zero_shot: Whether the logits are those of zero-shot CLIP.
        few: Probabilities for classes with few training images, if others have many.
    """

    scores: Scores
    temperature: Positive
    of_zero_shot: bool = False
    few: FewScores | None = None

    @model_validator(mode="after")
    def scores_ascend(self) -> SetScores:
        check_ascending(self.scores)
        return self

    @model_serializer(mode="wrap")
    def without_nothing(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """The attributes as plain values, without `few` if it is None, as in earlier versions."""
        values = handler(self)
        if self.few is None:
            del values["few"]
        return values

    @classmethod
    def of(
        cls,
        logits: Tensor,
        labels: Tensor,
        temperature: float,
        of_zero_shot: bool = False,
        weights: Tensor | None = None,
        few: tuple[int, ...] = (),
        of_few: Tensor | None = None,
    ) -> SetScores:
        """Scores of held-out images with logits `[n, K]` and classes `[n]`.

        Args:
            logits, labels: Logits and classes of the images.
            temperature, of_zero_shot: See the attributes.
            weights: Weights of the images, float64 of shape `[n]`; None: equal ones.
            few: Positions of the classes with few training images, if others have many.
            of_few: Images of these classes, or of classes that stand for them, booleans of shape `[n]`, of which some
                are and some are not; None if `few` is empty.
        """
        probabilities = (logits.detach().double().cpu() / temperature).softmax(dim=1)
        own = probabilities.gather(1, labels.cpu().unsqueeze(1))[:, 0]
        mask = torch.ones(len(own), dtype=torch.bool) if of_few is None else ~of_few.cpu()
        shares = None if weights is None else weights.cpu()
        others = ascending(own[mask], None if shares is None else shares[mask])
        of_classes = None
        if of_few is not None:
            scores = ascending(own[~mask], None if shares is None else shares[~mask])
            others_of_few = set(labels.cpu()[~mask].tolist()) - set(few)
            stand_ins = len(others_of_few) or None
            of_classes = FewScores(classes=few, scores=scores, stand_ins=stand_ins)
        return cls(scores=others, temperature=temperature, of_zero_shot=of_zero_shot, few=of_classes)

    @property
    def number(self) -> int:
        """Number of scores, of images of all classes."""
        return len(self.scores) + (0 if self.few is None else len(self.few.scores))

    def threshold(self, coverage: float) -> float:
        """Least probability of a class in a set; with `few`, that of the other classes.

        Raises:
            UserError: If the coverage is no share, or needs more images.
        """
        validate(Share, coverage, "coverage", convert=True)
        missed = 1 - Fraction(str(coverage))  # exact, as the coverage is written
        return self._order_statistic(self.scores, missed, coverage)

    def thresholds(self, coverage: float, num_classes: int) -> Tensor:
        """Least probability of each class in a set, float64 of shape `[K]`; UserError as in `threshold`."""
        by_class = torch.full((num_classes,), self.threshold(coverage), dtype=torch.float64)
        if self.few is not None:
            missed = self.few.missed(1 - Fraction(str(coverage)))
            by_class[list(self.few.classes)] = self._order_statistic(self.few.scores, missed, coverage)
        return by_class

    def _order_statistic(self, scores: Sequence[float], missed: Fraction, coverage: float) -> float:
        """The k-th smallest of n scores, `k = floor((n + 1) missed)`; the smallest of all if n is too small for that.

        UserError if all scores together are too few for the coverage.
        """
        share = 1 - Fraction(str(coverage))
        if (self.number + 1) * share < 1:
            needed = math.ceil((1 - share) / share)
            images = f"needs at least {needed} held-out images, and the model has {self.number}"
            raise UserError(f"coverage {coverage:g} {images}; lower the coverage, or train with more images")
        rank = math.floor((len(scores) + 1) * missed)  # k
        if rank >= 1:
            return scores[rank - 1]
        return self.scores[0] if self.few is None else min(self.scores[0], self.few.scores[0])

    def supports(self, coverage: float) -> bool:
        """Whether there are enough held-out images for the threshold of a coverage."""
        try:
            self.threshold(coverage)
        except UserError:
            return False
        return True

    def of_classes(self, positions: Sequence[int]) -> SetScores:
        """Scores for classes that are reordered or selected by their positions."""
        if self.few is None:
            return self
        known = set(self.few.classes)
        moved = tuple(new for new, old in enumerate(positions) if old in known)
        few = self.few.model_copy(update={"classes": moved}) if moved else None
        return self.model_copy(update={"few": few})

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
        least = self.thresholds(coverage, logits.shape[1]).to(probabilities.device)
        return prediction_sets(probabilities, least, predicted)


def check_ascending(scores: Sequence[float]) -> None:
    """Raise ValueError unless scores ascend."""
    if any(after < before for before, after in itertools.pairwise(scores)):
        raise ValueError("scores must be in ascending order")


def ascending(scores: Tensor, weights: Tensor | None) -> tuple[float, ...]:
    """Probabilities `[n]` in ascending order; with weights, as in `evenly_weighted`."""
    evenly = scores.sort().values if weights is None else evenly_weighted(scores, weights)
    return tuple(evenly.clamp(0, 1).tolist())


def effective_number(weights: Tensor) -> int:
    """Number of images that say as much as images with weights `[n]`: `(sum w)^2 / sum w^2`, rounded (Kish, 1965)."""
    return max(1, round(float(weights.sum() ** 2 / weights.square().sum())))


def evenly_weighted(values: Tensor, weights: Tensor) -> Tensor:
    """Ascending values of equal weight that are distributed like values `[n]` with weights `[n]`.

    There are `effective_number` of them: the quantiles in the middle of as many equal shares. With equal weights, they
    are the values themselves.
    """
    ordered, order = values.sort()
    upper = weights[order].cumsum(0) / weights.sum()
    number = effective_number(weights)
    middle = (torch.arange(number, dtype=upper.dtype) + 0.5) / number
    return ordered[torch.searchsorted(upper, middle).clamp_max(len(values) - 1)]


def prediction_sets(probabilities: Tensor, threshold: float | Tensor, predicted: Tensor) -> Tensor:
    """Sets of classes, booleans of shape `[B, K]`.

    Args:
        probabilities: Probabilities at the temperature of the scores, shape `[B, K]`.
        threshold: Least probability of a class in a set, or of each class, shape `[K]`.
        predicted: Predicted classes `[B]`, which are always in their set.
    """
    return (probabilities >= threshold).scatter(1, predicted.unsqueeze(1), torch.ones_like(predicted).bool()[:, None])
