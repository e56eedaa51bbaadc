"""APE and APE-T: caches on the channels of the features that discriminate between classes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..features.bank import FeatureBank
from ..method.cache import FoldedClassifier, affinities, cache_affinities, cache_logits, text_logits
from .caches import Cache, CacheMethod, SearchOptions, TrainedCacheOptions
from .class_features import zero_shot
from .options import BaselineOptions, by_dataset, by_task, option


@dataclass(frozen=True)
class ChannelOptions(BaselineOptions):
    """Options of the selection of channels; each method declares its own values."""

    channels: float = by_task(500 / 1024, "CHANNELS", "share of the channels to select", above=0, most=1)
    weights: Sequence[float] = by_task([0.7, 0.3], "WEIGHTS", "weights of the similarity and the variance", numbers=2)


OF_CHANNELS = "share of the channels to select"
OF_WEIGHTS = "weights [w_1, w_2] of the similarity and the variance"
APE_ALPHA = {
    "DescribableTextures": 3.0, "FGVCAircraft": 5.0, "Food101": 0.8, "ImageNet": 2.0, "OxfordFlowers": 3.0,
    "OxfordPets": 2.0, "UCF101": 2.0,
}  # fmt: skip
APE_SCALE = {  # end of the grid, [ALPHA, BETA, GAMMA]
    "EuroSAT": [5.0, 30.0, 1.5], "FGVCAircraft": [10.0, 20.0, 1.0], "ImageNet": [7.0, 7.0, 0.5],
    "StanfordCars": [7.0, 10.0, 1.0], "SUN397": [7.0, 10.0, 1.0], "UCF101": [7.0, 10.0, 1.5],
}  # fmt: skip


@dataclass(frozen=True)
class APEOptions(SearchOptions, ChannelOptions):
    """Options of `APE`.

    Values by data set are the authors'. Defaults are theirs for ImageNet, except those of ALPHA and SEARCH_SCALE.
    """

    alpha: float = by_dataset(1.0, "ALPHA", "weight of the cache logits, before the search", APE_ALPHA, least=0)
    beta: float = option(1.0, "BETA", "sharpness of the affinities, before the search", least=0)
    gamma: float = option(0.1, "GAMMA", "weight of the KL divergence, before the search", least=0)
    channels: float = by_dataset(
        500 / 1024,
        "CHANNELS",
        OF_CHANNELS,
        {
            "Caltech101": 800 / 1024, "DescribableTextures": 400 / 1024, "EuroSAT": 700 / 1024,
            "FGVCAircraft": 800 / 1024, "Food101": 700 / 1024, "OxfordFlowers": 700 / 1024, "OxfordPets": 800 / 1024,
            "SUN397": 800 / 1024, "UCF101": 700 / 1024,
        },
        above=0,
        most=1,
    )  # fmt: skip
    weights: Sequence[float] = by_dataset(
        [0.7, 0.3],
        "WEIGHTS",
        OF_WEIGHTS,
        {
            "Caltech101": [0.5, 0.5], "DescribableTextures": [0.5, 0.5], "EuroSAT": [0.9, 0.1],
            "FGVCAircraft": [0.1, 0.9], "Food101": [0.3, 0.7], "OxfordFlowers": [0.4, 0.6], "StanfordCars": [0.6, 0.4],
            "UCF101": [0.3, 0.7],
        },
        numbers=2,
    )  # fmt: skip
    search: bool = option(True, "SEARCH", "whether to select ALPHA, BETA and GAMMA on val, if there are val images")
    search_scale: Sequence[float] = by_dataset(
        [7.0, 7.0, 1.0], "SEARCH_SCALE", "end of the grid, [ALPHA, BETA, GAMMA]", APE_SCALE, numbers=3, above=0
    )
    search_step: Sequence[int] = option(
        [20, 20, 5], "SEARCH_STEP", "number of values of [ALPHA, BETA, GAMMA] in the grid", numbers=3, least=1
    )


class APE(CacheMethod[APEOptions]):
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

    options: ClassVar[type] = APEOptions
    not_saved: ClassVar[str] = "it compares images with the cache on selected channels, normalised again"
    grid_order = ("ALPHA", "BETA", "GAMMA")

    def build(self, bank: FeatureBank, options: APEOptions) -> Cache:
        channels = select_channels(bank, options, use_images=True)
        labels = bank.train_labels
        keys = F.normalize(bank.cache_keys()[:, channels], dim=-1)
        text = bank.text_positive[:, channels]
        log_p = text_logits(keys, text, 1.0).log_softmax(dim=1).gather(1, labels[:, None])[:, 0]
        divergence = -log_p / math.log(2)  # KL_i, shape [N]

        def cache(features: Tensor, beta: float, gamma: float) -> Tensor:
            similarities = cache_affinities(F.normalize(features[:, channels], dim=-1), keys, beta)
            return cache_logits(similarities * (gamma * divergence).exp(), labels, len(text))

        return Cache(zero_shot(bank), cache)


@dataclass(frozen=True)
class APETOptions(TrainedCacheOptions, SearchOptions, ChannelOptions):
    """Options of `APET`."""

    alpha: float = by_dataset(
        1.0, "ALPHA", "weight of the cache logits in training, before the search", APE_ALPHA, least=0
    )
    beta: float = option(1.0, "BETA", "sharpness of the affinities in training, before the search", least=0)
    channels: float = by_dataset(
        800 / 1024,
        "CHANNELS",
        OF_CHANNELS,
        {
            "Caltech101": 900 / 1024, "DescribableTextures": 700 / 1024, "EuroSAT": 900 / 1024,
            "FGVCAircraft": 900 / 1024, "Food101": 900 / 1024, "ImageNet": 500 / 1024,
        },
        above=0,
        most=1,
    )  # fmt: skip
    weights: Sequence[float] = by_dataset([0.2, 0.8], "WEIGHTS", OF_WEIGHTS, {}, numbers=2)
    learning_rate: float = by_dataset(
        1e-3,
        "LR",
        "learning rate of AdamW",
        {"Food101": 1e-4, "ImageNet": 1e-4, "OxfordPets": 1e-4, "SUN397": 1e-4},
        least=0,
    )
    epochs: int = by_dataset(
        30,
        "EPOCHS",
        "number of training epochs",
        {"DescribableTextures": 20, "EuroSAT": 200, "ImageNet": 20, "OxfordFlowers": 60},
        least=1,
    )
    eps: float = by_dataset(
        1e-3, "EPS", "eps of AdamW", {"OxfordPets": 2e-3, "StanfordCars": 5e-3, "UCF101": 2e-3}, least=0
    )
    weight_decay: float = option(0.1, "WEIGHT_DECAY", "weight decay of AdamW", least=0)
    search_scale: Sequence[float] = by_dataset(
        [7.0, 7.0],
        "SEARCH_SCALE",
        "end of the grid, [ALPHA, BETA]",
        {name: ends[:2] for name, ends in APE_SCALE.items()},
        numbers=2,
        above=0,
    )
    search_step: Sequence[int] = option(
        [20, 20], "SEARCH_STEP", "number of values of [ALPHA, BETA] in the grid", numbers=2, least=1
    )


class APET(CacheMethod[APETOptions]):
    """APE-T: trains a residual per class and a weight per image of APE's cache; see `APE` for the equation."""

    options: ClassVar[type] = APETOptions

    def build(self, bank: FeatureBank, options: APETOptions) -> Cache:
        channels = select_channels(bank, options, use_images=False)
        keys = bank.cache_keys()
        labels = bank.train_labels
        text = bank.text_positive
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
            weight = bank.logit_scale * (text + residuals())
            shifted = keys + residuals()[labels]
            return FoldedClassifier(weight, keys=shifted, labels=labels, key_weights=weights, beta=beta)

        return Cache(text_part, cache_part, [residual, weights], fold)


def select_channels(bank: FeatureBank, options: ChannelOptions, use_images: bool) -> Tensor:
    """Return the indices of the channels that APE selects by CHANNELS and WEIGHTS, best first.

    The similarity is over the text features and, if `use_images`, the training images.
    """
    text = bank.text_positive
    sums = text
    counts = torch.ones_like(text[:, 0])
    if use_images:
        sums = sums.index_add(0, bank.train_labels, bank.cache_keys())
        counts = counts + bank.train_labels.bincount(minlength=len(text))
    # Sum over pairs of different classes = sum over all pairs - sum over pairs within a class
    pairs = counts.sum() ** 2 - counts.square().sum()
    similarity = (sums.sum(dim=0).square() - sums.square().sum(dim=0)) / pairs
    of_similarity, of_variance = options.weights
    criterion = -of_similarity * similarity + of_variance * text.var(dim=0)
    return criterion.topk(max(1, round(options.channels * len(criterion)))).indices
