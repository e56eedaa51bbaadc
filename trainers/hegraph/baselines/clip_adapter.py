"""CLIP-Adapter: a bottleneck on the image features.

Gao, Geng, Zhang, Ma, Fang, Zhang, Li, Qiao: CLIP-Adapter: Better Vision-Language Models with Feature Adapters.
International Journal of Computer Vision, 2024 (arXiv 2110.04544).

    z = tau * cos(r * A(f) + (1 - r) * f, t_k)        A(f) = relu(W_2 relu(W_1 f))

`W_1` narrows the features to a quarter of their width, and neither layer has a bias. As in the released code, the
residual ratio r is 0.2 for every data set, and the text has no adapter. That code is trained as CoOp's is on ImageNet;
for other data sets nothing is released, and CoOp's configuration is taken: SGD with learning rate 2e-3, batches of 32,
Dassl's cosine schedule by epoch with one warm-up epoch, and CoOp's number of epochs by shots (on ImageNet it is 50 for
any number of shots; set EPOCHS [[1, 50]] there).

Distance from the original: the paper also reports ratios that were chosen for each data set by test accuracy; here the
ratio is fixed. The original augments the images anew in each epoch; here each epoch draws one of the bank's views of
every image. It leaves out the last batch of an epoch if that is not full, here it is a step as well. Its adapter is for
features of 1,024 alone. It makes no difference that the bank's features are unit-norm: A(c f) = c A(f).
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from yacs.config import CfgNode

from ..features.bank import FeatureBank
from ..method.cache import text_logits
from ..training.batches import Batch
from ..utils.errors import UserError
from .base import Defaults, FittedMethod, Method
from .coop import RECIPE
from .training import by_shots, train_with_warmup


class CLIPAdapter(Method):
    """Trains a two-layer network on the image features."""

    defaults: ClassVar[Defaults] = {
        "RATIO": 0.2,  # share of the adapted features in the sum
        "REDUCTION": 4,  # width of the features divided by the width of the bottleneck
        **RECIPE,
    }
    not_saved: ClassVar[str] = "its adapter changes the feature of the image to classify"

    def fit(self, bank: FeatureBank, options: CfgNode, seed: int, backbone: object = None) -> FittedMethod:
        """Trains two matrices; `seed` initialises them, orders the batches and draws the views."""
        width = bank.text_positive.shape[1]
        if not 1 <= options.REDUCTION <= width:
            raise UserError(f"REDUCTION must lie in 1 ... {width}, the width of the features, got {options.REDUCTION}")
        if not 0 <= options.RATIO <= 1:
            raise UserError(f"RATIO must lie in 0 ... 1, got {options.RATIO}")
        epochs = by_shots("EPOCHS", options.EPOCHS, bank)
        with torch.random.fork_rng(devices=[]):  # the weights are drawn on the CPU
            torch.manual_seed(seed)
            adapter = Adapter(width, width // options.REDUCTION).to(bank.text_positive.device)

        def logits(features: Tensor, text: Tensor = bank.text_positive) -> Tensor:
            mixed = options.RATIO * adapter(features) + (1 - options.RATIO) * features
            return text_logits(F.normalize(mixed, dim=-1), text, bank.logit_scale)

        def loss(batch: Batch) -> Tensor:
            return F.cross_entropy(logits(batch.features), batch.labels)

        optimizer = torch.optim.SGD(
            adapter.parameters(),
            lr=options.LR,
            momentum=options.MOMENTUM,
            weight_decay=options.WEIGHT_DECAY,
            fused=True,  # the same numbers, sooner
        )
        steps = train_with_warmup(optimizer, loss, bank, options, epochs, seed)
        adapter.requires_grad_(False)
        return FittedMethod(
            logits,
            num_parameters=sum(p.numel() for p in adapter.parameters()),
            epochs=epochs,
            steps=steps,
            transfer=lambda other: logits(other.features_to_classify, other.text_positive),
        )


class Adapter(nn.Sequential):
    """`A(f)`: `[B, width]` to `[B, width]`, non-negative."""

    def __init__(self, width: int, bottleneck: int) -> None:
        down, up = nn.Linear(width, bottleneck, bias=False), nn.Linear(bottleneck, width, bias=False)
        super().__init__(down, nn.ReLU(), up, nn.ReLU())
