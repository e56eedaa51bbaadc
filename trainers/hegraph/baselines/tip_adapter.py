"""Tip-Adapter, training-free.

Zhang, Fang, Zhang, Gao, Li, Dai, Qiao, Li: Tip-Adapter: Training-free Adaption of CLIP for Few-shot Classification.
ECCV 2022.

    z = tau * cos(f, t_k) + alpha * sum over the training images i of class k of exp(-beta * (1 - cos(f, F_i)))

The training images are a cache: `F_i`, the mean of an image's views, is a key and its label the value. Nothing is
trained. The start values are the paper's, alpha 1 and beta 5.5; as in the released code, both are then searched on
val, over that code's range of each data set.

Away from the original: the authors search on the whole val split (on ImageNet: on test), we on the few-shot val split.
That cannot tell 200 values of beta apart, so the grid is 20 by 20 where theirs is 200 by 20 (`SEARCH_STEP`). The start
values are a candidate too, and of equals the nearest to them is taken, where theirs is the smallest. Without val images
the start values stay.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from yacs.config import CfgNode

from ..features import FeatureBank
from ..method.heads import cache_affinities, cache_logits, text_logits
from ..utils.errors import UserError
from .base import Fitted
from .cache_search import search_cache
from .training import by_dataset, has_val

SEARCH = {
    "SEARCH": True,  # choose ALPHA and BETA on val, where there is val
    # Where the grid ends, rows [data set, [largest BETA, largest ALPHA]]
    "SEARCH_SCALE": [
        ["", [7.0, 3.0]],  # the authors' for ImageNet, OxfordPets and UCF101
        ["Caltech101", [12.0, 5.0]],
        ["DescribableTextures", [13.0, 13.0]],
        ["EuroSAT", [12.0, 10.0]],
        ["FGVCAircraft", [30.0, 30.0]],
        ["Food101", [10.0, 10.0]],
        ["OxfordFlowers", [50.0, 50.0]],
        ["StanfordCars", [20.0, 10.0]],
        ["SUN397", [12.0, 10.0]],
    ],
    "SEARCH_STEP": [20, 20],  # how many BETAs and ALPHAs the grid holds
}

DEFAULTS = {
    "ALPHA": 1.0,  # weight of the cache logits; the start value of a search
    "BETA": 5.5,  # sharpness of the affinities; the start value of a search
    **SEARCH,
}

CacheOf = Callable[[Tensor, float], Tensor]  # features [B, d] and beta -> cache logits [B, K]


def fit(bank: FeatureBank, options: CfgNode, seed: int) -> Fitted:
    """Trains nothing; `seed` changes nothing."""
    keys, num_classes = bank.cache_keys(), len(bank.text_positive)

    def cache_of(features: Tensor, beta: float) -> Tensor:
        return cache_logits(cache_affinities(features, keys, beta), bank.train_labels, num_classes)

    alpha, beta, selected = search(bank, options, cache_of, options.ALPHA, options.BETA)
    return Fitted(lambda features: combine(bank, features, cache_of, alpha, beta), selected=selected)


def combine(bank: FeatureBank, features: Tensor, cache_of: CacheOf, alpha: float, beta: float) -> Tensor:
    """Zero-shot logits plus `alpha` times the cache's, shape `[B, K]`."""
    return text_logits(features, bank.text_positive, bank.logit_scale) + alpha * cache_of(features, beta)


def search(
    bank: FeatureBank, options: CfgNode, cache_of: CacheOf, alpha: float, beta: float
) -> tuple[float, float, dict]:
    """Chooses alpha and beta on val, where there is val and `options.SEARCH`; else they stay.

    Args:
        bank: The task.
        options: Holds the keys of `SEARCH`.
        cache_of: The cache classifier.
        alpha, beta: The start values.

    Returns:
        alpha, beta, and `Fitted.selected`.

    Raises:
        UserError: If the grid's options are not as `SEARCH` describes them.
    """
    if not (options.SEARCH and has_val(bank)):
        return alpha, beta, {}
    scale = _two("a value of SEARCH_SCALE", by_dataset("SEARCH_SCALE", options.SEARCH_SCALE, bank))
    steps = _two("SEARCH_STEP", options.SEARCH_STEP)

    def text_of(features: Tensor) -> Tensor:
        return text_logits(features, bank.text_positive, bank.logit_scale)

    # The authors' order is beta, alpha
    best, selected = search_cache(bank, ("ALPHA", "BETA"), (alpha, beta), scale[::-1], steps[::-1], text_of, cache_of)
    return *best, selected


def _two(name: str, pair: list) -> list:
    """A pair of the grid's options, checked."""
    if not (isinstance(pair, (list, tuple)) and len(pair) == 2 and all(isinstance(x, (int, float)) for x in pair)):
        raise UserError(f"{name} must be two numbers, of BETA and of ALPHA, got {pair!r}")
    if name == "SEARCH_STEP" and not all(isinstance(x, int) and x >= 1 for x in pair):
        raise UserError(f"{name} must be two whole numbers from 1, got {pair!r}")
    return pair
