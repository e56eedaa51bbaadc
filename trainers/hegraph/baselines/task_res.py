"""TaskRes: task residual tuning, with the regular base.

Yu, Lu, Jin, Chen, Wang: Task Residual for Tuning Vision-Language Models. CVPR 2023.

    z = tau * cos(f, t_k + alpha * x_k)

Each class has a residual `x_k`, which starts at 0 and is trained with cross-entropy. `t_k` keeps the norm that the text
tower gives it, since a step of Adam turns a longer feature by a smaller angle (where a bank does not hold it, see
`features/text.py`). The options are those of paper and released code. The residuals after the last epoch count.

Distance from the original: its enhanced base, which is other text features, trained beforehand, is left out.
"""

from __future__ import annotations

from typing import ClassVar

import torch

from ..features.bank import FeatureBank
from ..features.text import text_with_norm
from .base import Defaults, Options, by_dataset, value_for_task
from .trained import Trainable, TrainedClassifier


class TaskRes(TrainedClassifier):
    """Trains a residual on the text feature of each class."""

    defaults: ClassVar[Defaults] = {
        "ALPHA": by_dataset(0.5, OxfordFlowers=1.0),  # weight of the residual
        "LR": by_dataset(2e-3, ImageNet=2e-4),  # Adam's learning rate
        "EPOCHS": [[1, 100], [8, 200]],  # rows [from this many shots, epochs]
        "BATCH_SIZE": 256,  # images per step
        "WEIGHT_DECAY": 5e-4,  # Adam's, which is added to the gradient (not decoupled, as in AdamW)
        "WARMUP_EPOCHS": 1,
        "WARMUP_LR": 1e-5,
    }

    def start(self, bank: FeatureBank, options: Options, seed: int, backbone: object) -> Trainable:
        """K * d numbers."""
        alpha, text = value_for_task(options, "ALPHA", bank), text_with_norm(bank)
        residual = torch.zeros_like(text).requires_grad_()
        return Trainable([residual], lambda: text + alpha * residual)
