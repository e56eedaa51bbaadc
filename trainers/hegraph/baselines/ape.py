"""APE, training-free, and APE-T, with trained residuals: the cache on the channels that tell classes apart.

Zhu, Zhang, He, Zhou, Wang, Zhao, Gao: Not All Features Matter: Enhancing Few-shot CLIP with Adaptive Prior Refinement.
ICCV 2023.

    z = tau * cos(f, t_k) + alpha * sum over the training images i of class k of
                                    exp(-beta * (1 - cos(f', F'_i))) * exp(gamma * KL_i)                       (APE)
    KL_i = log2(1 / p_i),  p_i the softmax of cos(F'_i, t'_k) over k, at the image's class

    z = tau * f . (t_k + r_k) + alpha * sum over the training images i of class k of
                                        w_i * exp(-beta * (1 - f . (F_i + r_k)))                             (APE-T)

A prime marks a feature of which only some channels are kept, those with the largest `-w_1 * S + w_2 * V`. S is the mean
product, in the channel, of two features of different classes, text or images; V is the variance of the text over
classes. In APE-T the channels are chosen by the text alone. Each class has one residual `r_k`, which is 0 on the other
channels, and each image a weight `w_i`; they start at 0 and 1 and are trained with cross-entropy, and the moved
features are not normalised again. Everything that has rows by data set below is as in the released code.

Distance from the original: as Tip-Adapter's (`tip_adapter.py`), with a grid of 20 by 20 by 5 where theirs is 20 by 200
by 20 (on ImageNet by 5). The authors' numbers of channels are for the 1024 channels of RN50; at other widths the same
share is kept. Classes may have unequal numbers of images. The released file of APE-T does not run as it is: it reads a
key that no configuration has, takes APE's number of channels where the residual has another, and APE's channels if they
are stored. Its authors keep the epoch that is best on val, here the last one counts; they train in half precision, here
it is single.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..features.bank import FeatureBank
from ..method.cache import FoldedClassifier, affinities, cache_affinities, cache_logits, text_logits
from .base import Defaults, Options, by_dataset, check_numbers, value_for_task
from .tip_adapter import Cache, CacheMethod


class APE(CacheMethod):
    """Adds the similarities to the training images, in the most telling channels, to the zero-shot logits."""

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

        return Cache(lambda features: text_logits(features, bank.text_positive, bank.logit_scale), cache)


class APET(CacheMethod):
    """Trains a residual for each class and a weight for each image of APE's cache."""

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
