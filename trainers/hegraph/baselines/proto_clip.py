"""Proto-CLIP-F-Q^T: learned image and text prototypes, and an adapter on the query.

P, Palanisamy, Chao, Du, Xiang: Proto-CLIP: Vision-Language Prototypical Network for Few-Shot Learning. IROS 2024.

    P(k | f) = alpha * softmax_k(-beta |A(f) - c_k|^2) + (1 - alpha) * softmax_k(-beta |A(f) - t_k|^2)

The prototypes have norm 1: `c_k` is the mean of the class's image memory, `t_k` its text memory. The memories start as
the features of the training images and of the text; A is an adapter on the query, the image to classify. All three are
trained with the negative log of P plus a contrastive loss that aligns c with t in both directions. As in the released
code: AdamW at a constant rate, 2,000 epochs, batches of 1,024. Three choices are made on val: alpha and beta for the
memories as they start, then the epoch (the last of equally good ones), then alpha and beta again.

Distance from the original: val is looked at every 50 epochs, in the original after each. The released code trains the
adapter on features as the image tower gives them, and tests it on unit-norm ones; here they are unit-norm in both. The
authors set alpha, beta, the kind of adapter, and whether the text memory is trained, for each data set; here alpha and
beta come from val, of equally good ones the nearest to the start, the text memory is always trained, and the adapter is
always their MLP, whose output is divided by the root of its width, so that it and the unit-norm feature count as 0.2 to
0.8. Without val images beta is 9, the middle of the authors', and alpha and the epochs, by shots, are about the medians
of what val chose on three banks.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..features.bank import FeatureBank
from ..training.batches import Batch
from ..training.choice import accuracy, choose, has_val, val_accuracy, val_images
from .base import SMALLEST, Defaults, FittedMethod, Method, Options, check_numbers, value_for_task
from .trained import BestEpoch, batches, bottleneck, train

ALPHAS = [i / 10 for i in range(11)]
BETAS = [i / 10 for i in range(1, 10)] + [float(i) for i in range(1, 21)]


class ProtoCLIP(Method):
    """Trains an image prototype and a text prototype for each class, and an adapter on the image to classify."""

    defaults: ClassVar[Defaults] = {
        "ALPHA": 0.5,  # weight of the image prototypes, where a search starts
        "ALPHA_WITHOUT_VAL": [[1, 0.1], [4, 0.2], [16, 0.4]],  # rows [from this many shots, value]
        "BETA": 9.0,  # sharpness, where a search starts; without val images it stays
        "SEARCH": True,  # choose ALPHA and BETA on val, before training and after, if there are val images
        "RATIO": 0.2,  # share of the MLP's output in the adapted feature
        "REDUCTION": 4,  # width of the features divided by the width of the MLP's bottleneck
        "TEMPERATURE": 0.1,  # of the contrastive loss
        "LR": 1e-4,  # AdamW's learning rate, which is constant
        "EPOCHS": 2000,  # if there are val images to choose one of them on
        "ASK_EVERY": 50,  # epochs between two looks at val
        "EPOCHS_WITHOUT_VAL": [[1, 100], [4, 250], [16, 750]],  # rows [from this many shots, epochs]
        "BATCH_SIZE": 1024,  # images per step
        "WEIGHT_DECAY": 0.05,  # AdamW's, relative to the learning rate
        "EPS": 1e-4,  # AdamW's, added to the root of its second moment
    }
    not_saved: ClassVar[str] = "its adapter changes the feature of the image to classify"

    def fit(self, bank: FeatureBank, options: Options, seed: int, backbone: object = None) -> FittedMethod:
        check_numbers("ALPHA", [options.ALPHA], 0, 1)
        check_numbers("BETA and TEMPERATURE", [options.BETA, options.TEMPERATURE])
        check_numbers("ASK_EVERY", [options.ASK_EVERY], 1, whole=True)
        model = Prototypes(bank, options, seed)
        (alpha, beta), before = search(bank, options, model.cosines)
        epochs = options.EPOCHS if before else value_for_task(options, "EPOCHS_WITHOUT_VAL", bank)

        def loss(batch: Batch) -> Tensor:
            images, text = model.prototypes()
            queries = model.adapt(batch.features)
            log_p = mixture(queries @ images.t(), queries @ text.t(), alpha, beta)
            # The contrastive loss brings the two prototypes of a class together, from images to text and back
            pairs, classes = images @ text.t() / options.TEMPERATURE, torch.arange(len(text), device=text.device)
            aligned = F.cross_entropy(pairs, classes) + F.cross_entropy(pairs.t(), classes)
            return F.nll_loss(log_p, batch.labels) + aligned

        def logits(features: Tensor) -> Tensor:  # with the alpha and the beta of the moment
            return mixture(*model.cosines(model.adapt(features)), alpha, beta)

        def look_at_val(epoch: int) -> None:
            if before and epoch % options.ASK_EVERY == 0:
                best_epoch.record(epoch, val_accuracy(logits, bank))

        rates = {"lr": options.LR, "eps": options.EPS, "weight_decay": options.WEIGHT_DECAY}
        optimizer = torch.optim.AdamW(model.parameters(), **rates, fused=True)
        data, best_epoch = batches(bank, options.BATCH_SIZE, seed), BestEpoch(model.parameters())
        steps = train(optimizer, loss, data, epochs, lambda step, peak: peak, look_at_val)
        selected = {"ALPHA, BETA in training": before} if before else {}
        if best_epoch.candidates:
            selected["EPOCH"] = best_epoch.restore()
            (alpha, beta), after = search(bank, options, lambda features: model.cosines(model.adapt(features)))
            selected["ALPHA, BETA at last"] = after
        number = sum(parameter.numel() for parameter in model.parameters())
        return FittedMethod(logits, number, epochs, steps, selected)


class Prototypes(nn.Module):
    """The two memories, which start as the bank's features, and the adapter on the query, which `seed` initialises."""

    def __init__(self, bank: FeatureBank, options: Options, seed: int) -> None:
        super().__init__()
        self.labels, self.ratio = bank.train_labels, options.RATIO
        self.images = nn.Parameter(bank.cache_keys().clone())  # [N, d]
        self.text = nn.Parameter(bank.text_positive.clone())  # [K, d]
        down, up = bottleneck(self.text.shape[1], options, seed)
        layers = down, nn.LayerNorm(down.out_features), up, nn.LayerNorm(up.out_features)
        self.layers = nn.Sequential(*layers).to(self.text.device)

    def adapt(self, features: Tensor) -> Tensor:
        """`A(f)`, an MLP beside the feature: `[B, d]` to unit-norm `[B, d]`."""
        share = self.ratio / features.shape[1] ** 0.5
        return unit(torch.add((1 - self.ratio) * features, self.layers(features), alpha=share))

    def prototypes(self) -> tuple[Tensor, Tensor]:
        """The image prototypes c and the text prototypes t, unit-norm, both `[K, d]`."""
        means = torch.zeros_like(self.text).index_add(0, self.labels, unit(self.images))
        return unit(means), unit(self.text)

    def cosines(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines of unit-norm features `[B, d]` with the image and with the text prototypes, both `[B, K]`."""
        images, text = self.prototypes()
        return queries @ images.t(), queries @ text.t()


class _Unit(torch.autograd.Function):
    """`u = x / |x|` with the gradient `(g - u (u . g)) / |x|`, which takes a third of the time of `F.normalize`'s.

    Most of a step beside the matrix products would go there, since the image memory holds every training image.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        scale = rows.norm(dim=-1, keepdim=True).clamp_min(SMALLEST).reciprocal()
        scaled = rows * scale
        ctx.save_for_backward(scaled, scale)
        return scaled

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        scaled, scale = ctx.saved_tensors
        along = torch.linalg.vecdot(scaled, gradient).unsqueeze(-1)
        return torch.addcmul(gradient, scaled, along, value=-1).mul_(scale)


unit: Callable[[Tensor], Tensor] = _Unit.apply  # rows scaled to norm 1, as by `F.normalize`


def mixture(to_images: Tensor, to_text: Tensor, alpha: float, beta: float) -> Tensor:
    """The log of `P(k | f)`, shape `[B, K]`, from cosines of the queries with image and text prototypes, `[B, K]`."""
    # |q - p|^2 = 2 - 2 q . p, and the 2 cancels in a softmax
    by_image, by_text = ((2 * beta * cosines).softmax(dim=1) for cosines in (to_images, to_text))
    return (alpha * by_image + (1 - alpha) * by_text).clamp_min(torch.finfo(to_images.dtype).tiny).log()


@torch.no_grad()
def search(
    bank: FeatureBank, options: Options, cosines: Callable[[Tensor], tuple[Tensor, Tensor]]
) -> tuple[tuple[float, float], dict]:
    """Alpha and beta, chosen on val or those meant for no val, and their entry of `FittedMethod.selected`, or {}.

    `cosines` maps image features `[B, d]` to their cosines with the two kinds of prototypes, both `[B, K]`.
    """
    if not (options.SEARCH and has_val(bank)):
        return (value_for_task(options, "ALPHA_WITHOUT_VAL", bank), options.BETA), {}
    start = (options.ALPHA, options.BETA)

    def distance(values: tuple[float, float]) -> float:
        return abs(values[0] - start[0]) + abs(values[1] - start[1]) / BETAS[-1]

    features, labels = val_images(bank)
    known = cosines(features)
    candidates = {start, *itertools.product(ALPHAS, BETAS)}
    return choose({values: accuracy(mixture(*known, *values), labels) for values in candidates}, distance)
