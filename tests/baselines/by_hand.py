"""Tiny feature banks and training in float64, for tests that implement the equations of a method a second time."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.tasks import unit_features
from trainers.hegraph.baselines import load_method
from trainers.hegraph.baselines.base import shots_of
from trainers.hegraph.config import dataset_named
from trainers.hegraph.features.bank import FeatureBank
from trainers.hegraph.utils.option import OptionGroup

AXES = [[1.0, 0.0], [0.0, 1.0]]
SLANTED = [[0.6, 0.8], [0.8, 0.6]]
LABELS = torch.tensor([0, 1, 2, 0, 1])
IMAGES, TEXT = unit_features(5, 4, seed=1).double(), unit_features(3, 4, seed=2).double()  # [N, d] and [K, d]
QUERIES = unit_features(6, 4, seed=3).double()  # images to classify

unit = partial(F.normalize, dim=-1)


def tensor(rows: Sequence | Tensor) -> Tensor:
    return torch.as_tensor(rows, dtype=torch.float32)


def assert_close(actual: Tensor, expected: Sequence | Tensor, atol: float = 2e-4) -> None:
    torch.testing.assert_close(actual, tensor(expected), rtol=0, atol=atol)


def bank_of(
    train: Sequence | Tensor,
    labels: Sequence[int] | Tensor,
    text: Sequence | Tensor,
    val: tuple | None = None,
    test: tuple | None = None,
    scale: float = 10.0,
    dataset: str = "Tiny",
    norms: Sequence[float] | None = None,
) -> FeatureBank:
    """Bank with one view per image, from unit-norm rows; `norms` are the norms of the text features."""
    (val_features, val_labels), (test_features, test_labels) = (
        (None, None) if split is None else (tensor(split[0]), torch.as_tensor(split[1])) for split in (val, test)
    )
    return FeatureBank(
        train_features=tensor(train)[None], train_labels=torch.as_tensor(labels), text_positive=tensor(text),
        text_negative=tensor(text), classnames=[f"class {k}" for k in range(len(text))], dataset=dataset,
        backbone="none", logit_scale=scale, val_features=val_features, val_labels=val_labels,
        test_features=test_features, test_labels=test_labels,
        text_norms=None if norms is None else torch.tensor(norms),
    )  # fmt: skip


def options_of(name: str, bank: FeatureBank, **changed: object) -> Any:
    """Options of a method for a bank, with changed values of keys; a single value in place of rows holds always."""
    group = OptionGroup(name, load_method(name).options)
    values = group.default_values()
    for key, value in changed.items():
        declared = group.options[group.prefix + key]
        if declared.by_task and not (isinstance(value, list) and value and isinstance(value[0], list)):
            value = [["", value]]
        declared.check(value)
        values[declared.key] = value
    return group.for_task(values, shots_of(bank), dataset_named(bank.dataset))


def minimise(
    optimizer_class: type[torch.optim.Optimizer],
    loss: Callable[..., Tensor],
    initial: list,
    rates: list,
    multiples: Sequence[float] = (),
    **options: float,
) -> list[Tensor]:
    """Parameters of `loss(*parameters)` after one step of an optimizer, in float64, at each learning rate.

    `multiples` holds a factor of the rates for each parameter; () means 1.
    """
    parameters = [parameter.detach().double().clone().requires_grad_() for parameter in initial]
    optimizer = optimizer_class([{"params": [parameter]} for parameter in parameters], **options)
    for rate in rates:
        for group, multiple in zip(optimizer.param_groups, multiples or [1.0] * len(parameters)):
            group["lr"] = multiple * rate
        optimizer.zero_grad()
        loss(*parameters).backward()
        optimizer.step()
    return [parameter.detach() for parameter in parameters]
