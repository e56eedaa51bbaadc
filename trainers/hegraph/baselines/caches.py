"""Methods that add a cache of the training images to the text logits: the base class, Tip-Adapter, Tip-Adapter-F, HOSO.

The cache maps keys to labels. The key `F_i` of training image i is the mean of the unit-norm features of its views,
normalised to unit norm.
"""

import itertools
import math
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..features.bank import FeatureBank
from ..method.cache import FoldedClassifier, affinities, cache_logits
from ..method.training.batches import Batch
from ..method.training.choice import accuracy, choose, has_val, val_images
from . import base
from .base import FittedMethod, Method
from .class_features import zero_shot
from .options import BaselineOptions, TrainedOptions, by_dataset, by_task, option
from .trained import batches, count_parameters, train

GRID_START = {"ALPHA": 0.1, "BETA": 0.1, "GAMMA": 0.0}  # smallest values of the authors' search grids

Values = tuple[float, ...]  # alpha, beta and, in APE, gamma


@dataclass(frozen=True)
class CacheOptions(BaselineOptions):
    """Options of every method with a cache."""

    alpha: float = option(1.0, "ALPHA", "weight of the cache logits", least=0)
    beta: float = option(1.0, "BETA", "sharpness of the affinities", least=0)


@dataclass(frozen=True)
class SearchOptions(CacheOptions):
    """Options of the search on val; each method declares its own grid."""

    search: bool = option(True, "SEARCH", "whether to select ALPHA and BETA on val, if there are val images")
    search_scale: Sequence[float] = by_task([7.0, 3.0], "SEARCH_SCALE", "end of the grid", numbers=2, above=0)
    search_step: Sequence[int] = option([20, 20], "SEARCH_STEP", "number of values in the grid", numbers=2, least=1)


@dataclass(frozen=True)
class TrainedCacheOptions(CacheOptions, TrainedOptions):
    """Options of a method that trains its cache with AdamW."""

    eps: float = option(1e-4, "EPS", "eps of AdamW", least=0)


CacheOptionsT = TypeVar("CacheOptionsT", bound=CacheOptions)


@dataclass(frozen=True)
class Cache:
    """Text logits, cache logits and their trainable parameters.

    Attributes:
        text: Function from image features `[B, d]` to text logits `[B, K]`.
        cache: Function from image features, beta and, in APE, gamma to cache logits `[B, K]`.
        parameters: Parameters to train; none for a training-free method.
        fold: Function from beta to the classifier to save, whose alpha is set later; None if it cannot be saved.
        penalty: Function from a batch to the term to add to the cross-entropy.
        rates: Learning rate of each parameter, as a multiple of the option LR; () means 1 for all.
    """

    text: Callable[[Tensor], Tensor]
    cache: Callable[..., Tensor]
    parameters: Sequence[Tensor] = ()
    fold: Callable[[float], FoldedClassifier] | None = None
    penalty: Callable[[Batch], Tensor | float] = lambda batch: 0.0
    rates: Sequence[float] = ()

    def logits(self, features: Tensor, alpha: float, *cache_values: float) -> Tensor:
        """Return `text + alpha * cache`, shape `[B, K]`."""
        return self.text(features) + alpha * self.cache(features, *cache_values)


class CacheMethod(Method[CacheOptionsT]):
    """Base class of methods that add a cache to the text logits.

    Parameters are trained with cross-entropy, AdamW and a cosine schedule by step, at the default alpha and beta. Then
    the hyperparameters are searched on val.

    Attributes:
        grid_order: Names of the options to search, in the order of the values of SEARCH_SCALE and SEARCH_STEP.
    """

    grid_order: ClassVar[Sequence[str]] = ("ALPHA", "BETA")

    @abstractmethod
    def build(self, bank: FeatureBank, options: CacheOptionsT) -> Cache:
        """Return the untrained cache; arguments as in `fit`."""

    def fit(self, bank: FeatureBank, options: CacheOptionsT, seed: int, backbone: object = None) -> FittedMethod:
        initial = {name: getattr(options, name.lower()) for name in sorted(self.grid_order)}  # ALPHA first
        cache = self.build(bank, options)
        epochs = 0
        steps = 0
        if isinstance(options, TrainedCacheOptions):
            epochs = options.epochs
            steps = train_cache(cache, bank, options, tuple(initial.values()), seed)
        values, selected = search(bank, options, initial, cache, self.grid_order)
        alpha, *cache_values = values
        classifier = None if cache.fold is None else replace(cache.fold(cache_values[0]), alpha=alpha)
        return FittedMethod(
            lambda features: cache.logits(features, *values),
            count_parameters(cache.parameters),
            epochs,
            steps,
            selected,
            classifier=classifier,
        )


