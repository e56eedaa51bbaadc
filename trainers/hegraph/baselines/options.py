"""Options that several methods share, and declarations of options by data set and by shots.

The keys are declared without their prefix `TRAINER.<NAME IN CAPITALS>`, which `OptionGroup` adds for each method.
"""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any

from ..utils.option import check_options, option

by_task = partial(option, by_task=True)


def by_dataset(default: Any, key: str, meaning: str, values: Mapping[str, Any], **attributes: Any) -> Any:
    """Declare an option with values by data set; `default` is the value of all others."""
    rows = [["", deepcopy(default)], *([name, value] for name, value in values.items())]
    return by_task(default, key, meaning, configured=rows, **attributes)


def by_shots(values: Mapping[int, Any], key: str, meaning: str, **attributes: Any) -> Any:
    """Declare an option with values from a number of shots on, which begin at 1 shot."""
    rows = [[shots, value] for shots, value in values.items()]
    return by_task(values[1], key, meaning, configured=rows, **attributes)


@dataclass(frozen=True)
class BaselineOptions:
    """Options of a method for one task; UserError for a value that is not allowed."""

    def __post_init__(self) -> None:
        check_options(self)


@dataclass(frozen=True)
class TrainedOptions(BaselineOptions):
    """Options of methods that `trained.train` trains; each declares its own defaults."""

    learning_rate: float = option(1e-3, "LR", "learning rate", least=0)
    epochs: int = option(100, "EPOCHS", "number of training epochs", least=1)
    batch_size: int = option(256, "BATCH_SIZE", "number of images per step", least=1)
    weight_decay: float = option(5e-4, "WEIGHT_DECAY", "weight decay", least=0)


@dataclass(frozen=True)
class ClassifierOptions(TrainedOptions):
    """Options of `TrainedClassifier`, whose schedule has a warm-up. It uses Adam."""

    warmup_epochs: int = option(1, "WARMUP_EPOCHS", "number of warm-up epochs", least=0)
    warmup_lr: float = option(1e-5, "WARMUP_LR", "learning rate of the warm-up", least=0)


@dataclass(frozen=True)
class SgdOptions(ClassifierOptions):
    """Options of a `TrainedClassifier` that uses SGD."""

    momentum: float = option(0.9, "MOMENTUM", "momentum of SGD", least=0)


@dataclass(frozen=True)
class BottleneckOptions(BaselineOptions):
    """Options of a bottleneck MLP on the image to classify."""

    ratio: float = option(0.2, "RATIO", "weight of the MLP's output in the adapted feature", least=0, most=1)
    reduction: int = option(4, "REDUCTION", "feature width divided by bottleneck width", least=1)
