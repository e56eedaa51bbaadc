"""APE-T: APE with trained class residuals and cache weights.

Zhu, Zhang, He, Zhou, Wang, Zhao, Gao: Not All Features Matter: Enhancing Few-shot CLIP with Adaptive Prior Refinement.
ICCV 2023.

    z = tau * f . (t_k + r_k) + alpha * sum over the training images i of class k of
                                        w_i * exp(-beta * (1 - f . (F_i + r_k)))

Each class has one residual `r_k`, which moves its text feature and its images alike; it is trained on the channels that
APE keeps and is 0 on the others. Each image has a weight `w_i`. They start at 0 and 1 and are trained with
cross-entropy; the moved features are not normalised again. As the released code is written: the channels are chosen by
the text features alone, AdamW, a cosine schedule by step without a warm-up, batches of 256, and the number of channels
(`training_feat_num`), epochs, learning rate and start values of its configuration for each data set. Alpha and beta are
then searched on val.

Distance from the original: the released file does not run as it is. It reads a key that no configuration has, takes
APE's number of channels where the residual has another, and takes the channels that APE chose by text and images if
they are stored. The authors keep the epoch that is best on val, here the last one counts. The search is that of
`ape.py`. They train in half precision, here it is single. They augment the images anew in each epoch; here each epoch
draws one of the bank's views of every image.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from yacs.config import CfgNode

from ..features.bank import FeatureBank
from ..method.cache import FoldedClassifier, affinities, cache_logits
from ..training.batches import Batch
from ..training.schedule import cosine
from .ape import APE, refine
from .base import Defaults, FittedMethod, Method
from .cache_search import search
from .training import batches, by_dataset, train


class APET(Method):
    """Trains a residual for each class and a weight for each image of APE's cache."""

    defaults: ClassVar[Defaults] = {
        # Rows are [data set, value]
        "ALPHA": APE.defaults["ALPHA"],  # weight of the cache logits in training; a search starts here
        "BETA": 1.0,  # sharpness of the affinities in training; a search starts here
        "CHANNELS": [  # share of the channels that is kept
            ["", 800 / 1024],
            ["Caltech101", 900 / 1024],
            ["DescribableTextures", 700 / 1024],
            ["EuroSAT", 900 / 1024],
            ["FGVCAircraft", 900 / 1024],
            ["Food101", 900 / 1024],
            ["ImageNet", 500 / 1024],
        ],
        "WEIGHTS": [["", [0.2, 0.8]]],  # [w_1, w_2] of APE: of the similarity and of the variance
        "LR": [["", 1e-3], ["Food101", 1e-4], ["ImageNet", 1e-4], ["OxfordPets", 1e-4], ["SUN397", 1e-4]],  # AdamW's
        "EPOCHS": [["", 30], ["DescribableTextures", 20], ["EuroSAT", 200], ["ImageNet", 20], ["OxfordFlowers", 60]],
        "EPS": [["", 1e-3], ["OxfordPets", 2e-3], ["StanfordCars", 5e-3], ["UCF101", 2e-3]],  # AdamW's
        "BATCH_SIZE": 256,  # images per step
        "WEIGHT_DECAY": 0.1,  # AdamW's, relative to the learning rate
        "SEARCH": True,  # choose ALPHA and BETA on val, if there are val images
        # Where the grid ends; rows [data set, [largest ALPHA, largest BETA]]
        "SEARCH_SCALE": [[name, scale[:2]] for name, scale in APE.defaults["SEARCH_SCALE"]],
        "SEARCH_STEP": [20, 20],  # how many values of ALPHA and BETA the grid holds
    }

    def fit(self, bank: FeatureBank, options: CfgNode, seed: int, backbone: object = None) -> FittedMethod:
        """Trains K * channels + N weights; `seed` orders the batches and draws the views."""
        alpha, rate, epochs, eps = (by_dataset(key, options[key], bank) for key in ("ALPHA", "LR", "EPOCHS", "EPS"))
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

        def logits(features: Tensor, alpha: float, beta: float) -> Tensor:
            return text_of(features) + alpha * cache_of(features, beta)

        def loss(batch: Batch) -> Tensor:
            return F.cross_entropy(logits(batch.features, start["ALPHA"], start["BETA"]), batch.labels)

        start = {"ALPHA": alpha, "BETA": options.BETA}
        optimizer = torch.optim.AdamW([residual, weights], lr=rate, eps=eps, weight_decay=options.WEIGHT_DECAY)
        data = batches(bank, options.BATCH_SIZE, seed)
        steps = train(optimizer, loss, data, epochs, cosine(epochs * data.steps_per_epoch))
        for parameter in (residual, weights):
            parameter.requires_grad_(False)
        (alpha, beta), selected = search(bank, options, start, text_of, cache_of)
        return FittedMethod(
            lambda features: logits(features, alpha, beta),
            num_parameters=residual.numel() + weights.numel(),
            epochs=epochs,
            steps=steps,
            selected=selected,
            classifier=FoldedClassifier(
                weights=bank.logit_scale * (text + residuals()),
                keys=keys + residuals()[labels],
                labels=labels,
                key_weights=weights,
                alpha=alpha,
                beta=beta,
            ),
        )