def train_cache(cache: Cache, bank: FeatureBank, options: TrainedCacheOptions, values: Values, seed: int) -> int:
    """Train the parameters of a cache with cross-entropy at the values alpha, beta; returns the number of steps."""

    def loss(batch: Batch) -> Tensor:
        logits = cache.logits(batch.features, *values)
        return F.cross_entropy(logits, batch.labels) + cache.penalty(batch)

    def cosine(step: int, peak: float) -> float:
        return 0.5 * peak * (1 + math.cos(math.pi * step / (options.epochs * data.steps_per_epoch)))

    rates = [options.learning_rate * multiple for multiple in cache.rates or [1.0] * len(cache.parameters)]
    groups = [{"params": [parameter], "lr": rate} for parameter, rate in zip(cache.parameters, rates)]
    optimizer = torch.optim.AdamW(groups, eps=options.eps, weight_decay=options.weight_decay)
    data = batches(bank, options.batch_size, seed)
    return train(optimizer, loss, data, options.epochs, cosine)


@torch.no_grad()
def search(
    bank: FeatureBank, options: CacheOptions, initial: dict[str, float], cache: Cache, grid_order: Sequence[str]
) -> tuple[Values, dict]:
    """Select the hyperparameters of a cache method on val.

    The candidates are the initial values, a grid, and all alphas of the grid with the initial beta (and gamma). An axis
    of the grid has SEARCH_STEP values and ends one step below SEARCH_SCALE.

    Args:
        initial: Initial values by name, alpha first.
        grid_order: Names in the order of SEARCH_SCALE and SEARCH_STEP.

    Returns:
        The selected values, alpha first, and an entry of `FittedMethod.selected`. Without val images, or with SEARCH
        off: the initial values, and {}.
    """
    values = tuple(initial.values())
    if not isinstance(options, SearchOptions) or not options.search or not has_val(bank):
        return values, {}
    ends = dict(zip(grid_order, options.search_scale))
    counts = dict(zip(grid_order, options.search_step))
    alphas, *axes = (grid_axis(name, ends[name], counts[name]) for name in initial)
    features, labels = val_images(bank)
    text = cache.text(features)
    accuracies: dict[Values, float] = {}
    for cache_values in [values[1:], *itertools.product(*axes)]:
        logits = cache.cache(features, *cache_values)
        for alpha in [values[0], *alphas] if cache_values == values[1:] else alphas:
            accuracies[(alpha, *cache_values)] = accuracy(text + alpha * logits, labels)

    def distance(candidate: Values) -> float:
        return sum(abs(c - v) / ends[name] for c, v, name in zip(candidate, values, initial))

    best, entry = choose(accuracies, distance)
    return best, {", ".join(initial): entry}


def grid_axis(name: str, end: float, count: int) -> list[float]:
    """Values of an option in the grid: `count` of them from its `GRID_START` on, up to one step below `end`."""
    start = GRID_START[name]
    return [round(start + i * (end - start) / count, 4) for i in range(count)]


