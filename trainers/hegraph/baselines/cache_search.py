"""The search that the cache methods (Tip-Adapter, Tip-Adapter-F, APE, APE-T) share.

Their prediction is `text + alpha * cache(beta)` or, in APE, `text + alpha * cache(beta, gamma)`. The numbers alpha,
beta and gamma are chosen on the few-shot val split, among a grid and the values the search starts at.

Shapes: B images of a batch, K classes, d feature width, L val images.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from yacs.config import CfgNode

from ..features.bank import FeatureBank
from ..training.choice import choose, has_val, val_images
from ..training.evaluation import accuracy
from ..utils.errors import UserError
from .training import by_dataset

# Where the grids of Tip-Adapter's and APE's authors begin
SMALLEST = {"ALPHA": 0.1, "BETA": 0.1, "GAMMA": 0.0}

Values = tuple[float, ...]  # alpha, beta and, in APE, gamma


def search(
    bank: FeatureBank,
    options: CfgNode,
    start: dict[str, float],
    text_of: Callable[[Tensor], Tensor],
    cache_of: Callable[..., Tensor],
    order: Sequence[str] | None = None,
) -> tuple[Values, dict]:
    """Chooses the numbers of a cache method on val. Without val images, or without SEARCH, the start values stay.

    Args:
        bank: The task.
        options: Hold SEARCH (whether to search at all), SEARCH_SCALE (rows [data set, [where the grid ends, for each
            number]]) and SEARCH_STEP (how many values of each number the grid holds).
        start: ALPHA, BETA and perhaps GAMMA, in this order, with the values that the search starts at.
        text_of: Maps image features `[B, d]` to the text's logits `[B, K]`.
        cache_of: Maps image features and all numbers but alpha to the cache's logits `[B, K]`, which alpha weighs.
        order: The order of the numbers in SEARCH_SCALE and SEARCH_STEP, if it is another than that of `start`.

    Returns:
        The numbers, in the order of `start`, and `FittedMethod.selected`.

    Raises:
        UserError: If SEARCH_SCALE or SEARCH_STEP have another form.
    """
    if not (options.SEARCH and has_val(bank)):
        return tuple(start.values()), {}
    order = order or list(start)
    ends = numbers("a value of SEARCH_SCALE", by_dataset("SEARCH_SCALE", options.SEARCH_SCALE, bank), order)
    counts = numbers("SEARCH_STEP", options.SEARCH_STEP, order)
    if not all(isinstance(count, int) and count >= 1 for count in counts.values()):
        raise UserError(f"SEARCH_STEP must be whole numbers from 1, got {list(counts.values())}")
    grid = {name: _spread(SMALLEST[name], ends[name], counts[name]) for name in start}
    values = tuple(start.values())
    accuracies = _accuracies(bank, values, list(grid.values()), text_of, cache_of)

    def distance(candidate: Values) -> float:
        return sum(abs(c - s) / ends[name] for c, s, name in zip(candidate, values, start))

    # Of candidates with the same accuracy, the nearest to the start values is taken
    best, entry = choose(sorted(accuracies, key=distance), accuracies.__getitem__)
    return best, {", ".join(start): entry}


def numbers(option: str, values: Sequence, names: Sequence[str]) -> dict:
    """Checks that an option holds one number for each of `names`, and returns them by name.

    Raises:
        UserError: If it does not.
    """
    if not (
        isinstance(values, (list, tuple))
        and len(values) == len(names)
        and all(isinstance(value, (int, float)) for value in values)
    ):
        raise UserError(f"{option} must be {len(names)} numbers, got {values!r}; they are for {', '.join(names)}")
    return dict(zip(names, values))


def _spread(low: float, high: float, count: int) -> list[float]:
    """`count` values from `low` on, at equal distances; `high` would be the next one."""
    return [round(low + i * (high - low) / count, 4) for i in range(count)]


@torch.no_grad()
def _accuracies(
    bank: FeatureBank,
    start: Values,
    grid: list[list[float]],
    text_of: Callable[[Tensor], Tensor],
    cache_of: Callable[..., Tensor],
) -> dict[Values, float]:
    """The accuracy on val of the start values and of every point of the grid, in percent.

    At the start values of the numbers other than alpha, the grid's alphas are tried as well: the cache is there anyway.
    """
    features, labels = val_images(bank)
    text, accuracies = text_of(features), {}
    alphas, *axes = grid
    for rest in [start[1:], *itertools.product(*axes)]:
        cache = cache_of(features, *rest)
        for alpha in [start[0], *alphas] if rest == start[1:] else alphas:
            accuracies[(alpha, *rest)] = accuracy(text + alpha * cache, labels)
    return accuracies
