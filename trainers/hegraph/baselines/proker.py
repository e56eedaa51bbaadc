"""ProKeR: kernel ridge regression of what zero-shot CLIP leaves open.

Bendou, Ouasfi, Gripon, Boukhayma: ProKeR: A Kernel Perspective on Few-Shot Adaptation of Large Vision-Language Models.
CVPR 2025.

    z = cos(f, t_k) + sum over the training images i of k(f, F_i) * A_ik
    A = (K / lambda + I)^-1 (Y - T),    k(x, y) = exp(-beta * (1 - cos(x, y)))

`Y` holds the one-hot labels of the N training images, `T` their cosines with the text features, and `K` the kernel
between them. The sum is lambda times the kernel ridge regression of `Y - T` with the penalty lambda: the released code
leaves out the factor 1 / lambda, so lambda also says how much it counts beside zero-shot CLIP. As in that code: beta
and lambda are searched on val, over its range for each data set, and of equally good candidates the smallest beta and
then the smallest lambda are taken; the values without val are those that the authors transfer from ImageNet, by shots.

Distance from the original: it takes each augmented view as an image of its own, here an image is the mean of its views,
which keeps the system at N by N. The few-shot val split is too small to tell up to 2,000 candidates apart, so the grid
is 10 by 10. Logits are multiplied by CLIP's `tau`, which changes no prediction. The authors' code was read in a fork,
github.com/omarnust/BReg-Adapter, at their last commit there, f2ecb3d.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..features.bank import FeatureBank
from ..method.cache import cache_affinities, text_logits
from ..training.choice import accuracy, choose, has_val, val_images
from .base import Defaults, FittedMethod, Method, Options, by_dataset, check_numbers, value_for_task


class ProKeR(Method):
    """Adds a kernel ridge regression of the residuals to the zero-shot logits."""

    defaults: ClassVar[Defaults] = {
        # Rows [from this many shots, value]
        "BETA": [[1, 3.0], [2, 2.6], [4, 1.5], [8, 1.66], [16, 1.7]],  # of the kernel
        "LAMBDA": [[1, 0.05], [8, 0.07], [16, 0.1]],  # weight of zero-shot CLIP
        "SEARCH": True,  # choose BETA and LAMBDA on val, if there are val images
        # [smallest BETA, largest BETA, smallest LAMBDA, largest LAMBDA]; for all others the authors' for Caltech101,
        # EuroSAT, FGVCAircraft, Food101 and UCF101
        "SEARCH_RANGE": by_dataset(
            [0.5, 3.0, 0.001, 1.0], DescribableTextures=[0.1, 10.0, 0.001, 10.0], ImageNet=[1.5, 3.0, 0.05, 0.25],
            OxfordFlowers=[0.1, 10.0, 0.001, 10.0], OxfordPets=[0.01, 5.0, 0.01, 0.3],
            StanfordCars=[0.1, 10.0, 0.01, 1.0], SUN397=[0.1, 10.0, 0.01, 10.0],
        ),
        "SEARCH_STEP": [10, 10],  # how many values of BETA and of LAMBDA the grid holds
    }  # fmt: skip
    not_saved: ClassVar[str] = "each image of its cache has a weight for every class"

    def fit(self, bank: FeatureBank, options: Options, seed: int, backbone: object = None) -> FittedMethod:
        beta, strength = (value_for_task(options, key, bank) for key in ("BETA", "LAMBDA"))
        check_numbers("BETA and LAMBDA", [beta, strength])
        selected = {}
        if options.SEARCH and has_val(bank):
            (beta, strength), selected["BETA, LAMBDA"] = choose(accuracies_on_val(bank, *grid(bank, options)))
        keys, coefficients = bank.cache_keys(), solve(bank, beta, [strength])[0]

        def logits(features: Tensor) -> Tensor:
            kernel = cache_affinities(features, keys, beta)
            text = text_logits(features, bank.text_positive, bank.logit_scale)
            return text + bank.logit_scale * kernel @ coefficients

        return FittedMethod(logits, selected=selected)


def solve(bank: FeatureBank, beta: float, strengths: list[float]) -> list[Tensor]:
    """The coefficients A, shape `[N, K]`, for each of the lambdas `strengths`."""
    keys = bank.cache_keys()
    kernel = cache_affinities(keys, keys, beta)
    targets = F.one_hot(bank.train_labels, len(bank.text_positive)) - text_logits(keys, bank.text_positive, 1.0)
    identity = torch.eye(len(kernel)).to(kernel)
    return [torch.cholesky_solve(targets, torch.linalg.cholesky(kernel / lam + identity)) for lam in strengths]


def accuracies_on_val(bank: FeatureBank, betas: list[float], strengths: list[float]) -> dict[tuple, float]:
    """The accuracy in percent on val of every pair of beta and lambda."""
    features, labels = val_images(bank)
    text, accuracies = text_logits(features, bank.text_positive, 1.0), {}
    for beta in betas:
        to_val = cache_affinities(features, bank.cache_keys(), beta)
        for strength, coefficients in zip(strengths, solve(bank, beta, strengths)):
            accuracies[beta, strength] = accuracy(text + to_val @ coefficients, labels)
    return accuracies


def grid(bank: FeatureBank, options: Options) -> tuple[list[float], list[float]]:
    """The candidates for beta and for lambda, the smallest first."""
    ends = value_for_task(options, "SEARCH_RANGE", bank)
    check_numbers("a value of SEARCH_RANGE", ends, count=4)
    check_numbers("SEARCH_STEP", options.SEARCH_STEP, 1, count=2, whole=True)
    betas, strengths = (
        torch.linspace(low, high, count, dtype=torch.float64).tolist()
        for (low, high), count in zip((ends[:2], ends[2:]), options.SEARCH_STEP)
    )
    return betas, strengths
