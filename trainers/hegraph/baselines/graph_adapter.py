"""GraphAdapter: text features that look at two graphs of classes.

Li, Lian, Lu, Bai, Chen, Wang: GraphAdapter: Tuning Vision-Language Models With Dual Knowledge Graph. NeurIPS 2023.

    z = tau * cos(f, beta * t_k + (1 - beta) * mean over the groups g of g_k)
    g_k = alpha * GCN_text(t_k; the text features of g) + (1 - alpha) * GCN_image(t_k; the image means of g)
    GCN(t_k; n_1 ... n_m) = tanh(sum over j of A_0j * n_j W + b_k),  n_0 = t_k

Every class is a node of its own beside the m nodes of a group; classes fall into 4 groups, every fourth into one. A is
`D^-1/2 (relu(cos) + I) D^-1/2` over those m + 1 nodes, D the row sums; it stays. W, one per graph, and the class biases
b are trained with cross-entropy. As in the released file: alpha 0.7, Dassl's weight decay, W uniform within 1 /
sqrt(d), b from 0. As in the paper: Adam, learning rate 1e-3, a cosine schedule, 100 epochs.

Away from the original: its file does not run (W is 512 wide whatever d is, K must be a multiple of 4, classes need
equal shots, an import is missing); here K, d and the classes' shots are free. It leaves beta, batches and warm-up to a
configuration that was not released: 0.7 for every data set here, and TaskRes's 256 and one epoch. It takes the towers'
features as they are, a bank's are unit-norm. Row 0 of A, which does not change, is computed once. The original augments
the images anew in each epoch; here each epoch draws one of the bank's views of every image.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from yacs.config import CfgNode

from ..features import FeatureBank
from ..method.heads import text_logits
from ..training.batches import Batch
from ..utils.errors import UserError
from .base import Fitted
from .training import batches, cosine_by_epoch, train

DEFAULTS = {
    "ALPHA": 0.7,  # weight of the text's graph; the images' has the rest
    "BETA": 0.7,  # weight of the text feature; the graphs have the rest
    "GROUPS": 4,  # of classes; at most as many as there are classes
    "LR": 1e-3,  # Adam's learning rate
    "EPOCHS": 100,
    "BATCH_SIZE": 256,  # images per step
    "WEIGHT_DECAY": 5e-4,  # added to the gradient, as Adam without W does
    "WARMUP_EPOCHS": 1,
    "WARMUP_LR": 1e-5,
}


def fit(bank: FeatureBank, options: CfgNode, seed: int) -> Fitted:
    """Trains 2 * (d + K) * d weights; `seed` starts them, orders the batches and draws the views."""
    text, (num_classes, width) = bank.text_positive, bank.text_positive.shape
    groups = min(options.GROUPS, num_classes)
    if groups < 1:
        raise UserError(f"GROUPS must be at least 1, got {groups}")
    if not (0 <= options.ALPHA <= 1 and 0 <= options.BETA <= 1):
        raise UserError(f"ALPHA and BETA must lie in 0 ... 1, got {options.ALPHA} and {options.BETA}")
    means = class_means(bank)
    # What the two GCNs multiply with their W, of every group and class: [groups, K, d]
    by_text, by_images = (
        torch.stack([gather(text, nodes[group::groups]) for group in range(groups)]) for nodes in (text, means)
    )
    generator = torch.Generator().manual_seed(seed)
    start = (2 * torch.rand(2, width, width, generator=generator) - 1) / width**0.5
    weights = start.to(text.device).requires_grad_()
    biases = text.new_zeros(2, num_classes, width).requires_grad_()

    def class_features() -> Tensor:
        of_text, of_images = (
            (nodes @ weight + bias).tanh() for nodes, weight, bias in zip((by_text, by_images), weights, biases)
        )
        graph = (options.ALPHA * of_text + (1 - options.ALPHA) * of_images).mean(dim=0)
        return options.BETA * text + (1 - options.BETA) * graph

    def loss(batch: Batch) -> Tensor:
        return F.cross_entropy(text_logits(batch.features, class_features(), bank.logit_scale), batch.labels)

    optimizer = torch.optim.Adam([weights, biases], lr=options.LR, weight_decay=options.WEIGHT_DECAY)
    data = batches(bank, options.BATCH_SIZE, seed)
    schedule = cosine_by_epoch(options.EPOCHS, data.steps_per_epoch, options.WARMUP_EPOCHS, options.WARMUP_LR)
    steps = train(optimizer, loss, data, options.EPOCHS, schedule)
    with torch.no_grad():
        learned = class_features()
    return Fitted(
        lambda features: text_logits(features, learned, bank.logit_scale),
        num_parameters=weights.numel() + biases.numel(),
        epochs=options.EPOCHS,
        steps=steps,
    )


def class_means(bank: FeatureBank) -> Tensor:
    """The mean image feature of every class, shape `[K, d]`; 0 for a class without images."""
    sums = torch.zeros_like(bank.text_positive).index_add(0, bank.train_labels, bank.cache_keys())
    return sums / bank.train_labels.bincount(minlength=len(sums)).clamp_min(1)[:, None]


def gather(classes: Tensor, nodes: Tensor) -> Tensor:
    """`sum over j of A_0j * n_j` for every class as node 0 of a graph of its own.

    Args:
        classes: Shape `[K, d]`.
        nodes: The other nodes of all graphs, shape `[m, d]`.

    Returns:
        Shape `[K, d]`.
    """
    unit = F.normalize(nodes, dim=-1)
    to_nodes = (F.normalize(classes, dim=-1) @ unit.t()).relu()  # [K, m]
    own_degree = 2 + to_nodes.sum(dim=1, keepdim=True)  # a node is at 1 to itself, and so is I
    degrees = to_nodes + (unit @ unit.t()).relu().sum(dim=1) + 1  # [K, m]
    return 2 / own_degree * classes + to_nodes / (own_degree * degrees).sqrt() @ nodes
