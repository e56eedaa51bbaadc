"""TaskRes: task residual tuning, with the regular base.

Yu, Lu, Jin, Chen, Wang: Task Residual for Tuning Vision-Language Models. CVPR 2023.

    z = tau * cos(f, t_k + alpha * x_k)

A residual `x_k` per class starts at 0 and is trained with cross-entropy. As in the released code: Adam with Dassl's
weight decay, batches of 256, Dassl's cosine schedule by epoch with one warm-up epoch, alpha 0.5 (1 on OxfordFlowers),
learning rate 2e-3 (2e-4 on ImageNet), 100 epochs (200 from 8 shots). The last epoch counts; nothing is chosen.

Away from the original: it adds the residual to what the text tower returns, whose norm is several times 1; a bank holds
unit-norm features, so the same step of Adam turns a class further, which at one or two shots overfits. For the
original's step, divide ALPHA by that norm. The original augments the images anew in each epoch; here each epoch draws
one of the bank's views of every image. Its enhanced base, other text features that were trained first, is left out.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from yacs.config import CfgNode

from ..features import FeatureBank
from ..method.heads import text_logits
from ..training.batches import Batch
from .base import Fitted
from .training import batches, by_dataset, by_shots, cosine_by_epoch, train

DEFAULTS = {
    "ALPHA": [["", 0.5], ["OxfordFlowers", 1.0]],  # weight of the residual; rows [data set, value]
    "LR": [["", 2e-3], ["ImageNet", 2e-4]],  # Adam's learning rate; rows [data set, value]
    "EPOCHS": [[1, 100], [8, 200]],  # rows [from this many shots, epochs]
    "BATCH_SIZE": 256,  # images per step
    "WEIGHT_DECAY": 5e-4,  # added to the gradient, as Adam without W does
    "WARMUP_EPOCHS": 1,
    "WARMUP_LR": 1e-5,
}


def fit(bank: FeatureBank, options: CfgNode, seed: int) -> Fitted:
    """Trains K * d residuals; `seed` orders the batches and draws the views."""
    alpha, rate = by_dataset("ALPHA", options.ALPHA, bank), by_dataset("LR", options.LR, bank)
    epochs = by_shots("EPOCHS", options.EPOCHS, bank)
    residual = torch.zeros_like(bank.text_positive).requires_grad_()

    def logits(features: Tensor) -> Tensor:
        return text_logits(features, bank.text_positive + alpha * residual, bank.logit_scale)

    def loss(batch: Batch) -> Tensor:
        return F.cross_entropy(logits(batch.features), batch.labels)

    optimizer = torch.optim.Adam([residual], lr=rate, weight_decay=options.WEIGHT_DECAY)
    data = batches(bank, options.BATCH_SIZE, seed)
    schedule = cosine_by_epoch(epochs, data.steps_per_epoch, options.WARMUP_EPOCHS, options.WARMUP_LR)
    steps = train(optimizer, loss, data, epochs, schedule)
    residual.requires_grad_(False)
    return Fitted(logits, num_parameters=residual.numel(), epochs=epochs, steps=steps)
