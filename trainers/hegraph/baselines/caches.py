"""Methods that add a cache of the training images to the text's logits: Tip-Adapter and APE, each also trained.

The key `F_i` of image i is the mean of the unit-norm features of its views, scaled to norm 1; the value is its label.
"""

from __future__ import annotations

import itertools
import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..features.bank import FeatureBank
from ..method.cache import FoldedClassifier, affinities, cache_affinities, cache_logits, text_logits
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
        return FittedMethod(lambda x: cache.logits(x, *values), number, epochs, steps, selected, classifier=folded)


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
    """Tip-Adapter: adds the similarities to the training images to the zero-shot logits.

    Zhang, Fang, Zhang, Gao, Li, Dai, Qiao, Li: Tip-Adapter: Training-free Adaption of CLIP for Few-shot Classification.
    ECCV 2022.

        z = tau * cos(f, t_k) + alpha * sum over the training images i of class k of exp(-beta * (1 - f . F_i))

    Tip-Adapter-F trains the keys with cross-entropy; they are not normalised again, so `f . F_i` is no cosine after the
    first step. The start values are the paper's, in Tip-Adapter-F the released code's for each data set; alpha and beta
    are then searched on val, over that code's range.

    Distance from the original: the few-shot val split is too small to tell 200 values of beta apart, so the grid is 20
    by 20 where theirs is 200 by 20. The start values are a candidate as well, and of equally good candidates the
    nearest to them is taken, where theirs is the smallest. In Tip-Adapter-F the authors keep the epoch that is best on
    test, and report the better on test of before and after the search; here the last epoch counts, after the search.
    """

    defaults: ClassVar[Defaults] = {
        "ALPHA": 1.0,  # weight of the cache logits; a search starts here
        "BETA": 5.5,  # sharpness of the affinities; a search starts here
        **SEARCH,
    }
    order = ("BETA", "ALPHA")

    def start(self, bank: FeatureBank, options: Options) -> Cache:
        # Training takes the keys at the norm that they have
        is_trained, keys, labels = "LR" in self.defaults, bank.cache_keys(), bank.train_labels
        keys = keys.clone().requires_grad_() if is_trained else F.normalize(keys, dim=-1)

        def cache(features: Tensor, beta: float) -> Tensor:
            return cache_logits(affinities(features @ keys.t(), beta), labels, len(bank.text_positive))

        def folded() -> FoldedClassifier:
            return replace(cosine_classifier(bank.text_positive, bank.logit_scale), keys=keys, labels=labels)

        return Cache(zero_shot(bank), cache, [keys] if is_trained else [], folded)


class TipAdapterF(TipAdapter):
    """Tip-Adapter-F: trains the cached image features of Tip-Adapter, whose docstring has its distance as well."""

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


def zero_shot(bank: FeatureBank) -> Callable[[Tensor], Tensor]:
    """Zero-shot CLIP, as `Cache.text`."""
    return partial(text_logits, class_features=bank.text_positive, logit_scale=bank.logit_scale)


