"""One experiment without Dassl: task -> features -> method -> test -> record."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Iterable
from pathlib import Path

from PIL import Image

from ..baselines import METHODS, load_method
from ..baselines.base import Method
from ..config import Config
from ..features.bank import FeatureBank
from ..training.loop import TrainingSummary
from ..utils import processes
from ..utils.devices import available_device, wait_for
from ..utils.errors import UserError
from .adapter import predict_test, train_adapter
from .baseline import fit_baseline
from .calibration import calibrated
from .elsewhere import check_targets, encode_targets, score_targets
from .evaluation import test_model
from .folder import RunFolder
from .model_folder import keep_epochs, make_model
from .opened import Opened
from .out_of_fold import classify_in_batches
from .outcome import Outcome
from .provenance import set_random_seed
from .record import make_record
from .tasks import BankTask, ImageSource, Task, check_trained_classes
from .tuning import tune_on_val

logger = logging.getLogger(__name__)


def run(
    cfg: Config,
    bank_file: Path | None = None,
    model_dir: Path | None = None,
    load_epoch: int | None = None,
    train: bool = True,
    keep_thumbnails: bool = False,
    opened: Opened | None = None,
) -> dict:
    """Trains and tests one seed, and writes its record.

    Args:
        cfg: The checked configuration; `TRAINER.NAME` names the method.
        bank_file: A feature bank to take everything from; None encodes the images of `DATASET.NAME`.
        model_dir: Folder of a finished run, or of a model, that is tested instead of training one.
        load_epoch: The epoch of `model_dir` whose model is tested; None takes the last.
        train: False encodes the features and stops; nothing is tested.
        keep_thumbnails: Whether small pictures of the training images go into the model folder, also into that of a run
            that is finished.
        opened: What earlier runs of this process have opened; None shares nothing with them.

    Returns:
        The record, or {} if nothing was tested. A run whose folder holds its record is not computed again, and CLIP is
        not even loaded for it. Of several processes that `torchrun` started, all encode and the first goes on.

    Raises:
        Locked: If another process is at work in the output folder.
        UserError: On anything else that the user can mend.
    """
    bank_file, model_dir = (None if path is None else Path(path) for path in (bank_file, model_dir))  # may be text
    device = available_device(cfg.run.use_cuda)
    seed = cfg.run.seed if cfg.run.seed >= 0 else draw_seed()
    set_random_seed(seed)
    if keep_thumbnails and (bank_file is not None or model_dir is not None):
        raise UserError("--keep-thumbnails needs training images; leave it out with --features and --eval-only")
    if model_dir is not None:
        return test_model(cfg, bank_file, model_dir, load_epoch, device)
    task = open_task(cfg, bank_file, seed, device, opened)
    folder = RunFolder.of(cfg, task, seed)
    thumbnails = task.training_images() if keep_thumbnails and isinstance(task, ImageSource) else None
    if (record := folder.finished(thumbnails)) is not None:
        return record
    if train:
        check_trained_classes(task)
        check_targets(task, cfg.data)
    task.prepare()
    if processes.rank():  # the first process has the folder; this one helps it to encode
        encode(task)
        if train:
            encode_targets(task, cfg.data)
        return {}
    folder.check()
    with folder.locked():
        if (record := folder.finished(thumbnails)) is not None:  # another process may have finished it just now
            return record
        return train_and_test(task, cfg, seed, folder, device, train, thumbnails)


def draw_seed() -> int:
    """The seed of an unseeded run, below 2**31; the processes of `torchrun` share the one that the first draws."""
    return processes.of_first(lambda: random.SystemRandom().randrange(2**31))


def open_task(cfg: Config, bank_file: Path | None, seed: int, device: str, opened: Opened | None = None) -> Task:
    """The task of a run: rows of a feature bank, or images. Nothing is encoded yet."""
    if bank_file is not None:
        return BankTask(bank_file, cfg, seed, opened)
    from .image_task import load_image_task  # a bank needs no data set

    return load_image_task(cfg, seed, device, opened)


def encode(task: Task) -> None:
    """Encodes the images of a task that are not on disk, with the other processes of `torchrun`; a bank has none."""
    if isinstance(task, ImageSource):
        task.encode()


def train_and_test(
    task: Task,
    cfg: Config,
    seed: int,
    folder: RunFolder,
    device: str,
    train: bool,
    thumbnails: Iterable[Image.Image] | None,
) -> dict:
    """Encodes, trains, tests and writes the record, in a folder that is this process's own; arguments as of `run`, and
    `thumbnails` as of `RunFolder.finish`.
    """
    folder.begin()
    if not train:
        encode(task)
        return {}
    started = time.monotonic()
    bank = task.bank()
    features_seconds = time.monotonic() - started
    if processes.world_size() > 1:
        encode_targets(task, cfg.data)
        processes.stop()  # the others end here: what is read from now on must not wait for them
    bank = bank.to(device)
    outcome = calibrated(fit_and_predict(task, bank, cfg, seed, folder), task, bank, cfg, seed)
    bank = bank.with_test()
    targets = score_targets(task, bank, cfg.data, outcome)
    record = make_record(outcome, bank, cfg, seed, folder, "alone", features_seconds, targets)
    model = make_model(task, bank, cfg, seed, folder, "alone", outcome, record)
    folder.finish(record, outcome, bank.classnames, model, thumbnails)
    return record


def fit_and_predict(task: Task, bank: FeatureBank, cfg: Config, seed: int, folder: RunFolder) -> Outcome:
    """Fits the method that `TRAINER.NAME` names, and has it predict test."""
    if cfg.run.trainer in METHODS:
        return fit_method(load_method(cfg.run.trainer), task, bank, cfg, seed)
    if cfg.run.select_on == "val":
        trained = tune_on_val(task, bank, cfg, seed)
        folder.checkpoints(bank.classnames).save_adapter(trained.model)
    else:
        keep = keep_epochs(task, bank, cfg, seed, folder, "alone")
        trained = train_adapter(task, bank, cfg, seed, folder.checkpoints(bank.classnames), keep)
    return predict_test(trained, bank.with_test())


def fit_method(method: Method, task: Task, bank: FeatureBank, cfg: Config, seed: int) -> Outcome:
    """Fits another method, without test features at hand, and has it predict test.

    Raises:
        UserError: If the method needs the backbone, and the task is a feature bank; or a logit is not finite.
    """
    started = time.monotonic()
    fitted = fit_baseline(method, task, bank.without_test(), cfg, seed)
    wait_for(bank.train_features.device)
    training = TrainingSummary(fitted.epochs, fitted.steps, time.monotonic() - started)
    if fitted.classifier is None:
        logger.info("%s leaves no model folder: %s", method.name, method.not_saved or "it returns no classifier")
    logits = None
    bank = bank.with_test()
    if bank.test_features is not None:
        logits = classify_in_batches(fitted.logits, bank.test_features)
        if not logits.isfinite().all():
            raise UserError(f"{method.name} predicts NaN or infinite logits")
    return Outcome(
        logits,
        bank.test_labels,
        training,
        fitted.num_parameters,
        selected=fitted.selected,
        classify=fitted.logits,
        transfer=fitted.transfer,
        classifier=fitted.classifier,
        transfer_rule=fitted.transfer_rule,
    )
