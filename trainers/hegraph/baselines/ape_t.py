"""APE-T: APE with trained class residuals and cache weights.

Zhu, Zhang, He, Zhou, Wang, Zhao, Gao: Not All Features Matter: Enhancing Few-shot CLIP with Adaptive Prior Refinement.
ICCV 2023.

    z = tau * f . (t_k + r_k) + alpha * sum over the training images i of class k of
                                        w_i * exp(-beta * (1 - f . (F_i + r_k)))

One residual `r_k` per class, on the channels that APE keeps and 0 elsewhere, moves the class's text feature and its
images alike; every image has a weight `w_i`. They start at 0 and 1 and are trained with cross-entropy; nothing is
normalised again. As in the released code: channels by the text alone, AdamW, a cosine schedule by step without warm-up,
batches of 256, that code's number of channels, epochs, rate and start values of each data set; alpha and beta are then
searched on val.

Away from the original: the authors keep the epoch that is best on val, here the last one counts; the search is that of
`ape.py`. They train in half precision, here it is single. They augment the images anew in each epoch; here each epoch
draws one of the bank's views of every image.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from yacs.config import CfgNode

from ..features import FeatureBank
from ..method.heads import cache_logits
from ..training.batches import Batch
from .ape import DEFAULTS as APE
from .ape import refine, search
from .base import Fitted
from .training import batches, by_dataset, cosine, train

DEFAULTS = {
    # Rows [data set, value]
    "ALPHA": APE["ALPHA"],  # weight of the cache logits in training, where a search starts
    "BETA": 1.0,  # sharpness of the affinities in training, where a search starts
    "CHANNELS": [  # share of the channels that is kept
        ["", 800 / 1024],
        ["Caltech101", 900 / 1024],
        ["DescribableTextures", 700 / 1024],
        ["EuroSAT", 900 / 1024],
        ["FGVCAircraft", 900 / 1024],
        ["Food101", 900 / 1024],
        ["ImageNet", 500 / 1024],
    ],
    "WEIGHTS": [["", [0.2, 0.8]]],  # of the similarity and of the variance
    "LR": [["", 1e-3], ["Food101", 1e-4], ["ImageNet", 1e-4], ["OxfordPets", 1e-4], ["SUN397", 1e-4]],  # AdamW's
    "EPOCHS": [["", 30], ["DescribableTextures", 20], ["EuroSAT", 200], ["ImageNet", 20], ["OxfordFlowers", 60]],
    "EPS": [["", 1e-3], ["OxfordPets", 2e-3], ["StanfordCars", 5e-3], ["UCF101", 2e-3]],  # AdamW's
    "BATCH_SIZE": 256,  # images per step
    "WEIGHT_DECAY": 0.1,  # AdamW's, per unit of learning rate
    "SEARCH": True,  # choose ALPHA and BETA on val, where there is val
    "SEARCH_SCALE": [[name, scale[:2]] for name, scale in APE["SEARCH_SCALE"]],  # [largest ALPHA, largest BETA]
    "SEARCH_STEP": [20, 20],  # how many ALPHAs and BETAs the grid holds
}


def fit(bank: FeatureBank, options: CfgNode, seed: int) -> Fitted:
    """Trains K * channels + N weights; `seed` orders the batches and draws the views."""
    alpha, rate, epochs, eps = (by_dataset(key, options[key], bank) for key in ("ALPHA", "LR", "EPOCHS", "EPS"))
    kept, keys, labels, text = (
        refine(bank, options, images=False),
        bank.cache_keys(),
        bank.train_labels,
        bank.text_positive,
    )
    residual = text.new_zeros(len(text), len(kept)).requires_grad_()
    weights = text.new_ones(len(labels)).requires_grad_()

    def moved() -> Tensor:
        return torch.zeros_like(text).index_copy(1, kept, residual)

    def text_of(features: Tensor) -> Tensor:
        return bank.logit_scale * features @ (text + moved()).t()

    def cache_of(features: Tensor, beta: float) -> Tensor:
        affinities = (-beta * (1 - features @ (keys + moved()[labels]).t())).exp()
        return cache_logits(affinities * weights, labels, len(text))

    def loss(batch: Batch) -> Tensor:
        return F.cross_entropy(text_of(batch.features) + alpha * cache_of(batch.features, options.BETA), batch.labels)

    parameters = [residual, weights]
    optimizer = torch.optim.AdamW(parameters, lr=rate, eps=eps, weight_decay=options.WEIGHT_DECAY)
    data = batches(bank, options.BATCH_SIZE, seed)
    steps = train(optimizer, loss, data, epochs, cosine(epochs * data.steps_per_epoch))
    for parameter in parameters:
        parameter.requires_grad_(False)
    (alpha, beta), selected = search(bank, options, ("ALPHA", "BETA"), (alpha, options.BETA), text_of, cache_of)
    return Fitted(
        lambda features: text_of(features) + alpha * cache_of(features, beta),
        num_parameters=residual.numel() + weights.numel(),
        epochs=epochs,
        steps=steps,
        selected=selected,
    )
