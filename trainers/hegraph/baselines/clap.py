"""CLAP: class-adaptive linear probing, which holds each class near its text.

Silva-Rodriguez, Hajimiri, Ben Ayed, Dolz: A Closer Look at the Few-Shot Adaptation of Large Vision-Language Models.
CVPR 2024.

    z = tau * cos(f, w_k)
    minimise cross-entropy + mean over k of lambda_k * |w_k - t_k|^2
    lambda_k = mean over the images of class k of the probability that zero-shot CLIP gives to k

The prototypes `w_k` start at the text features `t_k`, which keep the norm that the text tower gives them (where a bank
does not hold it, see `features/text.py`). The multipliers are computed once. As in the released code: SGD, Dassl's
cosine by epoch with one warm-up epoch, and 300 epochs for any number of shots, of which the last counts.

Distance from the original: it draws each epoch's batches, as many full ones as the images fill but at least one, from
20 encoded views of all images together. A class without images has the mean multiplier of the others.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from ..features.bank import FeatureBank
from ..features.text import text_with_norm
from ..method.cache import text_logits
from .base import Defaults, Options
from .trained import Trainable, TrainedClassifier


class CLAP(TrainedClassifier):
    """Trains a prototype for each class, which a penalty holds near the text feature."""

    defaults: ClassVar[Defaults] = {
        "LR": 0.1,  # SGD's learning rate
        "EPOCHS": 300,
        "BATCH_SIZE": 256,  # images per step
        "MOMENTUM": 0.9,
        "WEIGHT_DECAY": 0.0,
        "WARMUP_EPOCHS": 1,
        "WARMUP_LR": 1e-5,
    }

    def start(self, bank: FeatureBank, options: Options, seed: int, backbone: object) -> Trainable:
        """K * d numbers."""
        text, multipliers = text_with_norm(bank), zero_shot_confidence(bank)
        prototypes = text.clone().requires_grad_()

        def penalty() -> Tensor:
            return (multipliers * (prototypes - text).square().sum(dim=1)).mean()

        return Trainable([prototypes], lambda: prototypes, penalty=penalty)


def zero_shot_confidence(bank: FeatureBank) -> Tensor:
    """The multipliers `lambda_k`, shape `[K]`."""
    views, num_classes = bank.train_features, len(bank.text_positive)
    probabilities = text_logits(views, bank.text_positive, bank.logit_scale).softmax(dim=-1)  # [V, N, K]
    own = probabilities.mean(dim=0).gather(1, bank.train_labels[:, None])[:, 0]  # [N]
    counts = bank.train_labels.bincount(minlength=num_classes)
    means = own.new_zeros(num_classes).index_add(0, bank.train_labels, own) / counts
    return torch.where(counts > 0, means, means[counts > 0].mean())
