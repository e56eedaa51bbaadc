"""Choosing values of the configuration on the few-shot val split, and on nothing else."""

from __future__ import annotations

import itertools
import logging
from dataclasses import replace

from ..config import Config
from ..config_files import with_values
from ..features.bank import FeatureBank
from ..training.choice import has_val, val_accuracy
from ..utils.errors import UserError
from .adapter import Shared, TrainedAdapter, train_adapter
from .tasks import Task

logger = logging.getLogger(__name__)


def tune_on_val(task: Task, bank: FeatureBank, cfg: Config, seed: int) -> TrainedAdapter:
    """Trains every candidate of `TRAINER.HEGRAPHADAPTER.SELECT`, and returns the one that is best on val.

    Of equals the first wins, in the order of the rows. Candidates share what their values do not change: all of the
    training where these only weigh predictions, as ALPHA_C does.

    Args:
        task: The task, for its training batches.
        bank: Its features, with val images.
        cfg: The checked configuration.
        seed: Seed of everything random.

    Returns:
        The best candidate. Its `selected` holds the keys, the chosen values, and the accuracy of every candidate on val
        in percent; its training counts the seconds of the whole search.

    Raises:
        UserError: If the task has no val images of its own, nothing is declared to choose from, or a candidate is no
            configuration; all are checked before the first is trained.
    """
    grid = cfg.run.select
    if not has_val(bank):
        raise UserError(
            f"{bank.dataset} has no val images besides test, so nothing can be chosen on them; leave out --select val"
        )
    if not grid:
        raise UserError("--select val needs TRAINER.HEGRAPHADAPTER.SELECT, rows [KEY, [VALUE, ...]]; it is empty")
    keys = [key for key, _ in grid]
    combinations = list(itertools.product(*(values for _, values in grid)))
    configurations = [with_values(cfg, [x for pair in zip(keys, values) for x in pair]) for values in combinations]
    candidates: list[list] = []
    best: tuple[float, tuple, TrainedAdapter] | None = None
    seconds, shared = 0.0, Shared(task, bank)
    for values, changed in zip(combinations, configurations):
        trained = train_adapter(task, bank, changed, seed, shared=shared)
        seconds += trained.training.seconds
        on_val = val_accuracy(trained.model.fold().logits, bank)
        candidates.append([list(values), round(on_val, 4)])
        logger.info("%s: %.2f on val", ", ".join(f"{k} {v}" for k, v in zip(keys, values)), on_val)
        if best is None or on_val > best[0]:
            best = on_val, values, trained
    if best is None:
        raise UserError("a row of TRAINER.HEGRAPHADAPTER.SELECT has no value to choose from")
    _, chosen, trained = best
    selected = {"keys": keys, "value": list(chosen), "candidates": candidates, "num_val": _num_val(bank)}
    return replace(trained, training=replace(trained.training, seconds=seconds), selected=selected)


def _num_val(bank: FeatureBank) -> int:
    return 0 if bank.val_labels is None else len(bank.val_labels)
