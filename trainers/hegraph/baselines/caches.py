"""Methods that add a cache of the training images to the text logits: Tip-Adapter, APE and their trained forms.

The cache maps keys to labels. The key `F_i` of training image i is the mean of the unit-norm features of its views,
normalised to unit norm.
"""

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
from ..method.cache import FoldedClassifier, affinities, cache_affinities, cache_logits, text_logits
from ..method.training.batches import Batch
from ..method.training.choice import accuracy, choose, has_val, val_images
from . import base
from .base import Defaults, FittedMethod, Method, Options, by_dataset, check_number, check_numbers, value_for_task
from .class_features import zero_shot
from .trained import batches, count_parameters, train

GRID_START = {"ALPHA": 0.1, "BETA": 0.1, "GAMMA": 0.0}  # smallest values of the authors' search grids

Values = tuple[float, ...]  # alpha, beta and, in APE, gamma


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


class CacheMethod(Method):
    """Base class of methods that add a cache to the text logits.

    Parameters are trained with cross-entropy, AdamW and a cosine schedule by step, at the default alpha and beta. Then
    the hyperparameters are searched on val.

    Attributes:
        grid_order: Names of the options to search, in the order of the values of SEARCH_SCALE and SEARCH_STEP.
    """

    grid_order: ClassVar[Sequence[str]] = ("ALPHA", "BETA")

    @abstractmethod
    def build(self, bank: FeatureBank, options: Options) -> Cache:
        """Return the untrained cache; arguments as in `fit`."""

    def fit(self, bank: FeatureBank, options: Options, seed: int, backbone: object = None) -> FittedMethod:
        initial = {name: value_for_task(options, name, bank, 0) for name in sorted(self.grid_order)}  # ALPHA first
        cache, epochs, steps = self.build(bank, options), 0, 0
        if cache.parameters:

            def loss(batch: Batch) -> Tensor:
                logits = cache.logits(batch.features, *initial.values())
                return F.cross_entropy(logits, batch.labels) + cache.penalty(batch)

            def cosine(step: int, peak: float) -> float:
                return 0.5 * peak * (1 + math.cos(math.pi * step / (epochs * data.steps_per_epoch)))

            rate, eps, epochs = (value_for_task(options, key, bank, 0) for key in ("LR", "EPS", "EPOCHS"))
            check_number("WEIGHT_DECAY", options.WEIGHT_DECAY, 0)
            multiples = cache.rates or [1.0] * len(cache.parameters)
            groups = [{"params": [p], "lr": rate * multiple} for p, multiple in zip(cache.parameters, multiples)]
            optimizer = torch.optim.AdamW(groups, eps=eps, weight_decay=options.WEIGHT_DECAY)
            data = batches(bank, options.BATCH_SIZE, seed)
            steps = train(optimizer, loss, data, epochs, cosine)
        values, selected = search(bank, options, initial, cache, self.grid_order)
        classifier = None if cache.fold is None else replace(cache.fold(values[1]), alpha=values[0])
        number = count_parameters(cache.parameters)
        return FittedMethod(lambda x: cache.logits(x, *values), number, epochs, steps, selected, classifier=classifier)


