"""One experiment without Dassl: features -> graph -> training -> test -> record."""

from __future__ import annotations

import random
from pathlib import Path

import torch
from yacs.config import CfgNode

from .experiment import Experiment
from .features import shards
from .fit import fit
from .provenance import set_random_seed
from .tasks import BankTask, Task, load_image_task


def run(
    cfg: CfgNode,
    bank_file: Path | None = None,
    model_dir: Path | None = None,
    load_epoch: int | None = None,
    train: bool = True,
) -> dict:
    """Trains and tests one seed, and writes its record.

    Args:
        cfg: The checked configuration.
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
    task: Task = BankTask(bank_file, cfg, seed) if bank_file else load_image_task(cfg, seed, device)
    experiment = Experiment(cfg, task, seed, device, host="alone")
    if model_dir is not None:
        experiment.choose_adapter(model_dir, load_epoch)
    if (record := experiment.finished()) is not None:
        return record
    if shards.rank() == 0:
        experiment.write_split()
    experiment.encode()
    if not train or shards.rank():
        return {}
    experiment.build_model()
    if experiment.adapter is not None:
        experiment.load_adapter()
    elif (training := experiment.start_training()) is not None:
        experiment.end_training(fit(training))
    return experiment.record()
