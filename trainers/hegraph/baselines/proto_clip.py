"""Proto-CLIP-F-Q^T: learned image and text prototypes, and an adapter on the query.

P, Palanisamy, Chao, Du, Xiang: Proto-CLIP: Vision-Language Prototypical Network for Few-Shot Learning. IROS 2024.

    P(k | f) = alpha * softmax_k(-beta |A(f) - c_k|^2) + (1 - alpha) * softmax_k(-beta |A(f) - t_k|^2)

`c_k` is the mean of the class's image memory, `t_k` its text memory, all of norm 1; A is an adapter. Memories and
adapter are trained with the negative log of P plus a contrastive loss that aligns c and t, both ways. As in the
released code: AdamW at a rate that stays at 1e-4, 2,000 epochs, batches of 1,024, contrastive temperature 0.1. On val
it chooses alpha and beta for what the memories start at, then the epoch, the last of equals, then alpha and beta again.

Away from the original: val is asked every 50 epochs, theirs after each. They name alpha, beta, the adapter and whether
the text memory is trained for each data set. Here alpha and beta come from val; without val images the last epoch
counts, of fewer, and both it and alpha, by shots, are about the medians of what val chose on three banks of ViT-B/32
features (Caltech101, OxfordPets, UCF101), beta is 9, the middle of theirs; the adapter is their MLP for all, since
their convolutions are slow on a CPU; the text memory is trained. The MLP's output is divided by the root of its width,
so that it and the unit-norm feature count as 0.2 to 0.8. Of val's equal alphas and betas the nearest to the start
values are taken, theirs are the first. They augment the images anew in each epoch; here each epoch draws one of the
bank's views of every image.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from yacs.config import CfgNode

from ..features import FeatureBank
from ..training.batches import Batch
from ..utils.errors import UserError
from .base import Fitted
from .training import batches, by_shots, choose, has_val, train, val_accuracy

DEFAULTS = {
    "ALPHA": 0.5,  # weight of the image prototypes, where a search starts
    "ALPHA_WITHOUT_VAL": [[1, 0.1], [4, 0.2], [16, 0.4]],  # rows [from this many shots, value]
    "BETA": 9.0,  # sharpness; where a search starts, and stays without val
    "SEARCH": True,  # choose ALPHA and BETA on val, where there is val, before training and after
    "RATIO": 0.2,  # of the MLP's output in the adapted feature
    "REDUCTION": 4,  # width of the features over that of the MLP's bottleneck
    "TEMPERATURE": 0.1,  # of the contrastive loss
    "LR": 1e-4,  # AdamW's learning rate, which stays
    "EPOCHS": 2000,  # where there is val, to choose one of them
    "ASK_EVERY": 50,  # epochs between two looks at val
    "EPOCHS_WITHOUT_VAL": [[1, 100], [4, 250], [16, 750]],  # rows [from this many shots, epochs]
    "BATCH_SIZE": 1024,  # images per step
    "WEIGHT_DECAY": 0.05,  # AdamW's, per unit of learning rate
    "EPS": 1e-4,  # AdamW's, added to the root of its second moment
}

ALPHAS = [i / 10 for i in range(11)]
BETAS = [i / 10 for i in range(1, 10)] + [float(i) for i in range(1, 21)]


def fit(bank: FeatureBank, options: CfgNode, seed: int) -> Fitted:
    """Trains (N + K) * d memories and the adapter; `seed` starts it, orders the batches and draws the views."""
    if not 0 <= options.ALPHA <= 1 or options.BETA <= 0 or options.TEMPERATURE <= 0:
        values = f"{options.ALPHA}, {options.BETA} and {options.TEMPERATURE}"
        raise UserError(f"ALPHA must lie in 0 ... 1, and BETA and TEMPERATURE be above 0, got {values}")
    images, text = bank.cache_keys().requires_grad_(), bank.text_positive.clone().requires_grad_()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        adapter = QueryAdapter(text.shape[1], options.REDUCTION, options.RATIO).to(text.device)

    def prototypes() -> tuple[Tensor, Tensor]:
        means = torch.zeros_like(text).index_add(0, bank.train_labels, F.normalize(images, dim=-1))
        return F.normalize(means, dim=-1), F.normalize(text, dim=-1)

    def logits(features: Tensor, alpha: float, beta: float) -> Tensor:
        return log_posterior(adapter(features), *prototypes(), alpha, beta)

    with torch.no_grad():
        c, t = prototypes()
        (alpha, beta), before = search(bank, options, lambda x, *values: log_posterior(x, c, t, *values))

    def loss(batch: Batch) -> Tensor:
        c, t = prototypes()
        log_p, pairs = log_posterior(adapter(batch.features), c, t, alpha, beta), c @ t.t() / options.TEMPERATURE
        classes = torch.arange(len(t), device=t.device)
        aligned = F.cross_entropy(pairs, classes) + F.cross_entropy(pairs.t(), classes)
        return F.nll_loss(log_p, batch.labels) + aligned

    parameters = [images, text, *adapter.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=options.LR, eps=options.EPS, weight_decay=options.WEIGHT_DECAY)
    data, asked = batches(bank, options.BATCH_SIZE, seed), Asked(parameters)
    epochs = options.EPOCHS if before else by_shots("EPOCHS_WITHOUT_VAL", options.EPOCHS_WITHOUT_VAL, bank)

    def ask(epoch: int) -> None:
        if before and epoch % options.ASK_EVERY == 0:
            asked.keep(epoch, val_accuracy(lambda x: logits(x, alpha, beta), bank))

    steps = train(optimizer, loss, data, epochs, lambda step, peak: peak, ask)
    for parameter in parameters:
        parameter.requires_grad_(False)
    selected = {"ALPHA, BETA in training": before} if before else {}
    if asked.table:
        selected["EPOCH"] = asked.restore()
        (alpha, beta), selected["ALPHA, BETA at last"] = search(bank, options, logits)
    number = sum(parameter.numel() for parameter in parameters)
    return Fitted(lambda features: logits(features, alpha, beta), number, epochs, steps, selected)


class Asked:
    """The parameters at the epoch that is best on val; of equals, the last."""

    def __init__(self, parameters: list[Tensor]) -> None:
        self.parameters, self.table = parameters, []

    def keep(self, epochs: int, accuracy: float) -> None:
        self.table.append([epochs, round(accuracy, 4)])
        if self.table[-1][1] >= max(row[1] for row in self.table):
            self.epochs, self.best = epochs, [parameter.detach().clone() for parameter in self.parameters]

    def restore(self) -> dict:
        """Sets the parameters back, and returns the entry of `Fitted.selected`."""
        for parameter, best in zip(self.parameters, self.best):
            parameter.copy_(best)
        return {"value": self.epochs, "candidates": self.table}


class QueryAdapter(nn.Module):
    """`A(f)`, an MLP beside the feature: `[B, width]` to unit-norm `[B, width]`."""

    def __init__(self, width: int, reduction: int, ratio: float) -> None:
        super().__init__()
        if not 1 <= reduction <= width or not 0 <= ratio <= 1:
            raise UserError(f"REDUCTION must lie in 1 ... {width} and RATIO in 0 ... 1, got {reduction} and {ratio}")
        narrow = width // reduction
        down, up = nn.Linear(width, narrow, bias=False), nn.Linear(narrow, width, bias=False)
        self.layers = nn.Sequential(down, nn.LayerNorm(narrow), up, nn.LayerNorm(width))
        self.width, self.ratio = width, ratio

    def forward(self, features: Tensor) -> Tensor:
        adapted = self.layers(features) / self.width**0.5
        return F.normalize(self.ratio * adapted + (1 - self.ratio) * features, dim=-1)


def log_posterior(queries: Tensor, images: Tensor, text: Tensor, alpha: float, beta: float) -> Tensor:
    """The log of `P(k | f)`, shape `[B, K]`.

    Args:
        queries: Unit-norm, shape `[B, d]`.
        images, text: Unit-norm prototypes, shape `[K, d]`.
        alpha: Weight of the image prototypes.
        beta: Sharpness.
    """
    # |q - p|^2 = 2 - 2 q . p, and a softmax drops the constant
    by_image, by_text = (((2 * beta) * queries @ p.t()).softmax(dim=1) for p in (images, text))
    return (alpha * by_image + (1 - alpha) * by_text).clamp_min(torch.finfo(queries.dtype).tiny).log()


def search(bank: FeatureBank, options: CfgNode, logits: Callable[..., Tensor]) -> tuple[tuple[float, float], dict]:
    """Alpha and beta that are best on val, and the entry of `Fitted.selected`; without val the fixed ones, and {}."""
    if not (options.SEARCH and has_val(bank)):
        return (by_shots("ALPHA_WITHOUT_VAL", options.ALPHA_WITHOUT_VAL, bank), options.BETA), {}
    start = (options.ALPHA, options.BETA)

    def distance(values: tuple[float, float]) -> float:
        return abs(values[0] - start[0]) + abs(values[1] - start[1]) / BETAS[-1]

    candidates = sorted({start, *itertools.product(ALPHAS, BETAS)}, key=distance)
    return choose(candidates, lambda values: val_accuracy(lambda x: logits(x, *values), bank))
