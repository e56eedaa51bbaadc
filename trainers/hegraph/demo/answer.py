"""What a model says about one image, and why: as plain values, before they become a page.

Shapes: K classes, N cached images, d feature width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..method.cache import affinities
from ..models.saved import SavedModel

LISTED = 5  # classes, and neighbours


@dataclass(frozen=True)
class Guess:
    """A class and its probability."""

    name: str
    probability: float


@dataclass(frozen=True)
class Evidence:
    """The logit of a class, and what it is made of.

    Attributes:
        name: The class.
        text: From the text classifier.
        cache: From the cache, weighted: `alpha z_v`; None without a cache classifier.
    """

    name: str
    text: float
    cache: float | None

    @property
    def total(self) -> float:
        """The logit."""
        return self.text + (self.cache or 0.0)


@dataclass(frozen=True)
class Neighbour:
    """A cached training image.

    Attributes:
        position: In the cache.
        contribution: What it adds to the logit of its class: `alpha v_k exp(-beta (1 - f . F_k))`.
    """

    position: int
    contribution: float


@dataclass(frozen=True)
class Answer:
    """What a model says about one image.

    Attributes:
        adapted: The likeliest classes of the model, likeliest first.
        zero_shot: Those of zero-shot CLIP with the same prompts.
        winner: The evidence for the likeliest class.
        runner_up: The evidence for the second; None where there is one class only.
        text_choice: The class that the text classifier alone would choose.
        cache_choice: The class that the cache alone would choose; None without a cache classifier.
        neighbours: The training images of the winning class that are nearest to the image, as the cache measures it:
            those that contribute most, in that order. () without a cache.
        share_below: The share of images of known classes that score lower, from 0 to 1, by the score that tells images
            of none of the classes; None where the model does not know it.
    """

    adapted: tuple[Guess, ...]
    zero_shot: tuple[Guess, ...]
    winner: Evidence
    runner_up: Evidence | None
    text_choice: str
    cache_choice: str | None
    neighbours: tuple[Neighbour, ...]
    share_below: float | None


def answer(model: SavedModel, feature: Tensor) -> Answer:
    """What a model says about an image.

    Args:
        model: The model.
        feature: The unit-norm feature of the image, shape `[1, d]`.
    """
    classifier, names = model.classifier, model.classnames
    parts = classifier.parts(feature)
    text = parts.text[0]
    cache = None if parts.visual is None else classifier.alpha * parts.visual[0]
    logits = classifier.combine(parts)[0]
    order = logits.argsort(descending=True).tolist()

    def evidence(label: int) -> Evidence:
        return Evidence(names[label], text[label].item(), None if cache is None else cache[label].item())

    return Answer(
        adapted=_guesses(model, model.calibrate(logits)),
        zero_shot=_guesses(model, model.zero_shot_logits(feature)[0].softmax(dim=0)),
        winner=evidence(order[0]),
        runner_up=evidence(order[1]) if len(order) > 1 else None,
        text_choice=names[int(text.argmax())],
        cache_choice=None if cache is None else names[int(cache.argmax())],
        neighbours=_neighbours(model, feature[0], order[0]),
        share_below=model.share_below(logits),
    )


def _guesses(model: SavedModel, probabilities: Tensor) -> tuple[Guess, ...]:
    values, labels = probabilities.topk(min(LISTED, len(probabilities)))
    return tuple(Guess(model.classnames[label], value) for value, label in zip(values.tolist(), labels.tolist()))


def _neighbours(model: SavedModel, feature: Tensor, label: int) -> tuple[Neighbour, ...]:
    """The nearest cached images of a class."""
    classifier = model.classifier
    if classifier.keys is None or classifier.labels is None:
        return ()
    positions = torch.nonzero(classifier.labels == label)[:, 0]
    weighted = affinities(classifier.keys[positions] @ feature, classifier.beta)
    if classifier.key_weights is not None:
        weighted = weighted * classifier.key_weights[positions]
    values, nearest = (classifier.alpha * weighted).topk(min(LISTED, len(positions)))
    return tuple(Neighbour(*pair) for pair in zip(positions[nearest].tolist(), values.tolist()))
