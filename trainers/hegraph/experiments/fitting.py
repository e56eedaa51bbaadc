"""Fitting of a method to a task, for both runners. `calibration.py` fits the temperature of its probabilities."""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from ..baselines import load_method
from ..baselines.base import FittedMethod
from ..config import Config
from ..features.bank import FeatureBank
from ..method.training.batches import TrainingData
from ..method.training.loop import Checkpoints
from ..utils.devices import wait_for
from ..utils.seeds import set_random_seed
from .tasks import Task


def fit(
    task: Task, bank: FeatureBank, checkpoints: Checkpoints | None = None, start: Mapping[str, Tensor] | None = None
) -> FittedMethod:
    """Fit the method that `TRAINER.NAME` names.

    Args:
        task: The task.
        bank: Its features, on the device of the computation. Test images are not used.
        checkpoints: Checkpoints that HeGraphAdapter resumes from and writes; None writes none.
        start: Parameters of an earlier training of HeGraphAdapter on similar images, which shorten the training.

    Raises:
        UserError: If an option is out of range, a class has no training image, the training diverges, or the checkpoint
            is of another run.
    """
    inputs = {"checkpoints": checkpoints, "start": start}
    return _fit(task.cfg.run.trainer, task, bank, bank, task.cfg, task.batches, inputs)


def fit_part(task: Task, part: FeatureBank, bank: FeatureBank) -> FittedMethod:
    """Fit the method of a task to a part of its bank, for the calibration; errors as in `fit`.

    Values that depend on the data set or the number of shots are those of the whole bank, so that the calibration is of
    the method that was fitted to it.
    """
    return _fit(task.cfg.run.trainer, task, part, bank, task.cfg, task.batches_of_features)


def _fit(
    name: str,
    task: Task,
    bank: FeatureBank,
    whole: FeatureBank,
    cfg: Config,
    batches: Callable[[FeatureBank], TrainingData],
    inputs: Mapping[str, Any] | None = None,
) -> FittedMethod:
    """Fit a method by its name.

    Args:
        bank: Features that the method is fitted to.
        whole: Features whose data set and number of shots choose values that depend on them.
        batches: Function that returns the training batches of a bank.
        inputs: Further arguments of `fit` for a method that needs batches.
    """
    method = load_method(name)
    started = time.monotonic()
    arguments: dict[str, Any] = {}
    if method.needs_batches:
        arguments = {"data": batches(bank), **(inputs or {})}
    if method.needs_base:
        arguments["base"] = _fit(cfg.method.base, task, bank, whole, without_selection(cfg), batches)
    backbone = task.backbone if method.needs_backbone else None
    set_random_seed(task.seed)  # encoding uses the random generators, reading encoded features does not
    fitted = method.fit(bank.without_test(), method.options_for(cfg, whole), task.seed, backbone, **arguments)
    wait_for(bank.train_features.device)
    return fitted if fitted.seconds else replace(fitted, seconds=time.monotonic() - started)


def without_selection(cfg: Config) -> Config:
    """Return the configuration of the base of a transductive method, which selects no values on val."""
    return replace(cfg, run=replace(cfg.run, select_on="last_step"))
