"""One experiment without Dassl: task -> features -> method -> test -> record."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from PIL import Image

from ..baselines import load_method
from ..baselines.base import FittedMethod
from ..config import Config
from ..features.bank import FeatureBank
from ..method.model import HeGraphModel
from ..models.folder import save_model
from ..utils import processes
from ..utils.devices import available_device
from ..utils.errors import UserError
from .calibration import calibrated
from .evaluation import TrainedMethod, encode_targets, evaluate, score_targets, targets_of, test_model
from .fitting import TrainedAdapter, fit, fitted_adapter
from .folder import RunFolder
from .provenance import set_random_seed
from .record import make_model, make_record
from .tasks import BankTask, FeatureTask, Opened, Task, Tested, check_trained_classes

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
        return test_model(cfg, bank_file, model_dir, load_epoch, device, opened)
    task = open_task(cfg, bank_file, seed, device, opened)
    folder = RunFolder.of(cfg, task, seed)
    thumbnails = task.training_images() if keep_thumbnails else None
    if (record := folder.finished(thumbnails)) is not None:
        return record
    if train:
        check_trained_classes(task)
        targets_of(task, cfg.data)
    task.prepare()
    if processes.rank():  # the first process has the folder; this one helps it to encode
        task.encode()
        if train:
            encode_targets(task, cfg.data)
        return {}
    folder.check()
    with folder.locked():
        if (record := folder.finished(thumbnails)) is not None:  # another process may have finished it just now
            return record
        folder.begin()
        if not train:
            task.encode()
            return {}
        return train_and_test(task, folder, device, thumbnails)


def draw_seed() -> int:
    """The seed of an unseeded run, below 2**31; the processes of `torchrun` share the one that the first draws."""
    return processes.of_first(lambda: random.SystemRandom().randrange(2**31))


def open_task(cfg: Config, bank_file: Path | None, seed: int, device: str, opened: Opened | None = None) -> Task:
    """The task of a run: rows of a feature bank, or images. Nothing is encoded yet."""
    if bank_file is not None:
        return BankTask(bank_file, cfg, seed, opened)
    from .image_task import load_image_task  # a bank needs no data set

    return load_image_task(cfg, seed, device, opened)


def train_and_test(task: Task, folder: RunFolder, device: str, thumbnails: Iterable[Image.Image] | None = None) -> dict:
    """Encodes, trains, tests and writes the record, in a folder that is this process's own.

    Args:
        task: The task.
        folder: The run's folder.
        device: Where it is computed.
        thumbnails: As of `RunFolder.finish`.
    """
    cfg, seed = task.cfg, task.seed
    started = time.monotonic()
    bank = task.bank()
    seconds = time.monotonic() - started
    if processes.world_size() > 1:
        encode_targets(task, cfg.data)
        processes.stop()  # the others end here: what is read from now on must not wait for them
    bank = bank.to(device)
    fitted = fit(task, bank, cfg, seed, folder.checkpoints(bank.classnames), keep_epochs(task, bank, folder, "alone"))
    return test_and_finish(task, bank, folder, "alone", fitted, seconds, thumbnails)


def test_and_finish(
    task: Task,
    bank: FeatureBank,
    folder: RunFolder,
    host: str,
    fitted: FittedMethod,
    features_seconds: float,
    thumbnails: Iterable[Image.Image] | None = None,
    show: Callable[[Tested], None] | None = None,
) -> dict:
    """Tests a method that has just been fitted, finds its temperature, and writes what the run leaves.

    Args:
        task: The task.
        bank: Its features, on the device.
        folder: The run's folder.
        host: "alone" or "dassl".
        fitted: The method.
        features_seconds: How long encoding or reading the features took.
        thumbnails: As of `RunFolder.finish`.
        show: Is given what the method says about the test images.

    Returns:
        The record.
    """
    cfg, seed, device = task.cfg, task.seed, bank.train_features.device
    own = FeatureTask(bank, cfg, seed, class_ids=task.class_ids)
    tested = evaluate(TrainedMethod.of(fitted, task, bank), own, device)
    if show is not None:
        show(tested)
    fitted = calibrated(fitted, task, bank, cfg, seed)
    targets = score_targets(TrainedMethod.of(fitted, task, bank), task, cfg.data, device)
    num_train = len(bank.train_labels)
    record = make_record(
        fitted, tested, cfg, seed, folder, host, features_seconds, device, bank.backbone, num_train, targets
    )
    model = make_model(task, bank, folder, host, fitted, record)
    if model is None:
        reason = load_method(cfg.run.trainer).not_saved or "it returns no classifier"
        logger.info("%s leaves no model folder: %s", cfg.run.trainer, reason)
    folder.finish(record, tested, fitted, model, thumbnails)
    return record


def keep_epochs(task: Task, bank: FeatureBank, folder: RunFolder, host: str) -> Callable[[HeGraphModel, int], None]:
    """What writes the model of an epoch, for `AdapterTraining`; arguments as of `make_model`."""
    without_test = bank.without_test()

    def keep(model: HeGraphModel, epoch: int) -> None:
        saved = make_model(task, without_test, folder, host, fitted_adapter(TrainedAdapter(model)))
        assert saved is not None  # HeGraphAdapter always folds
        save_model(saved, folder.model_folder(epoch))

    return keep
