"""Tip-Adapter, training-free, and Tip-Adapter-F, with trained keys; and what they share with APE: a cache and a search.

Zhang, Fang, Zhang, Gao, Li, Dai, Qiao, Li: Tip-Adapter: Training-free Adaption of CLIP for Few-shot Classification.
ECCV 2022.

    z = tau * cos(f, t_k) + alpha * sum over the training images i of class k of exp(-beta * (1 - f . F_i))

The training images are a cache: the key `F_i` is the mean of the unit-norm features of an image's views, scaled to norm
1, the value is its label. Tip-Adapter-F trains the keys with cross-entropy; they are not normalised again, so `f . F_i`
is no cosine after the first step. The start values are the paper's, in Tip-Adapter-F the released code's for each data
set; alpha and beta are then searched on val, over that code's range.

Distance from the original: the few-shot val split is too small to tell 200 values of beta apart, so the grid is 20 by
20 where theirs is 200 by 20. The start values are a candidate as well, and of equally good candidates the nearest to
them is taken, where theirs is the smallest. In Tip-Adapter-F the authors keep the epoch that is best on test, and
report the better on test of before and after the search; here the last epoch counts, after the search.
"""

from __future__ import annotations

import itertools
import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..features.bank import FeatureBank
from ..method.cache import FoldedClassifier, affinities, cache_logits, text_logits
from ..training.batches import Batch
from ..training.choice import accuracy, choose, has_val, val_images
from .base import Defaults, FittedMethod, Method, Options, by_dataset, check_numbers, cosine_classifier, value_for_task
from .trained import batches, train

LOWEST = {"ALPHA": 0.1, "BETA": 0.1, "GAMMA": 0.0}  # where the grids of Tip-Adapter's and APE's authors begin

Values = tuple[float, ...]  # alpha, beta and, in APE, gamma


@dataclass(frozen=True)
class Cache:
    """The two parts of a prediction, and what is trained of them.

    Attributes:
        text: Maps image features `[B, d]` to the text's logits `[B, K]`.
        cache: Maps image features and all numbers but alpha to the cache's logits `[B, K]`, which alpha weighs.
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
    """A method that adds a cache to the text's logits. Parameters are trained with cross-entropy, AdamW and a cosine by
    step, at the values of the numbers `searched` where the search starts; `order` is that of SEARCH_SCALE and
    SEARCH_STEP, as the authors have it.
    """

    searched: ClassVar[Sequence[str]] = ("ALPHA", "BETA")
    order: ClassVar[Sequence[str]] = ("ALPHA", "BETA")

    @abstractmethod
    def start(self, bank: FeatureBank, options: Options) -> Cache:
        """The cache as it is before the first step; arguments as of `fit`."""

    def fit(self, bank: FeatureBank, options: Options, seed: int, backbone: object = None) -> FittedMethod:
        start = {name: value_for_task(options, name, bank) for name in self.searched}
        cache, epochs, steps = self.start(bank, options), 0, 0
        if cache.parameters:

            def loss(batch: Batch) -> Tensor:
                return F.cross_entropy(cache.logits(batch.features, *start.values()), batch.labels)

            def cosine(step: int, peak: float) -> float:
                return 0.5 * peak * (1 + math.cos(math.pi * step / (epochs * data.steps_per_epoch)))

            rate, eps, epochs = (value_for_task(options, key, bank) for key in ("LR", "EPS", "EPOCHS"))
            optimizer = torch.optim.AdamW(cache.parameters, rate, eps=eps, weight_decay=options.WEIGHT_DECAY)
            data = batches(bank, options.BATCH_SIZE, seed)
            steps = train(optimizer, loss, data, epochs, cosine)
        values, selected = search(bank, options, start, cache, self.order)
        number = sum(parameter.numel() for parameter in cache.parameters)
        folded = None if cache.folded is None else replace(cache.folded(), alpha=values[0], beta=values[1])
        return FittedMethod(
            lambda features: cache.logits(features, *values), number, epochs, steps, selected, classifier=folded
        )


@torch.no_grad()
def search(
    bank: FeatureBank, options: Options, start: dict[str, float], cache: Cache, order: Sequence[str]
) -> tuple[Values, dict]:
    """Chooses the numbers of a cache method on val; without val images or SEARCH, those of `start` stay.

    Candidates are a grid, which ends a step before SEARCH_SCALE and holds SEARCH_STEP values, both in the given order,
    and the start's beta (and gamma) with all alphas. Returns the numbers, alpha first, and `FittedMethod.selected`.
    """
    values = tuple(start.values())
    if not (options.SEARCH and has_val(bank)):
        return values, {}
    scale = value_for_task(options, "SEARCH_SCALE", bank)
    check_numbers("a value of SEARCH_SCALE", scale, count=len(order))
    check_numbers("SEARCH_STEP", options.SEARCH_STEP, 1, count=len(order), whole=True)
    ends, counts = dict(zip(order, scale)), dict(zip(order, options.SEARCH_STEP))
    alphas, *axes = (
        [round(LOWEST[name] + i * (ends[name] - LOWEST[name]) / counts[name], 4) for i in range(counts[name])]
        for name in start
    )
    features, labels = val_images(bank)
    text, accuracies = cache.text(features), {}
    for rest in [values[1:], *itertools.product(*axes)]:
        of_images = cache.cache(features, *rest)
        for alpha in [values[0], *alphas] if rest == values[1:] else alphas:
            accuracies[(alpha, *rest)] = accuracy(text + alpha * of_images, labels)

    def distance(candidate: Values) -> float:
        return sum(abs(c - s) / ends[name] for c, s, name in zip(candidate, values, start))

    best, entry = choose(accuracies, distance)
    return best, {", ".join(start): entry}


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
        keys = bank.cache_keys().clone().requires_grad_()
        return cache_beside_text(bank, keys, [keys])


def cache_beside_text(bank: FeatureBank, keys: Tensor, parameters: Sequence[Tensor] = ()) -> Cache:
    """Zero-shot CLIP and a cache with keys of shape `[N, d]`, which are taken at the norm that they have."""

    def cache(features: Tensor, beta: float) -> Tensor:
        return cache_logits(affinities(features @ keys.t(), beta), bank.train_labels, len(bank.text_positive))

    def folded() -> FoldedClassifier:
        return replace(cosine_classifier(bank.text_positive, bank.logit_scale), keys=keys, labels=bank.train_labels)

    return Cache(
        lambda features: text_logits(features, bank.text_positive, bank.logit_scale), cache, parameters, folded
    )
