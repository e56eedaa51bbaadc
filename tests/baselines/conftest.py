"""Fixtures for tests of methods: banks of any shape, and methods fitted with changed options."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from by_hand import bank_of, options_of
from torch import Tensor

from trainers.hegraph.baselines import load_method
from trainers.hegraph.baselines.base import FittedMethod
from trainers.hegraph.features.bank import FeatureBank

NAMES = ["one", "two", "three", "four", "five", "six", "seven"]


@pytest.fixture(scope="session")
def make_bank(unit_features) -> Callable[..., FeatureBank]:
    """Function that makes a bank from the shots of each class, width, number of views and val images per class.

    Images scatter around the centre of their class, text features further away. Each class has 20 test images.
    """

    def make(shots: Sequence[int] = (4, 4, 4, 4, 4), width: int = 64, views: int = 2, val: int = 3) -> FeatureBank:
        generator = torch.Generator().manual_seed(3)
        centres = unit_features(len(shots), width, seed=1)

        def near(points: Tensor, spread: float) -> Tensor:
            noise = F.normalize(torch.randn(points.shape, generator=generator), dim=-1)
            return F.normalize(points + spread * noise, dim=-1)

        def images(counts: Sequence[int]) -> tuple[Tensor, Tensor]:
            labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
            labels = labels[torch.randperm(len(labels), generator=generator)]
            return near(centres[labels], 1.0), labels

        (train, labels), test = images(shots), images([20] * len(shots))
        bank = bank_of(
            train, labels, near(centres, 2.0), images([val] * len(shots)) if val else None, test, scale=100.0
        )
        train_views = torch.stack([near(train, 0.1) for _ in range(views)])
        return replace(bank, train_features=train_views, classnames=NAMES[: len(shots)])

    return make


QUICK = {
    "ProtoCLIP": {"EPOCHS": 100, "ASK_EVERY": 20, "LR": 1e-3},  # default: 2,000 epochs
    "CoOp": {"EPOCHS": [[1, 10], [8, 40]]},  # default: up to 200 epochs
}


@pytest.fixture(scope="session")
def fit(request) -> Callable[..., FittedMethod]:
    """Function that fits a method by its name to a bank, with a seed and changed options."""

    def run(name: str, bank: FeatureBank, seed: int = 1, **changed: object) -> FittedMethod:
        method = load_method(name)
        options = options_of(name, bank, **QUICK.get(name, {}) | changed)
        backbone = request.getfixturevalue("mini") if method.needs_backbone else None  # it takes seconds to load
        return method.fit(bank.without_test(), options, seed, backbone)

    return run


@pytest.fixture(scope="session")
def fit_once(fit, make_bank) -> Callable[[str], FittedMethod]:
    """Function that fits a method by its name to `make_bank()` with seed 1, once per session."""
    return functools.cache(lambda name: fit(name, make_bank()))
