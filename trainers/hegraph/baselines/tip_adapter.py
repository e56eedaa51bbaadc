"""Tip-Adapter, training-free.

Zhang, Fang, Zhang, Gao, Li, Dai, Qiao, Li: Tip-Adapter: Training-free Adaption of CLIP for Few-shot Classification.
ECCV 2022.

    z = tau * cos(f, t_k) + alpha * sum over the training images i of class k of exp(-beta * (1 - cos(f, F_i)))

The training images are a cache: the key `F_i` is the mean of the unit-norm features of an image's views, the value is
its label. Nothing is trained. The start values are the paper's, alpha 1 and beta 5.5. As in the released code, both are
then searched on val, over that code's range for each data set.

Distance from the original: the authors search on the whole val split (on ImageNet: on test), here it is the few-shot
val split. That split is too small to tell 200 values of beta apart, so the grid is 20 by 20 where theirs is 200 by 20
(`SEARCH_STEP`). The start values are a candidate as well, and of equally good candidates the nearest to them is taken,
where theirs is the smallest. Without val images the start values stay.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor
from yacs.config import CfgNode

from ..features.bank import FeatureBank
from ..method.cache import cache_affinities, cache_logits, text_logits
from .base import Defaults, FittedMethod, Method, cosine_classifier
from .cache_search import search

# The options of the search, Tip-Adapter-F's too
SEARCH: Defaults = {
    "SEARCH": True,  # choose ALPHA and BETA on val, if there are val images
    # Where the grid ends; rows [data set, [largest BETA, largest ALPHA]]
    "SEARCH_SCALE": [
        ["", [7.0, 3.0]],  # the authors' values for ImageNet, OxfordPets and UCF101
        ["Caltech101", [12.0, 5.0]],
        ["DescribableTextures", [13.0, 13.0]],
        ["EuroSAT", [12.0, 10.0]],
        ["FGVCAircraft", [30.0, 30.0]],
        ["Food101", [10.0, 10.0]],
        ["OxfordFlowers", [50.0, 50.0]],
        ["StanfordCars", [20.0, 10.0]],
        ["SUN397", [12.0, 10.0]],
    ],
    "SEARCH_STEP": [20, 20],  # how many values of BETA and of ALPHA the grid holds
}
ORDER = ("BETA", "ALPHA")  # in SEARCH_SCALE and SEARCH_STEP, as in the authors' configurations


class TipAdapter(Method):
    """Adds the similarities to the training images to the zero-shot logits."""

    defaults: ClassVar[Defaults] = {
        "ALPHA": 1.0,  # weight of the cache logits; a search starts here
        "BETA": 5.5,  # sharpness of the affinities; a search starts here
        **SEARCH,
    }

    def fit(self, bank: FeatureBank, options: CfgNode, seed: int, backbone: object = None) -> FittedMethod:
        """Trains nothing; `seed` changes nothing."""
        keys, num_classes = bank.cache_keys(), len(bank.text_positive)

        def text_of(features: Tensor) -> Tensor:
            return text_logits(features, bank.text_positive, bank.logit_scale)

        def cache_of(features: Tensor, beta: float) -> Tensor:
            return cache_logits(cache_affinities(features, keys, beta), bank.train_labels, num_classes)

        start = {"ALPHA": options.ALPHA, "BETA": options.BETA}
        (alpha, beta), selected = search(bank, options, start, text_of, cache_of, ORDER)
        text = cosine_classifier(bank.text_positive, bank.logit_scale)
        return FittedMethod(
            lambda features: text_of(features) + alpha * cache_of(features, beta),
            selected=selected,
            classifier=replace(text, keys=F.normalize(keys, dim=-1), labels=bank.train_labels, alpha=alpha, beta=beta),
        )
