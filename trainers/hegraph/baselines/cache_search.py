"""The search that the cache methods share: the weights of text and cache that are best on val."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..features import FeatureBank
from ..training.evaluation import accuracy
from .training import choose

SMALLEST = (0.1, 0.1, 0.0)  # where the grid of Tip-Adapter's and APE's authors begins: alpha, beta, gamma

Values = tuple[float, ...]  # alpha, beta and, where there is one, gamma


@torch.no_grad()
def search_cache(
    bank: FeatureBank,
    names: Sequence[str],
    start: Values,
    scale: Sequence[float],
    steps: Sequence[int],
    text_of: Callable[[Tensor], Tensor],
    cache_of: Callable[..., Tensor],
) -> tuple[Values, dict]:
    """Chooses among a grid and the start values on val; of equals, the nearest to the start.

    Args:
        bank: The task, with val images.
        names: Of the values, for the record.
        start: The start values.
        scale: Where the grid ends, of each value; the end is not in it.
        steps: How many of each value the grid holds.
        text_of: Features to the text's logits.
        cache_of: Features and all values but alpha to the cache's logits, which alpha weighs.

    Returns:
        The values, and `Fitted.selected`.
    """
    alphas, *axes = (
        [round(low + i * (high - low) / n, 4) for i in range(n)] for low, high, n in zip(SMALLEST, scale, steps)
    )
    text, accuracies = text_of(bank.val_features), {}
    for rest in [start[1:], *itertools.product(*axes)]:
        cache = cache_of(bank.val_features, *rest)
        for alpha in [start[0], *alphas] if rest == start[1:] else alphas:
            accuracies[(alpha, *rest)] = accuracy(text + alpha * cache, bank.val_labels)

    def distance(values: Values) -> float:
        return sum(abs(v - s) / high for v, s, high in zip(values, start, scale))

    best, entry = choose(sorted(accuracies, key=distance), accuracies.__getitem__)
    return best, {", ".join(names): entry}
