"""What the cache methods share: Tip-Adapter, Tip-Adapter-F, APE and APE-T.

They predict `text + alpha * cache(beta)` or, in APE, `text + alpha * cache(beta, gamma)`. Alpha, beta and gamma are
chosen on val among a grid and the values that the search starts at.

Shapes: B images of a batch, K classes, d feature width.
"""

from __future__ import annotations

import itertools
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..features.bank import FeatureBank
from ..method.cache import FoldedClassifier
from ..training.batches import Batch
from ..training.choice import accuracy, choose, has_val, val_images
from ..training.schedule import cosine
from .base import FittedMethod, Method, Options, named_numbers, value_for_task
from .trained import batches, train

# Where the grids of Tip-Adapter's and APE's authors begin
SMALLEST = {"ALPHA": 0.1, "BETA": 0.1, "GAMMA": 0.0}

Values = tuple[float, ...]  # alpha, beta and, in APE, gamma


@dataclass(frozen=True)
class Cache:
    """The two parts of a prediction.

    Attributes:
        text: Maps image features `[B, d]` to the text's logits `[B, K]`.
        cache: Maps image features and all numbers but alpha to the cache's logits `[B, K]`, which alpha weighs.
        parameters: What is trained.
        folded: Gives the classifier, whose alpha and beta are still open; None if the method has another form.
    """

    text: Callable[[Tensor], Tensor]
    cache: Callable[..., Tensor]
    parameters: Sequence[Tensor] = ()
    folded: Callable[[], FoldedClassifier] | None = None

    def logits(self, features: Tensor, alpha: float, *others: float) -> Tensor:
        """`text + alpha * cache`, shape `[B, K]`."""
        return self.text(features) + alpha * self.cache(features, *others)


class CacheMethod(Method):
    """A method that adds a cache to the text's logits. What it trains is trained with cross-entropy, AdamW and a cosine
    by step, at the values of ALPHA and BETA where the search starts.

    `searched` names the numbers, alpha first; `order` is theirs in SEARCH_SCALE and SEARCH_STEP, as the authors do it.
    """

    searched: ClassVar[Sequence[str]] = ("ALPHA", "BETA")
    order: ClassVar[Sequence[str]] = ("ALPHA", "BETA")

    @abstractmethod
    def start(self, bank: FeatureBank, options: Options) -> Cache:
        """The cache as it is before the first step; arguments as of `fit`."""

    def fit(self, bank: FeatureBank, options: Options, seed: int, backbone: object = None) -> FittedMethod:
        """Trains the cache's parameters, if it has any; `seed` then orders the batches and draws the views."""
        start = {name: value_for_task(options, name, bank) for name in self.searched}
        cache, epochs, steps = self.start(bank, options), 0, 0
        if cache.parameters:
            epochs = value_for_task(options, "EPOCHS", bank)
            steps = self._train(cache, tuple(start.values()), epochs, bank, options, seed)
        values, selected = search(bank, options, start, cache, self.order)
        folded = None if cache.folded is None else replace(cache.folded(), alpha=values[0], beta=values[1])
        return FittedMethod(
            lambda features: cache.logits(features, *values),
            num_parameters=sum(parameter.numel() for parameter in cache.parameters),
            epochs=epochs,
            steps=steps,
            selected=selected,
            classifier=folded,
        )

    def _train(self, cache: Cache, values: Values, epochs: int, bank: FeatureBank, options: Options, seed: int) -> int:
        """Trains the parameters, and returns the number of steps."""
        rate, eps = value_for_task(options, "LR", bank), value_for_task(options, "EPS", bank)

        def loss(batch: Batch) -> Tensor:
            return F.cross_entropy(cache.logits(batch.features, *values), batch.labels)

        optimizer = torch.optim.AdamW(cache.parameters, lr=rate, eps=eps, weight_decay=options.WEIGHT_DECAY)
        data = batches(bank, options.BATCH_SIZE, seed)
        return train(optimizer, loss, data, epochs, cosine(epochs * data.steps_per_epoch))


def search(
    bank: FeatureBank, options: Options, start: dict[str, float], cache: Cache, order: Sequence[str]
) -> tuple[Values, dict]:
    """Chooses the numbers of a cache method on val. Without val images, or without SEARCH, the start values stay.

    The grid ends at SEARCH_SCALE and holds SEARCH_STEP values, both in the given order. `start` has the values that the
    search starts at, ALPHA first. Returns the numbers, in the order of `start`, and `FittedMethod.selected`.
    """
    values = tuple(start.values())
    if not (options.SEARCH and has_val(bank)):
        return values, {}
    ends = named_numbers("a value of SEARCH_SCALE", value_for_task(options, "SEARCH_SCALE", bank), order)
    counts = named_numbers("SEARCH_STEP", options.SEARCH_STEP, order, counts=True)
    grid = [  # which stops a step before its end
        [round(SMALLEST[name] + i * (ends[name] - SMALLEST[name]) / counts[name], 4) for i in range(counts[name])]
        for name in start
    ]
    accuracies = _accuracies(bank, values, grid, cache)

    def distance(candidate: Values) -> float:
        return sum(abs(c - s) / ends[name] for c, s, name in zip(candidate, values, start))

    # Of candidates with the same accuracy, the nearest to the start values is taken
    best, entry = choose(sorted(accuracies, key=distance), accuracies.__getitem__)
    return best, {", ".join(start): entry}


@torch.no_grad()
def _accuracies(bank: FeatureBank, start: Values, grid: list[list[float]], cache: Cache) -> dict[Values, float]:
    """The accuracy in percent on val of all points of the grid, and of the start's beta (and gamma) with all alphas."""
    features, labels = val_images(bank)
    text, accuracies = cache.text(features), {}
    alphas, *axes = grid
    for rest in [start[1:], *itertools.product(*axes)]:
        of_images = cache.cache(features, *rest)
        for alpha in [start[0], *alphas] if rest == start[1:] else alphas:
            accuracies[(alpha, *rest)] = accuracy(text + alpha * of_images, labels)
    return accuracies
