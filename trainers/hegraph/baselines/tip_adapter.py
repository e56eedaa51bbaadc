"""Tip-Adapter, training-free, and Tip-Adapter-F, with trained keys.

Zhang, Fang, Zhang, Gao, Li, Dai, Qiao, Li: Tip-Adapter: Training-free Adaption of CLIP for Few-shot Classification.
ECCV 2022.

    z = tau * cos(f, t_k) + alpha * sum over the training images i of class k of exp(-beta * (1 - f . F_i))

The training images are a cache: the key `F_i` is the mean of the unit-norm features of an image's views, scaled to norm
1, the value is its label. Tip-Adapter-F trains the keys with cross-entropy; they are not normalised again, so `f . F_i`
is no cosine after the first step. The start values are the paper's, in Tip-Adapter-F the released code's for each data
set; alpha and beta are then searched on val, over that code's range.

Distance from the original: the few-shot val split is too small to tell 200 values of beta apart, so the grid is 20 by
20 where theirs is 200 by 20. The start values, with which the keys were trained, are a candidate as well, and of
equally good candidates the nearest to them is taken, where theirs is the smallest. Without val images they stay. In
Tip-Adapter-F the authors keep the epoch that is best on test, and report the better on test of before and after the
search; here the last epoch counts, after the search.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from ..features.bank import FeatureBank
from ..method.cache import FoldedClassifier, affinities, cache_logits, text_logits
from .base import Defaults, Options, by_dataset, cosine_classifier
from .cached import Cache, CacheMethod

# The options of the search, those of both methods
SEARCH: Defaults = {
    "SEARCH": True,  # choose ALPHA and BETA on val, if there are val images
    # Where the grid ends: [largest BETA, largest ALPHA]; for all others theirs for ImageNet, OxfordPets and UCF101
    "SEARCH_SCALE": by_dataset(
        [7.0, 3.0], Caltech101=[12.0, 5.0], DescribableTextures=[13.0, 13.0], EuroSAT=[12.0, 10.0],
        FGVCAircraft=[30.0, 30.0], Food101=[10.0, 10.0], OxfordFlowers=[50.0, 50.0], StanfordCars=[20.0, 10.0],
        SUN397=[12.0, 10.0],
    ),
    "SEARCH_STEP": [20, 20],  # how many values of BETA and of ALPHA the grid holds
}  # fmt: skip


class TipAdapter(CacheMethod):
    """Adds the similarities to the training images to the zero-shot logits."""

    defaults: ClassVar[Defaults] = {
        "ALPHA": 1.0,  # weight of the cache logits; a search starts here
        "BETA": 5.5,  # sharpness of the affinities; a search starts here
        **SEARCH,
    }
    order = ("BETA", "ALPHA")

    def start(self, bank: FeatureBank, options: Options) -> Cache:
        """N * d keys, which are not trained."""
        return cache_beside_text(bank, F.normalize(bank.cache_keys(), dim=-1))


class TipAdapterF(CacheMethod):
    """Trains the cached image features of Tip-Adapter."""

    defaults: ClassVar[Defaults] = {
        # Weight of the cache logits in training; a search starts here. For all others the authors' for ImageNet,
        # Food101, OxfordPets and SUN397
        "ALPHA": by_dataset(
            1.17, Caltech101=3.0, DescribableTextures=2.0, EuroSAT=2.0, FGVCAircraft=5.0, OxfordFlowers=10.0,
            StanfordCars=3.0, UCF101=3.0,
        ),
        "BETA": 1.0,  # sharpness of the affinities in training; a search starts here
        "LR": 1e-3,  # AdamW's learning rate
        "EPOCHS": by_dataset(20, EuroSAT=100),
        "BATCH_SIZE": 256,  # images per step
        "WEIGHT_DECAY": 0.01,  # AdamW's, relative to the learning rate
        "EPS": 1e-4,  # AdamW's, added to the root of its second moment
        **SEARCH,
    }  # fmt: skip
    order = ("BETA", "ALPHA")

    def start(self, bank: FeatureBank, options: Options) -> Cache:
        """N * d keys."""
        keys = bank.cache_keys().clone().requires_grad_()
        return cache_beside_text(bank, keys, [keys])


def cache_beside_text(bank: FeatureBank, keys: Tensor, parameters: Sequence[Tensor] = ()) -> Cache:
    """Zero-shot CLIP and a cache with keys of shape `[N, d]`, which are taken at the norm that they have."""

    def text(features: Tensor) -> Tensor:
        return text_logits(features, bank.text_positive, bank.logit_scale)

    def cache(features: Tensor, beta: float) -> Tensor:
        return cache_logits(affinities(features @ keys.t(), beta), bank.train_labels, len(bank.text_positive))

    def folded() -> FoldedClassifier:
        return replace(cosine_classifier(bank.text_positive, bank.logit_scale), keys=keys, labels=bank.train_labels)

    return Cache(text, cache, parameters, folded)
