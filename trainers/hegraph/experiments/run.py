"""One experiment without Dassl: features -> a method -> test -> record."""

from __future__ import annotations

import random
import time
from pathlib import Path

import torch
from yacs.config import CfgNode

from ..baselines import METHODS, load_method
from ..training.loop import FitResult, fit
from ..utils import processes
from ..utils.errors import UserError
from .elsewhere import score_targets
from .experiment import Experiment, Outcome
from .provenance import set_random_seed
from .tasks import BankTask, Task
from .tuning import fit_best_on_val

TEST_BATCH = 1024  # images that a method predicts at once


def run(
    cfg: CfgNode,
    bank_file: Path | None = None,
    model_dir: Path | None = None,
    load_epoch: int | None = None,
    train: bool = True,
) -> dict:
    """Trains and tests one seed, and writes its record.

    Args:
        cfg: The checked configuration; `TRAINER.NAME` names the method.
        bank_file: A feature bank to take everything from; None encodes the images of `DATASET.NAME`.
        model_dir: Folder of a finished run whose adapter is tested instead of training one.
        load_epoch: The epoch of `model_dir` whose adapter is tested; None: the last.
        train: False: encode the features and stop; nothing is tested.

    Returns:
        The record, or {} if nothing was tested. A folder that holds this very run's record is not
        computed again. Of several processes that `torchrun` started, all encode and the first goes on.

    Raises:
        UserError: On anything that the user can mend.
    """
    device = "cuda" if cfg.USE_CUDA and torch.cuda.is_available() else "cpu"
    seed = cfg.SEED if cfg.SEED >= 0 else random.SystemRandom().randrange(2**31)
    set_random_seed(seed)
    if bank_file:
        task: Task = BankTask(bank_file, cfg, seed)
    else:
        from .image_task import load_image_task  # takes seconds to import

        task = load_image_task(cfg, seed, device)
    experiment = Experiment(cfg, task, seed, device, host="alone")
    if model_dir is not None:
        experiment.choose_adapter(model_dir, load_epoch)
    if (record := experiment.finished()) is not None:
        return record
    if processes.rank() == 0:
        experiment.write_split()
    experiment.encode()
    if not train or processes.rank():
        return {}
    if cfg.TRAINER.NAME in METHODS:
        outcome = fit_method(experiment)
        return experiment.record(outcome, score_targets(experiment, outcome))
    selected = {}
    if cfg.TRAINER.HEGRAPHADAPTER.SELECT_ON == "val" and experiment.adapter is None:
        selected = fit_best_on_val(experiment)
    else:
        experiment.build_model()
        if experiment.adapter is not None:
            experiment.load_adapter()
        elif (training := experiment.start_training()) is not None:
            experiment.end_training(fit(training))
    outcome = experiment.outcome(selected)
    return experiment.record(outcome, score_targets(experiment, outcome))


def fit_method(experiment: Experiment) -> Outcome:
    """Fits the method that `TRAINER.NAME` names, without test features at hand, and has it predict test.

    Raises:
        UserError: If the method needs the backbone, and the task is a feature bank.
    """
    name = experiment.cfg.TRAINER.NAME
    method = load_method(name)
    backbone = getattr(experiment.task, "backbone", None) if method.needs_backbone else None
    if method.needs_backbone and backbone is None:
        raise UserError(f"{name} learns prompts through the backbone's text tower; give images instead of --features")
    experiment.bank = bank = experiment.bank.to(experiment.device)
    set_random_seed(experiment.seed)
    started = time.monotonic()
    fitted = method.fit(bank.without_test(), experiment.cfg.TRAINER[name.upper()], experiment.seed, backbone)
    trained = FitResult(fitted.epochs, fitted.steps, time.monotonic() - started)
    logits = None
    if bank.test_features is not None:
        with torch.no_grad():
            logits = torch.cat([fitted.logits(batch) for batch in bank.test_features.split(TEST_BATCH)])
        if not logits.isfinite().all():
            raise UserError(f"{name} predicts NaN or infinite logits")
    return Outcome(
        logits,
        None,
        trained,
        fitted.num_parameters,
        selected=fitted.selected,
        classify=fitted.logits,
        transfer=fitted.transfer,
    )
