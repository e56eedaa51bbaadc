"""From the parameters of the classifier to a trained model: seed, configuration, training."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from sklearn.utils import check_random_state
from torch import Tensor

from ..config import Config
from ..config_files import load_cfg
from ..experiments.calibration import calibrated
from ..experiments.fitting import train_adapter
from ..experiments.folder import RunFolder
from ..experiments.record import make_model
from ..experiments.tasks import Task
from ..method.unlabelled import ClassSums, hear_unlabelled
from ..models.saved import SavedModel, Scores
from ..training.memory import free_bytes
from ..utils.errors import UserError

COPIES = 6  # of the logits of all unlabelled images, that hearing them holds at once
FEATURES_DIR = "TRAINER.HEGRAPHADAPTER.FEATURES.DIR"
# Keys that options may not set -> what sets them
GIVEN_OTHERWISE = {"SEED": "is random_state here", FEATURES_DIR: "is a temporary folder here"}


def find_seed(random_state: int | np.random.RandomState | None) -> int:
    """The seed that scikit-learn's `random_state` means; a number is the seed itself.

    Raises:
        ValueError: If it is none of what scikit-learn allows.
    """
    generator = check_random_state(random_state)
    if isinstance(random_state, (int, np.integer)):
        return int(random_state)
    return int(generator.randint(2**31 - 1))


def make_configuration(
    dataset_config: str,
    config: str,
    named: Mapping[str, Any],
    options: Mapping[str, Any] | Sequence[Any] | None,
    seed: int,
    folder: str,
) -> Config:
    """The checked configuration of a training.

    Args:
        dataset_config, config: YAML of the data set and of the method, as `load_cfg` takes them.
        named: Configuration keys that have a parameter of their own.
        options: Further keys, as a dict or a list `[KEY, VALUE, ...]`, which win.
        seed: Of everything random.
        folder: Where encoded features are kept.

    Raises:
        UserError: If a key or a value is wrong, or asks for what an estimator cannot do.
    """
    if isinstance(options, Mapping):
        options = [word for pair in options.items() for word in pair]
    elif not (options is None or isinstance(options, (list, tuple))):
        raise UserError(f"options must be a dict or a list [KEY, VALUE, ...], got {options!r:.80}")
    options = list(options or [])
    for key, instead in GIVEN_OTHERWISE.items():
        if key in options[::2]:
            raise UserError(f"options has {key}, which {instead}; leave it out")
    cfg = load_cfg(dataset_config, config, dict(named), [*options, "SEED", seed, FEATURES_DIR, folder])
    if cfg.run.select_on == "val":
        raise UserError("SELECT_ON val needs val images, which fit has none of; use scikit-learn's GridSearchCV")
    return cfg


def train_model(task: Task, cfg: Config, device: str) -> tuple[SavedModel, ClassSums]:
    """Trains the adapter of a task, as the command line does, and folds it into a model on the CPU.

    Returns:
        The model, and what it can hear unlabelled images with, on the CPU.

    Raises:
        UserError: If the training diverges, or something cannot be encoded.
    """
    task.prepare()
    bank = task.bank().to(device)
    fitted = train_adapter(task, bank)
    assert fitted.classifier is not None  # HeGraphAdapter always folds
    if not fitted.classifier.weights.isfinite().all():
        raise UserError(
            f"the trained adapter holds NaN or infinite values; lower OPTIM.LR ({cfg.training.learning_rate})"
        )
    fitted = calibrated(fitted, task, bank)
    model = make_model(RunFolder(task), bank, fitted)
    assert model is not None  # its classifier is there
    moved = {
        "classifier": model.classifier.to("cpu"),
        "transfer": None if model.transfer is None else model.transfer.to("cpu"),
        "class_nodes": None if model.class_nodes is None else model.class_nodes.cpu(),
    }
    sums = ClassSums.of(bank.cache_keys().cpu(), bank.train_labels.cpu(), len(bank.classnames))
    return model.model_copy(update=moved), sums


def adapted_model(model: SavedModel, labelled: ClassSums, features: Tensor, device: str) -> SavedModel:
    """A model whose classifier has heard unlabelled images. It stays on the CPU.

    What was measured of the model as it was, scores of test images and of known ones, does not hold any more and goes.

    Args:
        model, labelled: As `train_model` gave them.
        features: Of the unlabelled images, unit rows, shape `[M, d]`.
        device: Where to compute.

    Raises:
        UserError: If that would take more memory than is free.
    """
    takes, free = COPIES * len(features) * len(model.classnames) * features.element_size(), free_bytes(device)
    if free is not None and takes > free:
        raise UserError(
            f"{len(features)} unlabelled images of {len(model.classnames)} classes would take about "
            f"{takes / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are free; give fewer images"
        )
    heard = hear_unlabelled(
        model.classifier.to(device),
        labelled.to(device),
        model.text_positive.to(device),
        features.to(device),
        model.logit_scale,
        model.temperature,
    )
    return model.model_copy(
        update={
            "classifier": heard.classifier.to("cpu"),
            "unlabelled": len(features),
            "known": None,
            "scores": Scores(accuracy=None, accuracy_text=None, accuracy_zero_shot=None, macro_f1=None, num_test=0),
        }
    )


@contextmanager
def generators_restored() -> Iterator[None]:
    """Leaves the global generators of Python, NumPy and torch as they were: training seeds them."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