@dataclass(frozen=True)
class TipAdapterSearch(SearchOptions):
    """Search options of Tip-Adapter and Tip-Adapter-F; the ranges are the authors'."""

    search_scale: Sequence[float] = by_dataset(
        [7.0, 3.0],
        "SEARCH_SCALE",
        "end of the grid, [BETA, ALPHA]; by default the authors' for ImageNet, OxfordPets and UCF101",
        {
            "Caltech101": [12.0, 5.0], "DescribableTextures": [13.0, 13.0], "EuroSAT": [12.0, 10.0],
            "FGVCAircraft": [30.0, 30.0], "Food101": [10.0, 10.0], "OxfordFlowers": [50.0, 50.0],
            "StanfordCars": [20.0, 10.0], "SUN397": [12.0, 10.0],
        },
        numbers=2,
        above=0,
    )  # fmt: skip
    search_step: Sequence[int] = option(
        [20, 20], "SEARCH_STEP", "number of values of [BETA, ALPHA] in the grid", numbers=2, least=1
    )


@dataclass(frozen=True)
class TipAdapterOptions(TipAdapterSearch):
    """Options of `TipAdapter`."""

    alpha: float = option(1.0, "ALPHA", "weight of the cache logits, before the search", least=0)
    beta: float = option(5.5, "BETA", "sharpness of the affinities, before the search", least=0)


@dataclass(frozen=True)
class HosoOptions(TrainedCacheOptions):
    """Options of `TipAdapterFHOSO`, and those of `TipAdapterF` but for its search."""

    alpha: float = by_dataset(
        1.17,
        "ALPHA",
        "weight of the cache logits in training, before the search; by default the authors' for ImageNet, Food101, "
        "OxfordPets and SUN397",
        {
            "Caltech101": 3.0, "DescribableTextures": 2.0, "EuroSAT": 2.0, "FGVCAircraft": 5.0, "OxfordFlowers": 10.0,
            "StanfordCars": 3.0, "UCF101": 3.0,
        },
        least=0,
    )  # fmt: skip
    beta: float = option(1.0, "BETA", "sharpness of the affinities in training, before the search", least=0)
    learning_rate: float = option(1e-3, "LR", "learning rate of AdamW", least=0)
    epochs: int = by_dataset(20, "EPOCHS", "number of training epochs", {"EuroSAT": 100}, least=1)
    weight_decay: float = option(0.01, "WEIGHT_DECAY", "weight decay of AdamW", least=0)


@dataclass(frozen=True)
class TipAdapterFOptions(HosoOptions, TipAdapterSearch):
    """Options of `TipAdapterF`."""


class TipAdapter(CacheMethod[CacheOptions]):
    """Tip-Adapter: adds the similarities to the training images to the zero-shot logits.

    Zhang, Fang, Zhang, Gao, Li, Dai, Qiao, Li: Tip-Adapter: Training-free Adaption of CLIP for Few-shot Classification.
    ECCV 2022.

        z = tau * cos(f, t_k) + alpha * sum over the training images i of class k of exp(-beta * (1 - f . F_i))

    Tip-Adapter-F trains the keys with cross-entropy and does not normalise them again, so `f . F_i` is no cosine after
    the first step. Initial values are the paper's for Tip-Adapter, and the released code's by data set for
    Tip-Adapter-F. Alpha and beta are then searched on val, over the range of that code.

    Differences from the original: the few-shot val split is too small to distinguish 200 values of beta, so the grid is
    20 by 20 instead of 200 by 20. The initial values are a candidate too, and of equally good candidates the nearest to
    them wins, not the smallest. For Tip-Adapter-F, the authors select the epoch on test and report the better test
    accuracy of before and after the search; here the last epoch counts, after the search.
    """

    options: ClassVar[type] = TipAdapterOptions
    grid_order = ("BETA", "ALPHA")

    def build(self, bank: FeatureBank, options: CacheOptions) -> Cache:
        labels = bank.train_labels
        is_trained = isinstance(options, TrainedCacheOptions)
        # Training starts at the keys as they are: normalising them again would change them by rounding
        keys = bank.cache_keys()
        keys = keys.clone().requires_grad_() if is_trained else F.normalize(keys, dim=-1)

        def cache(features: Tensor, beta: float) -> Tensor:
            return cache_logits(affinities(features @ keys.t(), beta), labels, len(bank.text_positive))

        def fold(beta: float) -> FoldedClassifier:
            text = base.cosine_classifier(bank.text_positive, bank.logit_scale)
            return replace(text, keys=keys, labels=labels, beta=beta)

        return Cache(zero_shot(bank), cache, [keys] if is_trained else [], fold)


