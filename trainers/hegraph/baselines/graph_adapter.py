"""GraphAdapter: text features that look at two graphs of classes.

Li, Lian, Lu, Bai, Chen, Wang: GraphAdapter: Tuning Vision-Language Models With Dual Knowledge Graph. NeurIPS 2023.

    z = tau * cos(f, beta * t_k + (1 - beta) * mean over the groups g of g_k)
    g_k = alpha * GCN_text(t_k; the text features of g) + (1 - alpha) * GCN_image(t_k; the image means of g)
    GCN(t_k; n_1 ... n_m) = tanh(sum over j of A_0j * n_j W + b_k),  n_0 = t_k

The text features `t_k` keep the norm that the text tower gives them (where a bank does not hold it, see
`features/text.py`). Class k is in group k mod 4. For each class and group there is a graph, whose nodes are the class
and the m classes of the group. A is `D^-1/2 (relu(cos) + I) D^-1/2` over those m + 1 nodes, D holds the row sums; it
does not change. The matrices W, one for each of the two graphs, and the biases b of the classes are trained. As in the
released file: alpha 0.7, Dassl's weight decay, W starts uniform within 1 / sqrt(d), b at 0. As in the paper: Adam,
learning rate 1e-3, a cosine, 100 epochs.

Distance from the original: the released file does not run (W is 512 wide whatever d is, K must be a multiple of 4, all
classes need equally many shots, an import is missing); here K, d and the shots of each class are free. What the file
leaves to a configuration that was not released is 0.7 for beta, and TaskRes's batches and warm-up. The original takes
the images' features as the image tower gives them; a bank holds them with unit norm, so the image means are multiplied
by the mean norm of the text features.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..features.bank import FeatureBank
from ..features.text import text_with_norm
from ..utils.errors import UserError
from .base import Defaults, Options
from .trained import Trainable, TrainedClassifier


class GraphAdapter(TrainedClassifier):
    """Trains a graph convolution over text features and one over image features."""

    defaults: ClassVar[Defaults] = {
        "ALPHA": 0.7,  # weight of the text's graph; the images' graph has the rest
        "BETA": 0.7,  # weight of the text feature; the graphs have the rest
        "GROUPS": 4,  # number of groups of classes; if there are fewer classes, their number
        "LR": 1e-3,  # Adam's learning rate
        "EPOCHS": 100,
        "BATCH_SIZE": 256,  # images per step
        "WEIGHT_DECAY": 5e-4,  # Adam's, which is added to the gradient (not decoupled, as in AdamW)
        "WARMUP_EPOCHS": 1,
        "WARMUP_LR": 1e-5,
    }

    def start(self, bank: FeatureBank, options: Options, seed: int, backbone: object) -> Trainable:
        """2 * (d + K) * d weights, which `seed` initialises."""
        text, (num_classes, width) = text_with_norm(bank), bank.text_positive.shape
        groups = min(options.GROUPS, num_classes)
        if groups < 1:
            raise UserError(f"GROUPS must be at least 1, got {groups}")
        if not (0 <= options.ALPHA <= 1 and 0 <= options.BETA <= 1):
            raise UserError(f"ALPHA and BETA must lie in 0 ... 1, got {options.ALPHA} and {options.BETA}")
        images = class_means(bank) * text.norm(dim=-1).mean()
        gathered = [
            torch.stack([gather(text, nodes[group::groups]) for group in range(groups)])  # [groups, K, d]
            for nodes in (text, images)
        ]
        generator = torch.Generator().manual_seed(seed)
        start = (2 * torch.rand(2, width, width, generator=generator) - 1) / width**0.5
        weights = start.to(text.device).requires_grad_()
        biases = text.new_zeros(2, num_classes, width).requires_grad_()

        def class_features() -> Tensor:
            of_text, of_images = (
                (nodes @ weight + bias).tanh() for nodes, weight, bias in zip(gathered, weights, biases)
            )
            graph = (options.ALPHA * of_text + (1 - options.ALPHA) * of_images).mean(dim=0)
            return options.BETA * text + (1 - options.BETA) * graph

        return Trainable([weights, biases], class_features)


def class_means(bank: FeatureBank) -> Tensor:
    """The mean image feature of every class, shape `[K, d]`; 0 for a class without images."""
    sums = torch.zeros_like(bank.text_positive).index_add(0, bank.train_labels, bank.cache_keys())
    return sums / bank.train_labels.bincount(minlength=len(sums)).clamp_min(1)[:, None]


def gather(classes: Tensor, nodes: Tensor) -> Tensor:
    """`sum over j of A_0j * n_j`, shape `[K, d]`: each class `[K, d]` is node 0 of a graph with the same other nodes
    `[m, d]`.
    """
    unit = F.normalize(nodes, dim=-1)
    to_nodes = (F.normalize(classes, dim=-1) @ unit.t()).relu()  # [K, m]
    own_degree = 2 + to_nodes.sum(dim=1, keepdim=True)  # 2: the cosine of a node with itself is 1, and I adds 1
    degrees = to_nodes + (unit @ unit.t()).relu().sum(dim=1) + 1  # [K, m]
    return 2 / own_degree * classes + to_nodes / (own_degree * degrees).sqrt() @ nodes
