"""APE, training-free: the cache on the channels that tell classes apart.

Zhu, Zhang, He, Zhou, Wang, Zhao, Gao: Not All Features Matter: Enhancing Few-shot CLIP with Adaptive Prior Refinement.
ICCV 2023.

    z = tau * cos(f, t_k) + alpha * sum over the training images i of class k of
                                    exp(-beta * (1 - cos(f', F'_i))) * exp(gamma * KL_i)
    KL_i = log2(1 / p_i),  p_i the softmax of cos(F'_i, t'_k) over k, at the image's class

`'` keeps the channels with the largest `-w_1 * S + w_2 * V`: S is the mean product of two features of different classes
in the channel, over the text feature and the images of each; V the variance over classes of the text feature. As in the
released code: the start values, the weights w and the number of channels of each data set; alpha, beta and gamma are
then searched on val, over that code's range of each data set.

Away from the original: the authors search on the whole val split, we on the few-shot one, which cannot tell 200 values
of beta apart: the grid is 20 by 20 by 5 where theirs is 200 by 20 by 20 (`SEARCH_STEP`). The start values are a
candidate too, and of equals the nearest to them is taken. Without val images they stay. The authors' numbers of
channels are for the 1024 of RN50; other widths keep the same share. Classes may have unequal numbers of images.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from yacs.config import CfgNode

from ..features import FeatureBank
from ..method.heads import cache_affinities, cache_logits, text_logits
from ..utils.errors import UserError
from .base import Fitted
from .cache_search import Values, search_cache
from .training import by_dataset, has_val

DEFAULTS = {
    # Rows [data set, value] as the authors have them; "" theirs for ImageNet, ALPHA 1 apart
    "ALPHA": [  # weight of the cache logits; the start value of a search
        ["", 1.0],
        ["DescribableTextures", 3.0],
        ["FGVCAircraft", 5.0],
        ["Food101", 0.8],
        ["ImageNet", 2.0],
        ["OxfordFlowers", 3.0],
        ["OxfordPets", 2.0],
        ["UCF101", 2.0],
    ],
    "BETA": 1.0,  # sharpness of the affinities; the start value of a search
    "GAMMA": 0.1,  # weight of the KL divergence; the start value of a search
    "CHANNELS": [  # share of the channels that is kept
        ["", 500 / 1024],
        ["Caltech101", 800 / 1024],
        ["DescribableTextures", 400 / 1024],
        ["EuroSAT", 700 / 1024],
        ["FGVCAircraft", 800 / 1024],
        ["Food101", 700 / 1024],
        ["OxfordFlowers", 700 / 1024],
        ["OxfordPets", 800 / 1024],
        ["SUN397", 800 / 1024],
        ["UCF101", 700 / 1024],
    ],
    "WEIGHTS": [  # [w_1, w_2], of the similarity and of the variance
        ["", [0.7, 0.3]],
        ["Caltech101", [0.5, 0.5]],
        ["DescribableTextures", [0.5, 0.5]],
        ["EuroSAT", [0.9, 0.1]],
        ["FGVCAircraft", [0.1, 0.9]],
        ["Food101", [0.3, 0.7]],
        ["OxfordFlowers", [0.4, 0.6]],
        ["StanfordCars", [0.6, 0.4]],
        ["UCF101", [0.3, 0.7]],
    ],
    "SEARCH": True,  # choose ALPHA, BETA and GAMMA on val, where there is val
    "SEARCH_SCALE": [  # where the grid ends, rows [data set, [largest ALPHA, largest BETA, largest GAMMA]]
        ["", [7.0, 7.0, 1.0]],
        ["EuroSAT", [5.0, 30.0, 1.5]],
        ["FGVCAircraft", [10.0, 20.0, 1.0]],
        ["ImageNet", [7.0, 7.0, 0.5]],
        ["StanfordCars", [7.0, 10.0, 1.0]],
        ["SUN397", [7.0, 10.0, 1.0]],
        ["UCF101", [7.0, 10.0, 1.5]],
    ],
    "SEARCH_STEP": [20, 20, 5],  # how many ALPHAs, BETAs and GAMMAs the grid holds
}


def fit(bank: FeatureBank, options: CfgNode, seed: int) -> Fitted:
    """Trains nothing; `seed` changes nothing."""
    kept = refine(bank, options, images=True)
    keys, labels = F.normalize(bank.cache_keys()[:, kept], dim=-1), bank.train_labels
    text = bank.text_positive[:, kept]
    surprise = -text_logits(keys, text, 1.0).log_softmax(dim=1).gather(1, labels[:, None])[:, 0] / math.log(2)

    def text_of(features: Tensor) -> Tensor:
        return text_logits(features, bank.text_positive, bank.logit_scale)

    def cache_of(features: Tensor, beta: float, gamma: float) -> Tensor:
        affinities = cache_affinities(F.normalize(features[:, kept], dim=-1), keys, beta)
        return cache_logits(affinities * (gamma * surprise).exp(), labels, len(text))

    start = (by_dataset("ALPHA", options.ALPHA, bank), options.BETA, options.GAMMA)
    (alpha, *rest), selected = search(bank, options, ("ALPHA", "BETA", "GAMMA"), start, text_of, cache_of)
    return Fitted(lambda features: text_of(features) + alpha * cache_of(features, *rest), selected=selected)


def refine(bank: FeatureBank, options: CfgNode, images: bool) -> Tensor:
    """The channels to keep, best first.

    Args:
        bank: The task.
        options: Holds CHANNELS and WEIGHTS.
        images: Whether the training images count in the similarity, or the text features alone.

    Raises:
        UserError: If CHANNELS or WEIGHTS are not what DEFAULTS describes.
    """
    share, weights = (by_dataset(key, options[key], bank) for key in ("CHANNELS", "WEIGHTS"))
    if not 0 < share <= 1:
        raise UserError(f"a value of CHANNELS must be a share of the channels, above 0 and at most 1, got {share}")
    numbers("a value of WEIGHTS", weights, 2)
    text = bank.text_positive
    sums, counts = text.clone(), torch.ones_like(text[:, 0])
    if images:
        sums = sums.index_add(0, bank.train_labels, bank.cache_keys())
        counts = counts + bank.train_labels.bincount(minlength=len(text))
    pairs = counts.sum() ** 2 - counts.square().sum()
    similarity = (sums.sum(dim=0).square() - sums.square().sum(dim=0)) / pairs  # over pairs of different classes
    criterion = -weights[0] * similarity + weights[1] * text.var(dim=0)
    return criterion.topk(max(1, round(share * len(criterion)))).indices


def search(
    bank: FeatureBank,
    options: CfgNode,
    names: tuple[str, ...],
    start: Values,
    text_of: Callable[[Tensor], Tensor],
    cache_of: Callable[..., Tensor],
) -> tuple[Values, dict]:
    """`search_cache` over the grid of SEARCH_SCALE and SEARCH_STEP, if there is val and `options.SEARCH`.

    Raises:
        UserError: If SEARCH_SCALE or SEARCH_STEP are not what DEFAULTS describes.
    """
    if not (options.SEARCH and has_val(bank)):
        return start, {}
    scale = numbers("a value of SEARCH_SCALE", by_dataset("SEARCH_SCALE", options.SEARCH_SCALE, bank), len(names))
    steps = numbers("SEARCH_STEP", options.SEARCH_STEP, len(names))
    if not all(isinstance(n, int) and n >= 1 for n in steps):
        raise UserError(f"SEARCH_STEP must be whole numbers from 1, got {steps}")
    return search_cache(bank, names, start, scale, steps, text_of, cache_of)


def numbers(name: str, values: list, count: int) -> list:
    """An option's numbers, checked."""
    if not (
        isinstance(values, (list, tuple)) and len(values) == count and all(isinstance(x, (int, float)) for x in values)
    ):
        raise UserError(f"{name} must be {count} numbers, got {values!r}")
    return values
