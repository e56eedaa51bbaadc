"""Tip-Adapter-F: Tip-Adapter with tuned keys.

Zhang, Fang, Zhang, Gao, Li, Dai, Qiao, Li: Tip-Adapter: Training-free Adaption of CLIP for Few-shot Classification.
ECCV 2022.

    z = tau * cos(f, t_k) + alpha * sum over the training images i of class k of exp(-beta * (1 - f . F_i))

The keys `F_i` start as Tip-Adapter's and are trained with cross-entropy; once tuned they are not normalised again, so
`f . F_i` is no cosine. As in the released code: AdamW, a cosine schedule by step without warm-up, batches of 256, 20
epochs (100 on EuroSAT) at that code's alpha of each data set and beta 1, which are then both searched on val.

Away from the original: the authors test after every epoch and keep the best on test; here the last epoch counts. The
search is `tip_adapter.search`, on the few-shot val split, and starts at the values that the keys were trained with,
which stay without val images. The authors augment the images anew in each epoch; here each epoch draws one of the
bank's views of every image.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from yacs.config import CfgNode

from ..features import FeatureBank
from ..method.heads import cache_logits
from ..training.batches import Batch
from .base import Fitted
from .tip_adapter import SEARCH, combine, search
from .training import batches, by_dataset, cosine, train

DEFAULTS = {
    # Weight of the cache logits in training, where a search starts; rows [data set, value]
    "ALPHA": [
        ["", 1.17],  # the authors' for ImageNet, Food101, OxfordPets and SUN397
        ["Caltech101", 3.0],
        ["DescribableTextures", 2.0],
        ["EuroSAT", 2.0],
        ["FGVCAircraft", 5.0],
        ["OxfordFlowers", 10.0],
        ["StanfordCars", 3.0],
        ["UCF101", 3.0],
    ],
    "BETA": 1.0,  # sharpness of the affinities in training, where a search starts
    "LR": 1e-3,  # AdamW's learning rate
    "EPOCHS": [["", 20], ["EuroSAT", 100]],  # rows [data set, epochs]
    "BATCH_SIZE": 256,  # images per step
    "WEIGHT_DECAY": 0.01,  # AdamW's, per unit of learning rate
    "EPS": 1e-4,  # AdamW's, added to the root of its second moment
    **SEARCH,
}


def fit(bank: FeatureBank, options: CfgNode, seed: int) -> Fitted:
    """Trains N * d keys; `seed` orders the batches and draws the views."""
    alpha, epochs = by_dataset("ALPHA", options.ALPHA, bank), by_dataset("EPOCHS", options.EPOCHS, bank)
    keys = bank.cache_keys().requires_grad_()

    def cache_of(features: Tensor, beta: float) -> Tensor:
        affinities = (-beta * (1 - features @ keys.t())).exp()  # heads.cache_affinities would normalise the keys
        return cache_logits(affinities, bank.train_labels, len(bank.text_positive))

    def loss(batch: Batch) -> Tensor:
        return F.cross_entropy(combine(bank, batch.features, cache_of, alpha, options.BETA), batch.labels)

    optimizer = torch.optim.AdamW([keys], lr=options.LR, eps=options.EPS, weight_decay=options.WEIGHT_DECAY)
    data = batches(bank, options.BATCH_SIZE, seed)
    steps = train(optimizer, loss, data, epochs, cosine(epochs * data.steps_per_epoch))
    keys.requires_grad_(False)
    alpha, beta, selected = search(bank, options, cache_of, alpha, options.BETA)
    return Fitted(
        lambda features: combine(bank, features, cache_of, alpha, beta),
        num_parameters=keys.numel(),
        epochs=epochs,
        steps=steps,
        selected=selected,
    )
