"""Proto-CLIP-F-Q^T: learned image and text prototypes, and an adapter on the query.

P, Palanisamy, Chao, Du, Xiang: Proto-CLIP: Vision-Language Prototypical Network for Few-Shot Learning. IROS 2024.

    P(k | f) = alpha * softmax_k(-beta |A(f) - c_k|^2) + (1 - alpha) * softmax_k(-beta |A(f) - t_k|^2)

The prototypes are unit-norm: `c_k` is the mean of the class's image memory, `t_k` its text memory. The memories start
as the features of the training images and of the text. A is an adapter on the query, the image to classify. All three
are trained with the negative log of P plus a contrastive loss that aligns c with t in both directions. As in the
released code, the optimizer is AdamW at a constant rate, for 2,000 epochs of batches of 1,024. Val selects three times:
alpha and beta for the initial memories, then the epoch (the last of equally good ones), then alpha and beta again.

Differences from the original:

- Val is evaluated every 50 epochs, in the original after every epoch.
- The released code trains the adapter on features with the norm of the image encoder's output and tests it on unit-norm
  features; here both are unit-norm.
- The authors set alpha, beta, the kind of adapter, and whether to train the text memory, for each data set. Here val
  selects alpha and beta (of equally good ones the nearest to the initial values), the text memory is always trained,
  and the adapter is always their MLP. Its output is divided by the square root of its width, so that the MLP and the
  unit-norm feature have weights of 0.2 and 0.8.
- Without val images beta is 9, the middle of the authors' values. Alpha and the epochs, by shots, are about the medians
  of the values that val selected on three banks.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..features.bank import FeatureBank
from ..method.graph import sum_by_class
from ..method.training.batches import Batch
from ..method.training.choice import accuracy, choose, has_val, val_accuracy, val_images
from .base import EPSILON, FittedMethod, Method
from .options import BottleneckOptions, TrainedOptions, by_shots, option
from .trained import BestEpoch, batches, bottleneck, count_parameters, train

ALPHAS = [i / 10 for i in range(11)]
BETAS = [i / 10 for i in range(1, 10)] + [float(i) for i in range(1, 21)]


@dataclass(frozen=True)
class ProtoCLIPOptions(TrainedOptions, BottleneckOptions):
    """Options of `ProtoCLIP`."""

    alpha: float = option(0.5, "ALPHA", "weight of the image prototypes, before the search", least=0, most=1)
    alpha_without_val: float = by_shots(
        {1: 0.1, 4: 0.2, 16: 0.4}, "ALPHA_WITHOUT_VAL", "ALPHA without val images or search", least=0, most=1
    )
    beta: float = option(9.0, "BETA", "sharpness, before the search or without one", above=0)
    search: bool = option(
        True, "SEARCH", "whether to select ALPHA and BETA on val before and after training, if there are val images"
    )
    temperature: float = option(0.1, "TEMPERATURE", "temperature of the contrastive loss", above=0)
    learning_rate: float = option(1e-4, "LR", "learning rate of AdamW, constant", least=0)
    epochs: int = option(2000, "EPOCHS", "number of training epochs with val images to select the best epoch", least=1)
    val_interval: int = option(50, "ASK_EVERY", "number of epochs between two evaluations on val", least=1)
    epochs_without_val: int = by_shots(
        {1: 100, 4: 250, 16: 750}, "EPOCHS_WITHOUT_VAL", "number of training epochs without val images", least=1
    )
    batch_size: int = option(1024, "BATCH_SIZE", "number of images per step", least=1)
    weight_decay: float = option(0.05, "WEIGHT_DECAY", "weight decay of AdamW", least=0)
    eps: float = option(1e-4, "EPS", "eps of AdamW", least=0)


class ProtoCLIP(Method[ProtoCLIPOptions]):
    """Proto-CLIP: trains an image and a text prototype for each class, and an adapter on the image to classify."""

    options: ClassVar[type] = ProtoCLIPOptions
    not_saved: ClassVar[str] = "its adapter changes the feature of the image to classify"

    def fit(self, bank: FeatureBank, options: ProtoCLIPOptions, seed: int, backbone: object = None) -> FittedMethod:
        model = Prototypes(bank, options, seed)
        (alpha, beta), before = search_alpha_beta(bank, options, model.cosines)
        epochs = options.epochs if before else options.epochs_without_val

        def loss(batch: Batch) -> Tensor:
            images, text = model.prototypes()
            queries = model.adapt(batch.features)
            log_p = mixture(queries @ images.t(), queries @ text.t(), alpha, beta)
            # Contrastive loss of the two prototypes of a class, from images to text and from text to images
            similarities = images @ text.t() / options.temperature
            classes = torch.arange(len(text), device=text.device)
            contrastive = F.cross_entropy(similarities, classes) + F.cross_entropy(similarities.t(), classes)
            return F.nll_loss(log_p, batch.labels) + contrastive

        def logits(features: Tensor) -> Tensor:  # with the current alpha and beta
            return mixture(*model.cosines(model.adapt(features)), alpha, beta)

        def evaluate_on_val(epoch: int) -> None:
            if before and epoch % options.val_interval == 0:
                best_epoch.record(epoch, val_accuracy(logits, bank))

        optimizer = torch.optim.AdamW(
            model.parameters(), options.learning_rate, eps=options.eps, weight_decay=options.weight_decay, fused=True
        )
        data = batches(bank, options.batch_size, seed)
        best_epoch = BestEpoch(model.parameters())
        steps = train(optimizer, loss, data, epochs, lambda step, peak: peak, evaluate_on_val)
        selected = {"ALPHA, BETA in training": before} if before else {}
        if best_epoch.candidates:
            selected["EPOCH"] = best_epoch.restore()
            (alpha, beta), after = search_alpha_beta(
                bank, options, lambda features: model.cosines(model.adapt(features))
            )
            selected["ALPHA, BETA at last"] = after
        return FittedMethod(logits, count_parameters(model.parameters()), epochs, steps, selected)


class Prototypes(nn.Module):
    """Image memory, text memory and query adapter; the memories start as the bank's features."""

    def __init__(self, bank: FeatureBank, options: ProtoCLIPOptions, seed: int) -> None:
        super().__init__()
        self.labels = bank.train_labels
        self.ratio = options.ratio
        self.images = nn.Parameter(bank.cache_keys().clone())  # [N, d]
        self.text = nn.Parameter(bank.text_positive.clone())  # [K, d]
        down, up = bottleneck(self.text.shape[1], options, seed)
        layers = down, nn.LayerNorm(down.out_features), up, nn.LayerNorm(up.out_features)
        self.layers = nn.Sequential(*layers).to(self.text.device)

    def adapt(self, features: Tensor) -> Tensor:
        """Return `A(f)`, the unit-norm weighted sum of features `[B, d]` and their MLP output, shape `[B, d]`."""
        weight = self.ratio / features.shape[1] ** 0.5
        return unit(torch.add((1 - self.ratio) * features, self.layers(features), alpha=weight))

    def prototypes(self) -> tuple[Tensor, Tensor]:
        """Return the image prototypes c and the text prototypes t, unit-norm, both `[K, d]`."""
        images = unit(sum_by_class(unit(self.images), self.labels, len(self.text)))
        text = unit(self.text)
        return images, text

    def cosines(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Return the cosines of unit-norm features `[B, d]` with the image and the text prototypes, both `[B, K]`."""
        images, text = self.prototypes()
        return queries @ images.t(), queries @ text.t()


class _Unit(torch.autograd.Function):
    """Normalisation `u = x / |x|` with the gradient `(g - u (u . g)) / |x|`.

    It takes a third of the time of `F.normalize`, which would take most of a step apart from the matrix products,
    because the image memory holds every training image.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        scale = rows.norm(dim=-1, keepdim=True).clamp_min(EPSILON).reciprocal()
        scaled = rows * scale
        ctx.save_for_backward(scaled, scale)
        return scaled

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        scaled, scale = ctx.saved_tensors
        dot = torch.linalg.vecdot(scaled, gradient).unsqueeze(-1)  # u . g
        return torch.addcmul(gradient, scaled, dot, value=-1).mul_(scale)


unit: Callable[[Tensor], Tensor] = _Unit.apply  # rows normalised to unit norm, as by `F.normalize`


def mixture(image_cosines: Tensor, text_cosines: Tensor, alpha: float, beta: float) -> Tensor:
    """Return `log P(k | f)`, shape `[B, K]`, from cosines of queries with image and text prototypes, both `[B, K]`."""
    # |q - p|^2 = 2 - 2 q . p, and the 2 cancels in a softmax
    image_p = (2 * beta * image_cosines).softmax(dim=1)
    text_p = (2 * beta * text_cosines).softmax(dim=1)
    return (alpha * image_p + (1 - alpha) * text_p).clamp_min(torch.finfo(image_cosines.dtype).tiny).log()


@torch.no_grad()
def search_alpha_beta(
    bank: FeatureBank, options: ProtoCLIPOptions, cosines: Callable[[Tensor], tuple[Tensor, Tensor]]
) -> tuple[tuple[float, float], dict]:
    """Select alpha and beta of Proto-CLIP on the validation images.

    Args:
        cosines: Function from image features `[B, d]` to their cosines with the image and the text prototypes, both
            `[B, K]`.

    Returns:
        Alpha and beta, and an entry of `FittedMethod.selected`. Without val images, or with SEARCH off:
        ALPHA_WITHOUT_VAL and BETA, and {}.
    """
    if not (options.search and has_val(bank)):
        return (options.alpha_without_val, options.beta), {}
    initial = (options.alpha, options.beta)

    def distance(values: tuple[float, float]) -> float:
        return abs(values[0] - initial[0]) + abs(values[1] - initial[1]) / BETAS[-1]

    features, labels = val_images(bank)
    val_cosines = cosines(features)
    candidates = {initial, *itertools.product(ALPHAS, BETAS)}
    accuracies = {values: accuracy(mixture(*val_cosines, *values), labels) for values in candidates}
    return choose(accuracies, distance)
