"""APE, training-free: the cache on the channels that tell classes apart.

Zhu, Zhang, He, Zhou, Wang, Zhao, Gao: Not All Features Matter: Enhancing Few-shot CLIP with Adaptive Prior Refinement.
ICCV 2023.

    z = tau * cos(f, t_k) + alpha * sum over the training images i of class k of
                                    exp(-beta * (1 - cos(f', F'_i))) * exp(gamma * KL_i)
    KL_i = log2(1 / p_i),  p_i the softmax of cos(F'_i, t'_k) over k, at the image's class

A prime marks a feature of which only some channels are kept, those with the largest `-w_1 * S + w_2 * V`. S is the mean
product, in the channel, of two features of different classes; it is taken over the text feature and the images of each
class. V is the variance of the text feature over classes. As in the released code: the start values, the weights w and
the number of channels for each data set. Alpha, beta and gamma are then searched on val, over that code's range for
each data set.

Distance from the original: the authors search on the whole val split (on ImageNet: on test), here it is the few-shot
one. That split is too small to tell 200 values of beta apart, so the grid of alpha, beta and gamma is 20 by 20 by 5
where theirs is 20 by 200 by 20, on ImageNet by 5 (`SEARCH_STEP`). The start values are a candidate as well, and of
equally good candidates the nearest to them is taken. Without val images the start values stay. The authors' numbers of
channels are for the 1024 channels of RN50; at other widths the same share is kept. Classes may have unequal numbers of
images.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from yacs.config import CfgNode

from ..features.bank import FeatureBank
from ..method.cache import cache_affinities, cache_logits, text_logits
from ..utils.errors import UserError
from .base import Defaults, FittedMethod, Method
from .cache_search import numbers, search
from .training import by_dataset


class APE(Method):
    """Adds the similarities to the training images, in the most telling channels, to the zero-shot logits."""

    defaults: ClassVar[Defaults] = {
        # Rows [data set, value], the authors'. The rows of "" are theirs for ImageNet, except in ALPHA and SEARCH_SCALE
        "ALPHA": [  # weight of the cache logits; a search starts here
            ["", 1.0],
            ["DescribableTextures", 3.0],
            ["FGVCAircraft", 5.0],
            ["Food101", 0.8],
            ["ImageNet", 2.0],
            ["OxfordFlowers", 3.0],
            ["OxfordPets", 2.0],
            ["UCF101", 2.0],
        ],
        "BETA": 1.0,  # sharpness of the affinities; a search starts here
        "GAMMA": 0.1,  # weight of the KL divergence; a search starts here
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
        "WEIGHTS": [  # [w_1, w_2]: of the similarity and of the variance
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
        "SEARCH": True,  # choose ALPHA, BETA and GAMMA on val, if there are val images
        "SEARCH_SCALE": [  # where the grid ends, rows [data set, [largest ALPHA, largest BETA, largest GAMMA]]
            ["", [7.0, 7.0, 1.0]],
            ["EuroSAT", [5.0, 30.0, 1.5]],
            ["FGVCAircraft", [10.0, 20.0, 1.0]],
            ["ImageNet", [7.0, 7.0, 0.5]],
            ["StanfordCars", [7.0, 10.0, 1.0]],
            ["SUN397", [7.0, 10.0, 1.0]],
            ["UCF101", [7.0, 10.0, 1.5]],
        ],
        "SEARCH_STEP": [20, 20, 5],  # how many values of ALPHA, BETA and GAMMA the grid holds
    }
    not_saved: ClassVar[str] = "it normalises an image anew on some of its channels to compare it with the cache"

    def fit(self, bank: FeatureBank, options: CfgNode, seed: int, backbone: object = None) -> FittedMethod:
        """Trains nothing; `seed` changes nothing."""
        kept = refine(bank, options, images=True)
        keys, labels = F.normalize(bank.cache_keys()[:, kept], dim=-1), bank.train_labels
        text = bank.text_positive[:, kept]
        log_p = text_logits(keys, text, 1.0).log_softmax(dim=1).gather(1, labels[:, None])[:, 0]
        divergence = -log_p / math.log(2)  # KL_i, shape [N]

        def text_of(features: Tensor) -> Tensor:
            return text_logits(features, bank.text_positive, bank.logit_scale)

        def cache_of(features: Tensor, beta: float, gamma: float) -> Tensor:
            affinities = cache_affinities(F.normalize(features[:, kept], dim=-1), keys, beta)
            return cache_logits(affinities * (gamma * divergence).exp(), labels, len(text))

        start = {
            "ALPHA": by_dataset("ALPHA", options.ALPHA, bank),
            "BETA": options.BETA,
            "GAMMA": options.GAMMA,
        }
        (alpha, beta, gamma), selected = search(bank, options, start, text_of, cache_of)
        return FittedMethod(
            lambda features: text_of(features) + alpha * cache_of(features, beta, gamma), selected=selected
        )


def refine(bank: FeatureBank, options: CfgNode, images: bool) -> Tensor:
    """Chooses the channels to keep.

    Args:
        bank: The task.
        options: Hold CHANNELS (rows [data set, share of the channels that is kept]) and WEIGHTS (rows
            [data set, [w_1, w_2]]).
        images: Whether the similarity is taken over the text features and the training images, or over the text
            features alone.

    Returns:
        The positions of the channels in a feature, the best channel first.

    Raises:
        UserError: If CHANNELS or WEIGHTS have another form.
    """
    share, pair = (by_dataset(key, options[key], bank) for key in ("CHANNELS", "WEIGHTS"))
    if not 0 < share <= 1:
        raise UserError(f"a value of CHANNELS must be a share of the channels, above 0 and at most 1, got {share}")
    weights = numbers("a value of WEIGHTS", pair, ("similarity", "variance"))
    text = bank.text_positive
    sums, counts = text.clone(), torch.ones_like(text[:, 0])
    if images:
        sums = sums.index_add(0, bank.train_labels, bank.cache_keys())
        counts = counts + bank.train_labels.bincount(minlength=len(text))
    # The sum over all pairs less that over pairs within a class is the sum over pairs of different classes
    pairs = counts.sum() ** 2 - counts.square().sum()
    similarity = (sums.sum(dim=0).square() - sums.square().sum(dim=0)) / pairs
    criterion = -weights["similarity"] * similarity + weights["variance"] * text.var(dim=0)
    return criterion.topk(max(1, round(share * len(criterion)))).indices