class APE(CacheMethod):
    """APE: adds the similarities to the training images, in the channels that tell classes apart.

    Zhu, Zhang, He, Zhou, Wang, Zhao, Gao: Not All Features Matter: Enhancing Few-shot CLIP with Adaptive Prior
    Refinement. ICCV 2023.

        z = tau * cos(f, t_k) + alpha * sum over the training images i of class k of
                                        exp(-beta * (1 - cos(f', F'_i))) * exp(gamma * KL_i)                       (APE)
        KL_i = log2(1 / p_i),  p_i the softmax of cos(F'_i, t'_k) over k, at the image's class

        z = tau * f . (t_k + r_k) + alpha * sum over the training images i of class k of
                                            w_i * exp(-beta * (1 - f . (F_i + r_k)))                             (APE-T)

    A prime marks a feature of which only some channels are kept, those with the largest `-w_1 * S + w_2 * V`. S is the
    mean product, in the channel, of two features of different classes, text or images; V is the variance of the text
    over classes. In APE-T the channels are chosen by the text alone. Each class has one residual `r_k`, which is 0 on
    the other channels, and each image a weight `w_i`; they start at 0 and 1 and are trained with cross-entropy, and the
    moved features are not normalised again. Everything that has rows by data set below is as in the released code.

    Distance from the original: as Tip-Adapter's, with a grid of 20 by 20 by 5 where theirs is 20 by 200 by 20 (on
    ImageNet by 5). The authors' numbers of channels are for the 1024 channels of RN50; at other widths the same share
    is kept. Classes may have unequal numbers of images. The released file of APE-T does not run as it is: it reads a
    key that no configuration has, takes APE's number of channels where the residual has another, and APE's channels if
    they are stored. Its authors keep the epoch that is best on val, here the last one counts; they train in half
    precision, here it is single.
    """

    # Rows by data set are the authors'. For all others they are theirs for ImageNet, but in ALPHA and SEARCH_SCALE
    defaults: ClassVar[Defaults] = {
        # Weight of the cache logits; a search starts here
        "ALPHA": by_dataset(
            1.0, DescribableTextures=3.0, FGVCAircraft=5.0, Food101=0.8, ImageNet=2.0, OxfordFlowers=3.0,
            OxfordPets=2.0, UCF101=2.0,
        ),
        "BETA": 1.0,  # sharpness of the affinities; a search starts here
        "GAMMA": 0.1,  # weight of the KL divergence; a search starts here
        # Share of the channels that is kept
        "CHANNELS": by_dataset(
            500 / 1024, Caltech101=800 / 1024, DescribableTextures=400 / 1024, EuroSAT=700 / 1024,
            FGVCAircraft=800 / 1024, Food101=700 / 1024, OxfordFlowers=700 / 1024, OxfordPets=800 / 1024,
            SUN397=800 / 1024, UCF101=700 / 1024,
        ),
        # [w_1, w_2]: of the similarity and of the variance
        "WEIGHTS": by_dataset(
            [0.7, 0.3], Caltech101=[0.5, 0.5], DescribableTextures=[0.5, 0.5], EuroSAT=[0.9, 0.1],
            FGVCAircraft=[0.1, 0.9], Food101=[0.3, 0.7], OxfordFlowers=[0.4, 0.6], StanfordCars=[0.6, 0.4],
            UCF101=[0.3, 0.7],
        ),
        "SEARCH": True,  # choose ALPHA, BETA and GAMMA on val, if there are val images
        # Where the grid ends: [largest ALPHA, largest BETA, largest GAMMA]
        "SEARCH_SCALE": by_dataset(
            [7.0, 7.0, 1.0], EuroSAT=[5.0, 30.0, 1.5], FGVCAircraft=[10.0, 20.0, 1.0], ImageNet=[7.0, 7.0, 0.5],
            StanfordCars=[7.0, 10.0, 1.0], SUN397=[7.0, 10.0, 1.0], UCF101=[7.0, 10.0, 1.5],
        ),
        "SEARCH_STEP": [20, 20, 5],  # how many values of ALPHA, BETA and GAMMA the grid holds
    }  # fmt: skip
    not_saved: ClassVar[str] = "it normalises an image anew on some of its channels to compare it with the cache"
    searched = order = ("ALPHA", "BETA", "GAMMA")

    def start(self, bank: FeatureBank, options: Options) -> Cache:
        kept, labels = refine(bank, options, images=True), bank.train_labels
        keys, text = F.normalize(bank.cache_keys()[:, kept], dim=-1), bank.text_positive[:, kept]
        log_p = text_logits(keys, text, 1.0).log_softmax(dim=1).gather(1, labels[:, None])[:, 0]
        divergence = -log_p / math.log(2)  # KL_i, shape [N]

        def cache(features: Tensor, beta: float, gamma: float) -> Tensor:
            of_images = cache_affinities(F.normalize(features[:, kept], dim=-1), keys, beta)
            return cache_logits(of_images * (gamma * divergence).exp(), labels, len(text))

        return Cache(zero_shot(bank), cache)