@torch.no_grad()
def search(
    bank: FeatureBank, options: Options, initial: dict[str, float], cache: Cache, grid_order: Sequence[str]
) -> tuple[Values, dict]:
    """Select the hyperparameters of a cache method on val.

    The candidates are the initial values, a grid, and all alphas of the grid with the initial beta (and gamma). An axis
    of the grid has SEARCH_STEP values and ends one step below SEARCH_SCALE.

    Returns:
        The selected values, alpha first, and an entry of `FittedMethod.selected`. Without val images, or with SEARCH
        off: the initial values, and {}.
    """
    values = tuple(initial.values())
    if not (has_val(bank) and options.SEARCH):
        return values, {}
    scale = value_for_task(options, "SEARCH_SCALE", bank, length=len(grid_order))
    check_numbers("SEARCH_STEP", options.SEARCH_STEP, 1, length=len(grid_order), integer=True)
    ends, counts = dict(zip(grid_order, scale)), dict(zip(grid_order, options.SEARCH_STEP))
    alphas, *axes = (
        [round(GRID_START[name] + i * (ends[name] - GRID_START[name]) / counts[name], 4) for i in range(counts[name])]
        for name in initial
    )
    features, labels = val_images(bank)
    text, accuracies = cache.text(features), {}
    for cache_values in [values[1:], *itertools.product(*axes)]:
        logits = cache.cache(features, *cache_values)
        for alpha in [values[0], *alphas] if cache_values == values[1:] else alphas:
            accuracies[(alpha, *cache_values)] = accuracy(text + alpha * logits, labels)

    def distance(candidate: Values) -> float:
        return sum(abs(c - v) / ends[name] for c, v, name in zip(candidate, values, initial))

    best, entry = choose(accuracies, distance)
    return best, {", ".join(initial): entry}


# Search options of Tip-Adapter and Tip-Adapter-F
SEARCH: Defaults = {
    "SEARCH": True,  # select ALPHA and BETA on val, if there are val images
    # End of the grid, [BETA, ALPHA]; by default the authors' for ImageNet, OxfordPets and UCF101
    "SEARCH_SCALE": by_dataset(
        [7.0, 3.0], Caltech101=[12.0, 5.0], DescribableTextures=[13.0, 13.0], EuroSAT=[12.0, 10.0],
        FGVCAircraft=[30.0, 30.0], Food101=[10.0, 10.0], OxfordFlowers=[50.0, 50.0], StanfordCars=[20.0, 10.0],
        SUN397=[12.0, 10.0],
    ),
    "SEARCH_STEP": [20, 20],  # number of values of [BETA, ALPHA] in the grid
}  # fmt: skip


class TipAdapter(CacheMethod):
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

    defaults: ClassVar[Defaults] = {
        "ALPHA": 1.0,  # weight of the cache logits, before the search
        "BETA": 5.5,  # sharpness of the affinities, before the search
        **SEARCH,
    }
    grid_order = ("BETA", "ALPHA")

    def build(self, bank: FeatureBank, options: Options) -> Cache:
        # Training starts at the keys as they are: normalising them again would change them by rounding
        is_trained, keys, labels = "LR" in self.defaults, bank.cache_keys(), bank.train_labels
        keys = keys.clone().requires_grad_() if is_trained else F.normalize(keys, dim=-1)

        def cache(features: Tensor, beta: float) -> Tensor:
            return cache_logits(affinities(features @ keys.t(), beta), labels, len(bank.text_positive))

        def fold(beta: float) -> FoldedClassifier:
            text = base.cosine_classifier(bank.text_positive, bank.logit_scale)
            return replace(text, keys=keys, labels=labels, beta=beta)

        return Cache(zero_shot(bank), cache, [keys] if is_trained else [], fold)


class TipAdapterF(TipAdapter):
    """Tip-Adapter-F: trains the keys of Tip-Adapter; see `TipAdapter` for the equation and the differences."""

    defaults: ClassVar[Defaults] = {
        # Weight of the cache logits in training, before the search; by default the authors' for ImageNet, Food101,
        # OxfordPets and SUN397
        "ALPHA": by_dataset(
            1.17, Caltech101=3.0, DescribableTextures=2.0, EuroSAT=2.0, FGVCAircraft=5.0, OxfordFlowers=10.0,
            StanfordCars=3.0, UCF101=3.0,
        ),
        "BETA": 1.0,  # sharpness of the affinities in training, before the search
        "LR": 1e-3,  # learning rate of AdamW
        "EPOCHS": by_dataset(20, EuroSAT=100),
        "BATCH_SIZE": 256,  # images per step
        "WEIGHT_DECAY": 0.01,  # weight decay of AdamW
        "EPS": 1e-4,  # eps of AdamW
        **SEARCH,
    }  # fmt: skip


