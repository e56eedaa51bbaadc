"""CLIP-Adapter: a bottleneck on the image features.

Gao, Geng, Zhang, Ma, Fang, Zhang, Li, Qiao: CLIP-Adapter: Better Vision-Language Models with Feature Adapters.
International Journal of Computer Vision, 2024 (arXiv 2110.04544).

    z = tau * cos(r * A(f) + (1 - r) * f, t_k)        A(f) = relu(W_2 relu(W_1 f))

`W_1` narrows the features to a quarter of their width, and neither layer has a bias. As in the released code, the
residual ratio r is 0.2 for every data set, and the text has no adapter. That code is trained as CoOp's is on ImageNet;
for other data sets nothing is released, and CoOp's configuration is taken (`coop.py`).

Distance from the original: the paper also reports ratios that were chosen for each data set by test accuracy; here the
ratio is fixed. Its adapter is for features of 1,024 alone. That the bank's are unit-norm changes nothing: A(c f) = c
A(f).
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..features.bank import FeatureBank
from ..utils.errors import UserError
from .base import Defaults, Options
from .trained import COOP_TRAINING, Trainable, TrainedClassifier


class CLIPAdapter(TrainedClassifier):
    """Trains a two-layer network on the image features."""

    defaults: ClassVar[Defaults] = {
        "RATIO": 0.2,  # share of the adapted features in the sum
        "REDUCTION": 4,  # width of the features divided by the width of the bottleneck
        **COOP_TRAINING,
    }
    not_saved: ClassVar[str] = "its adapter changes the feature of the image to classify"

    def start(self, bank: FeatureBank, options: Options, seed: int, backbone: object) -> Trainable:
        """Two matrices, which `seed` initialises."""
        width = bank.text_positive.shape[1]
        ratio, reduction = options.RATIO, options.REDUCTION
        if not 1 <= reduction <= width or not 0 <= ratio <= 1:
            raise UserError(f"REDUCTION must lie in 1 ... {width} and RATIO in 0 ... 1, got {reduction} and {ratio}")
        with torch.random.fork_rng(devices=[]):  # the weights are drawn on the CPU
            torch.manual_seed(seed)
            narrow = width // reduction
            down, up = nn.Linear(width, narrow, bias=False), nn.Linear(narrow, width, bias=False)
        adapter = nn.Sequential(down, nn.ReLU(), up, nn.ReLU()).to(bank.text_positive.device)

        def adapted(features: Tensor) -> Tensor:
            return F.normalize(ratio * adapter(features) + (1 - ratio) * features, dim=-1)

        return Trainable(
            list(adapter.parameters()), lambda: bank.text_positive, adapted, transfer=lambda other: other.text_positive
        )