class APET(CacheMethod):
    """APE-T: trains a residual for each class and a weight for each image of APE's cache; see `APE`."""

    defaults: ClassVar[Defaults] = {
        "ALPHA": APE.defaults["ALPHA"],  # weight of the cache logits in training; a search starts here
        "BETA": 1.0,  # sharpness of the affinities in training; a search starts here
        # Share of the channels that is kept
        "CHANNELS": by_dataset(
            800 / 1024, Caltech101=900 / 1024, DescribableTextures=700 / 1024, EuroSAT=900 / 1024,
            FGVCAircraft=900 / 1024, Food101=900 / 1024, ImageNet=500 / 1024,
        ),
        "WEIGHTS": by_dataset([0.2, 0.8]),  # [w_1, w_2] of APE: of the similarity and of the variance
        "LR": by_dataset(1e-3, Food101=1e-4, ImageNet=1e-4, OxfordPets=1e-4, SUN397=1e-4),  # AdamW's
        "EPOCHS": by_dataset(30, DescribableTextures=20, EuroSAT=200, ImageNet=20, OxfordFlowers=60),
        "EPS": by_dataset(1e-3, OxfordPets=2e-3, StanfordCars=5e-3, UCF101=2e-3),  # AdamW's
        "BATCH_SIZE": 256,  # images per step
        "WEIGHT_DECAY": 0.1,  # AdamW's, relative to the learning rate
        "SEARCH": True,  # choose ALPHA and BETA on val, if there are val images
        # Where the grid ends: [largest ALPHA, largest BETA]
        "SEARCH_SCALE": [[name, scale[:2]] for name, scale in APE.defaults["SEARCH_SCALE"]],
        "SEARCH_STEP": [20, 20],  # how many values of ALPHA and BETA the grid holds
    }  # fmt: skip

    def start(self, bank: FeatureBank, options: Options) -> Cache:
        kept, keys = refine(bank, options, images=False), bank.cache_keys()
        labels, text = bank.train_labels, bank.text_positive
        residual = text.new_zeros(len(text), len(kept)).requires_grad_()
        weights = text.new_ones(len(labels)).requires_grad_()

        def residuals() -> Tensor:  # with a 0 in every other channel, shape [K, d]
            return torch.zeros_like(text).index_copy(1, kept, residual)

        def text_of(features: Tensor) -> Tensor:
            return bank.logit_scale * features @ (text + residuals()).t()

        def cache_of(features: Tensor, beta: float) -> Tensor:
            of_images = affinities(features @ (keys + residuals()[labels]).t(), beta)
            return cache_logits(of_images * weights, labels, len(text))

        def folded() -> FoldedClassifier:
            moved = bank.logit_scale * (text + residuals())
            return FoldedClassifier(moved, keys=keys + residuals()[labels], labels=labels, key_weights=weights)

        return Cache(text_of, cache_of, [residual, weights], folded)


def refine(bank: FeatureBank, options: Options, images: bool) -> Tensor:
    """The positions of the channels to keep by CHANNELS and WEIGHTS, the best first.

    The similarity is taken over the text features and, with `images`, the training images.
    """
    share, weights = (value_for_task(options, key, bank) for key in ("CHANNELS", "WEIGHTS"))
    check_numbers("a value of CHANNELS", [share], most=1)
    check_numbers("a value of WEIGHTS", weights, -math.inf, count=2)
    text = bank.text_positive
    sums, counts = text.clone(), torch.ones_like(text[:, 0])
    if images:
        sums = sums.index_add(0, bank.train_labels, bank.cache_keys())
        counts = counts + bank.train_labels.bincount(minlength=len(text))
    # The sum over all pairs less that over pairs within a class is the sum over pairs of different classes
    pairs = counts.sum() ** 2 - counts.square().sum()
    similarity = (sums.sum(dim=0).square() - sums.square().sum(dim=0)) / pairs
    criterion = -weights[0] * similarity + weights[1] * text.var(dim=0)
    return criterion.topk(max(1, round(share * len(criterion)))).indices