class TipAdapterFHOSO(TipAdapterF):
    """Tip-Adapter-F whose alpha is learned on one held-out image per class, with the rule of HOSO.

    Vorster, Maniparambil, O'Connor, Murphy, Molloy: Hold-One-Shot-Out (HOSO) for Validation-Free Few-Shot CLIP
    Adapters. CVPR 2026 Findings.

        alpha = argmin over a in [0, tau] of the cross-entropy of `text + a * cache` on the held-out images

    The keys are trained on the other images, at the initial alpha. A class with one image holds out none, so at one
    shot the method is Tip-Adapter-F without the search.

    Differences from the original: HOSO-Adapter is CLIP-Adapter with this rule. It learns the ratio by gradient descent
    beside the adapter; here the problem has one variable and is convex, and is solved after the training. The authors
    have released no code.
    """

    defaults: ClassVar[Defaults] = {k: v for k, v in TipAdapterF.defaults.items() if k not in SEARCH}

    def fit(self, bank: FeatureBank, options: Options, seed: int, backbone: object = None) -> FittedMethod:
        from scipy.optimize import minimize_scalar  # takes a second to import

        held_out = last_of_each_class(bank.train_labels)
        rest, labels = bank.train_features[:, ~held_out], bank.train_labels[~held_out]
        rest_of_bank = replace(bank, train_features=rest, train_labels=labels, val_features=None, val_labels=None)
        fitted = super().fit(rest_of_bank, options, seed)
        classifier = fitted.classifier
        assert classifier is not None  # Tip-Adapter-F has one
        if not held_out.any():
            return fitted
        parts, held_out_labels = classifier.parts(bank.cache_keys()[held_out]), bank.train_labels[held_out]

        def loss(alpha: float) -> float:
            return F.cross_entropy(replace(classifier, alpha=alpha).combine(parts), held_out_labels).item()

        alpha = float(minimize_scalar(loss, bounds=(0.0, bank.logit_scale), method="bounded").x)
        learned = replace(classifier, alpha=alpha)
        return replace(fitted, logits=learned.logits, classifier=learned)


def last_of_each_class(labels: Tensor) -> Tensor:
    """Return the mask of the last image of every class with more than one image, `[N]`."""
    last = {label: row for row, label in enumerate(labels.tolist())}
    mask = torch.zeros_like(labels, dtype=torch.bool)
    mask[list(last.values())] = True
    return mask & (labels.bincount()[labels] > 1)