class TipAdapterF(TipAdapter):
    """Tip-Adapter-F: trains the keys of Tip-Adapter; see `TipAdapter` for the equation and the differences."""

    options: ClassVar[type] = TipAdapterFOptions


class TipAdapterFHOSO(TipAdapterF):
    """Tip-Adapter-F whose alpha is learned on one held-out image per class, with the rule of HOSO.

    Vorster, Maniparambil, O'Connor, Murphy, Molloy: Hold-One-Shot-Out (HOSO) for Validation-Free Few-Shot CLIP
    Adapters. CVPR 2026 Findings.

        alpha = argmin over a in [0, tau] of the cross-entropy of `text + a * cache` on the held-out images

    The keys are trained on the other images, at the initial alpha. A class with one image holds out none, so at one
    shot the method is Tip-Adapter-F without the search. Of images with groups, such as the frames of a video, the other
    images of a held-out image's group are left out of the training as well.

    Differences from the original: HOSO-Adapter is CLIP-Adapter with this rule. It learns the ratio by gradient descent
    beside the adapter; here the problem has one variable and is convex, and is solved after the training. The authors
    have released no code.
    """

    options: ClassVar[type] = HosoOptions

    def fit(self, bank: FeatureBank, options: CacheOptions, seed: int, backbone: object = None) -> FittedMethod:
        from scipy.optimize import minimize_scalar  # takes a second to import

        held_out = last_of_each_class(bank.train_labels, bank.train_groups)
        left_out = held_out
        if bank.train_groups is not None:
            left_out = torch.isin(bank.train_groups, bank.train_groups[held_out])
        fitted = super().fit(without_images(bank, left_out), options, seed)
        classifier = fitted.classifier
        assert classifier is not None  # Tip-Adapter-F has one
        if not held_out.any():
            return fitted
        parts = classifier.parts(bank.cache_keys()[held_out])
        labels = bank.train_labels[held_out]

        def loss(alpha: float) -> float:
            return F.cross_entropy(replace(classifier, alpha=alpha).combine(parts), labels).item()

        alpha = float(minimize_scalar(loss, bounds=(0.0, bank.logit_scale), method="bounded").x)
        learned = replace(classifier, alpha=alpha)
        return replace(fitted, logits=learned.logits, classifier=learned)


def without_images(bank: FeatureBank, left_out: Tensor) -> FeatureBank:
    """Return the bank without the training images of a mask `[N]`, and without val images."""
    features = bank.train_features[:, ~left_out]
    labels = bank.train_labels[~left_out]
    bank = replace(bank, val_features=None, val_labels=None, val_groups=None)
    return replace(bank, train_features=features, train_labels=labels, train_groups=None)


def last_of_each_class(labels: Tensor, groups: Tensor | None = None) -> Tensor:
    """Return the mask of one held-out image per class, `[N]`: the last one without which every class keeps an image.

    With groups `[N]`, an image is held out only if every class keeps an image without its whole group and the groups of
    the images that are held out already. A class whose images are all needed for that holds out none.
    """
    numbers = list(range(len(labels))) if groups is None else groups.tolist()
    classes = labels.tolist()
    members: dict[int, list[int]] = {}
    for row, number in enumerate(numbers):
        members.setdefault(number, []).append(row)
    left = Counter(classes)
    left_out: set[int] = set()  # groups
    held_out: dict[int, int] = {}  # by class
    for row in reversed(range(len(classes))):
        if classes[row] in held_out:
            continue
        lost = Counter(classes[other] for other in members[numbers[row]] if numbers[row] not in left_out)
        if all(left[label] > count for label, count in lost.items()):
            left -= lost
            left_out.add(numbers[row])
            held_out[classes[row]] = row
    mask = torch.zeros_like(labels, dtype=torch.bool)
    mask[list(held_out.values())] = True
    return mask
