"""Tip-Adapter-F: Tip-Adapter with trained keys.

Zhang, Fang, Zhang, Gao, Li, Dai, Qiao, Li: Tip-Adapter: Training-free Adaption of CLIP for Few-shot Classification.
ECCV 2022.

    z = tau * cos(f, t_k) + alpha * sum over the training images i of class k of exp(-beta * (1 - f . F_i))

The keys `F_i` start as Tip-Adapter's and are trained with cross-entropy. They are not normalised again, so `f . F_i` is
no cosine after the first step. As in the released code: AdamW, a cosine schedule by step without a warm-up, batches of
256, and 20 epochs (100 on EuroSAT) with beta 1 and that code's alpha for each data set; both are then searched on val.

Distance from the original: the authors test after every epoch, keep the epoch that is best on test, and report the
better on test of before and after the search; here the last epoch counts, after the search. The search is
Tip-Adapter's, on the few-shot val split. It starts at the values that the keys were trained with, which stay if there
are no val images. The authors augment the images anew in each epoch; here each epoch draws one of the bank's views of
every image.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from yacs.config import CfgNode

from ..features.bank import FeatureBank
from ..method.cache import affinities, cache_logits, text_logits
from ..training.batches import Batch
from ..training.schedule import cosine
from .base import Defaults, FittedMethod, Method, cosine_classifier
from .cache_search import search
from .tip_adapter import ORDER, SEARCH
from .training import batches, by_dataset, train


class TipAdapterF(Method):
    """Trains the cached image features of Tip-Adapter."""

    defaults: ClassVar[Defaults] = {
        # Weight of the cache logits in training; a search starts here; rows [data set, value]
        "ALPHA": [
            ["", 1.17],  # the authors' value for ImageNet, Food101, OxfordPets and SUN397
            ["Caltech101", 3.0],
            ["DescribableTextures", 2.0],
            ["EuroSAT", 2.0],
            ["FGVCAircraft", 5.0],
            ["OxfordFlowers", 10.0],
            ["StanfordCars", 3.0],
            ["UCF101", 3.0],
        ],
        "BETA": 1.0,  # sharpness of the affinities in training; a search starts here
        "LR": 1e-3,  # AdamW's learning rate
        "EPOCHS": [["", 20], ["EuroSAT", 100]],  # rows [data set, epochs]
        "BATCH_SIZE": 256,  # images per step
        "WEIGHT_DECAY": 0.01,  # AdamW's, relative to the learning rate
        "EPS": 1e-4,  # AdamW's, added to the root of its second moment
        **SEARCH,
    }

    def fit(self, bank: FeatureBank, options: CfgNode, seed: int, backbone: object = None) -> FittedMethod:
        """Trains N * d keys; `seed` orders the batches and draws the views."""
        start = {"ALPHA": by_dataset("ALPHA", options.ALPHA, bank), "BETA": options.BETA}
        epochs = by_dataset("EPOCHS", options.EPOCHS, bank)
        keys = bank.cache_keys().clone().requires_grad_()

        def text_of(features: Tensor) -> Tensor:
            return text_logits(features, bank.text_positive, bank.logit_scale)

        def cache_of(features: Tensor, beta: float) -> Tensor:
            of_images = affinities(features @ keys.t(), beta)  # `cache_affinities` would normalise the keys
            return cache_logits(of_images, bank.train_labels, len(bank.text_positive))

        def logits(features: Tensor, alpha: float, beta: float) -> Tensor:
            return text_of(features) + alpha * cache_of(features, beta)

        def loss(batch: Batch) -> Tensor:
            return F.cross_entropy(logits(batch.features, start["ALPHA"], start["BETA"]), batch.labels)

        optimizer = torch.optim.AdamW([keys], lr=options.LR, eps=options.EPS, weight_decay=options.WEIGHT_DECAY)
        data = batches(bank, options.BATCH_SIZE, seed)
        steps = train(optimizer, loss, data, epochs, cosine(epochs * data.steps_per_epoch))
        keys.requires_grad_(False)
        (alpha, beta), selected = search(bank, options, start, text_of, cache_of, ORDER)
        text = cosine_classifier(bank.text_positive, bank.logit_scale)
        return FittedMethod(
            lambda features: logits(features, alpha, beta),
            num_parameters=keys.numel(),
            epochs=epochs,
            steps=steps,
            selected=selected,
            classifier=replace(text, keys=keys, labels=bank.train_labels, alpha=alpha, beta=beta),
        )