class APE(CacheMethod):
    """APE: adds the similarities to the training images on the channels that discriminate between classes.

    Zhu, Zhang, He, Zhou, Wang, Zhao, Gao: Not All Features Matter: Enhancing Few-shot CLIP with Adaptive Prior
    Refinement. ICCV 2023.

        z = tau * cos(f, t_k) + alpha * sum over the training images i of class k of
                                        exp(-beta * (1 - cos(f', F'_i))) * exp(gamma * KL_i)                       (APE)
        KL_i = log2(1 / p_i),  p_i the softmax of cos(F'_i, t'_k) over k, at the image's class

        z = tau * f . (t_k + r_k) + alpha * sum over the training images i of class k of
                                            w_i * exp(-beta * (1 - f . (F_i + r_k)))                             (APE-T)

    A prime marks a feature on selected channels, those with the largest `-w_1 * S + w_2 * V`. S is the mean product, in
    the channel, of two features of different classes, text or images; V is the variance of the text features over the
    classes. APE-T selects the channels by the text alone. It trains one residual `r_k` per class, which is 0 on the
    other channels, and one weight `w_i` per image, starting at 0 and 1, with cross-entropy. The shifted features are
    not normalised again. All values by data set below are the released code's.

    Differences from the original: as for Tip-Adapter, with a grid of 20 by 20 by 5 instead of 20 by 200 by 20 (on
    ImageNet by 5), and with alpha before beta in SEARCH_SCALE and SEARCH_STEP. The authors' numbers of channels are for
    the 1024 channels of RN50; other widths use the same share. Classes may have unequal numbers of images. The released
    file of APE-T does not run as it is: it reads a key that no configuration has, takes APE's number of channels where
    the residual has another, and reuses APE's channels if they are stored. Its authors select the epoch on val and
    train in half precision; here the last epoch counts, in single precision.
    """

    # Values by data set are the authors'. Defaults are theirs for ImageNet, except those of ALPHA and SEARCH_SCALE
    defaults: ClassVar[Defaults] = {
        # Weight of the cache logits, before the search
        "ALPHA": by_dataset(
            1.0, DescribableTextures=3.0, FGVCAircraft=5.0, Food101=0.8, ImageNet=2.0, OxfordFlowers=3.0,
            OxfordPets=2.0, UCF101=2.0,
        ),
        "BETA": 1.0,  # sharpness of the affinities, before the search
        "GAMMA": 0.1,  # weight of the KL divergence, before the search
        # Share of the channels to select
        "CHANNELS": by_dataset(
            500 / 1024, Caltech101=800 / 1024, DescribableTextures=400 / 1024, EuroSAT=700 / 1024,
            FGVCAircraft=800 / 1024, Food101=700 / 1024, OxfordFlowers=700 / 1024, OxfordPets=800 / 1024,
            SUN397=800 / 1024, UCF101=700 / 1024,
        ),
        # Weights [w_1, w_2] of the similarity and the variance
        "WEIGHTS": by_dataset(
            [0.7, 0.3], Caltech101=[0.5, 0.5], DescribableTextures=[0.5, 0.5], EuroSAT=[0.9, 0.1],
            FGVCAircraft=[0.1, 0.9], Food101=[0.3, 0.7], OxfordFlowers=[0.4, 0.6], StanfordCars=[0.6, 0.4],
            UCF101=[0.3, 0.7],
        ),
        "SEARCH": True,  # select ALPHA, BETA and GAMMA on val, if there are val images
        # End of the grid, [ALPHA, BETA, GAMMA]
        "SEARCH_SCALE": by_dataset(
            [7.0, 7.0, 1.0], EuroSAT=[5.0, 30.0, 1.5], FGVCAircraft=[10.0, 20.0, 1.0], ImageNet=[7.0, 7.0, 0.5],
            StanfordCars=[7.0, 10.0, 1.0], SUN397=[7.0, 10.0, 1.0], UCF101=[7.0, 10.0, 1.5],
        ),
        "SEARCH_STEP": [20, 20, 5],  # number of values of [ALPHA, BETA, GAMMA] in the grid
    }  # fmt: skip
    not_saved: ClassVar[str] = "it compares images with the cache on selected channels, normalised again"
    grid_order = ("ALPHA", "BETA", "GAMMA")

    def build(self, bank: FeatureBank, options: Options) -> Cache:
        channels, labels = select_channels(bank, options, use_images=True), bank.train_labels
        keys, text = F.normalize(bank.cache_keys()[:, channels], dim=-1), bank.text_positive[:, channels]
        log_p = text_logits(keys, text, 1.0).log_softmax(dim=1).gather(1, labels[:, None])[:, 0]
        divergence = -log_p / math.log(2)  # KL_i, shape [N]

        def cache(features: Tensor, beta: float, gamma: float) -> Tensor:
            similarities = cache_affinities(F.normalize(features[:, channels], dim=-1), keys, beta)
            return cache_logits(similarities * (gamma * divergence).exp(), labels, len(text))

        return Cache(zero_shot(bank), cache)


