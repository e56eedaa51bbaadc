"""Choosing hyper-parameters on the few-shot val split, and on nothing else."""

from __future__ import annotations

import itertools
import logging

from ..config import with_values
from ..training.choice import has_val, val_accuracy
from ..training.loop import FitResult, fit
from ..utils.errors import UserError
from .experiment import Experiment

logger = logging.getLogger(__name__)


def fit_best_on_val(experiment: Experiment) -> dict:
    """Trains every candidate of `TRAINER.HEGRAPHADAPTER.SELECT`, and keeps the one that is best on val.

    Of equals the first is kept, in the order of the rows. The model of the best becomes the experiment's.

    Args:
        experiment: With features.

    Returns:
        For the record: the keys, what was chosen, and every candidate with its accuracy on val, in percent.

    Raises:
        UserError: If the task has no val images of its own, or nothing is declared to choose from.
    """
    bank, grid = experiment.bank, experiment.cfg.TRAINER.HEGRAPHADAPTER.SELECT
    if not has_val(bank):
        raise UserError(
            f"{bank.dataset} has no val images besides test, so nothing can be chosen on them; leave out --select val"
        )
    if not grid:
        raise UserError("--select val needs TRAINER.HEGRAPHADAPTER.SELECT, rows [KEY, [VALUE, ...]]; it is empty")
    keys, cfg = [key for key, _ in grid], experiment.cfg
    candidates, best = [], None
    for values in itertools.product(*(values for _, values in grid)):
        experiment.cfg = with_values(cfg, [x for pair in zip(keys, values) for x in pair])
        experiment.build_model()
        trained = FitResult(epochs=0, steps=0, seconds=0.0)
        if (training := experiment.start_candidate()) is not None:
            trained = fit(training)
        model = experiment.model
        on_val = val_accuracy(lambda features, model=model: model.combine(model.predict(features)), experiment.bank)
        candidates.append([list(values), round(on_val, 4)])
        logger.info("%s: %.2f on val", ", ".join(f"{k} {v}" for k, v in zip(keys, values)), on_val)
        if best is None or on_val > best[0]:
            best = on_val, values, model, trained
    _, values, experiment.model, trained = best
    experiment.cfg = cfg
    experiment.end_training(trained)
    return {"keys": keys, "value": list(values), "candidates": candidates, "num_val": len(bank.val_labels)}