class APET(CacheMethod):
    """APE-T: trains a residual per class and a weight per image of APE's cache; see `APE` for the equation."""

    defaults: ClassVar[Defaults] = {
        "ALPHA": APE.defaults["ALPHA"],  # weight of the cache logits in training, before the search
        "BETA": 1.0,  # sharpness of the affinities in training, before the search
        # Share of the channels to select
        "CHANNELS": by_dataset(
            800 / 1024, Caltech101=900 / 1024, DescribableTextures=700 / 1024, EuroSAT=900 / 1024,
            FGVCAircraft=900 / 1024, Food101=900 / 1024, ImageNet=500 / 1024,
        ),
        "WEIGHTS": by_dataset([0.2, 0.8]),  # weights [w_1, w_2] of the similarity and the variance
        "LR": by_dataset(1e-3, Food101=1e-4, ImageNet=1e-4, OxfordPets=1e-4, SUN397=1e-4),  # learning rate of AdamW
        "EPOCHS": by_dataset(30, DescribableTextures=20, EuroSAT=200, ImageNet=20, OxfordFlowers=60),
        "EPS": by_dataset(1e-3, OxfordPets=2e-3, StanfordCars=5e-3, UCF101=2e-3),  # eps of AdamW
        "BATCH_SIZE": 256,  # images per step
        "WEIGHT_DECAY": 0.1,  # weight decay of AdamW
        "SEARCH": True,  # select ALPHA and BETA on val, if there are val images
        # End of the grid, [ALPHA, BETA]
        "SEARCH_SCALE": [[name, scale[:2]] for name, scale in APE.defaults["SEARCH_SCALE"]],
        "SEARCH_STEP": [20, 20],  # number of values of [ALPHA, BETA] in the grid
    }  # fmt: skip

    def build(self, bank: FeatureBank, options: Options) -> Cache:
        channels, keys = select_channels(bank, options, use_images=False), bank.cache_keys()
        labels, text = bank.train_labels, bank.text_positive
        residual = text.new_zeros(len(text), len(channels)).requires_grad_()
        weights = text.new_ones(len(labels)).requires_grad_()

        def residuals() -> Tensor:  # r_k, 0 on the other channels, shape [K, d]
            return torch.zeros_like(text).index_copy(1, channels, residual)

        def text_part(features: Tensor) -> Tensor:
            return bank.logit_scale * features @ (text + residuals()).t()

        def cache_part(features: Tensor, beta: float) -> Tensor:
            similarities = affinities(features @ (keys + residuals()[labels]).t(), beta)
            return cache_logits(similarities * weights, labels, len(text))

        def fold(beta: float) -> FoldedClassifier:
            weight, shifted = bank.logit_scale * (text + residuals()), keys + residuals()[labels]
            return FoldedClassifier(weight, keys=shifted, labels=labels, key_weights=weights, beta=beta)

        return Cache(text_part, cache_part, [residual, weights], fold)


def select_channels(bank: FeatureBank, options: Options, use_images: bool) -> Tensor:
    """Return the indices of the channels that APE selects by CHANNELS and WEIGHTS, best first.

    The similarity is over the text features and, if `use_images`, the training images.
    """
    share = value_for_task(options, "CHANNELS", bank, maximum=1)
    weights = value_for_task(options, "WEIGHTS", bank, -math.inf, length=2)
    text = bank.text_positive
    sums, counts = text, torch.ones_like(text[:, 0])
    if use_images:
        sums = sums.index_add(0, bank.train_labels, bank.cache_keys())
        counts = counts + bank.train_labels.bincount(minlength=len(text))
    # Sum over pairs of different classes = sum over all pairs - sum over pairs within a class
    pairs = counts.sum() ** 2 - counts.square().sum()
    similarity = (sums.sum(dim=0).square() - sums.square().sum(dim=0)) / pairs
    criterion = -weights[0] * similarity + weights[1] * text.var(dim=0)
    return criterion.topk(max(1, round(share * len(criterion)))).indices
