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
from .evaluation import TrainedMethod, encode_targets, evaluate, hear, score_targets, targets_of, test_model
from .fitting import Keep, fit, fitted_adapter, set_random_seed
from .folder import RunFolder
from .image_task import open_task
from .record import make_model, make_record
from .tasks import FeatureTask, Opened, Tested
from .unlabelled import labelled_images, unlabelled_features

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
    folder = RunFolder(task)
    thumbnails = task.training_images() if keep_thumbnails else None
    if (record := folder.finished(thumbnails)) is not None:
        return record
    if train:
        task.check_trained_classes()
        targets_of(task)
    task.prepare()
    if processes.rank():  # the first process has the folder; this one helps it to encode
        task.encode()
        if train:
            encode_targets(task)
        return {}

    def work() -> dict:
        if train:
            return train_and_test(folder, device, thumbnails)
        task.encode()
        return {}

    return folder.do(work, thumbnails)


def draw_seed() -> int:
    """The seed of an unseeded run, below 2**31; the processes of `torchrun` share the one that the first draws."""
    return processes.of_first(lambda: random.SystemRandom().randrange(2**31))


def train_and_test(folder: RunFolder, device: str, thumbnails: Iterable[Image.Image] | None = None) -> dict:
    """Encodes, trains, tests and writes the record, in a folder that is this process's own."""
    task, started = folder.task, time.monotonic()
    bank = task.bank()
    seconds = time.monotonic() - started
    if processes.world_size() > 1:
        encode_targets(task)
        processes.stop()  # the others end here: what is read from now on must not wait for them
    bank = bank.to(device)
    fitted = fit(task, bank, folder.checkpoints(bank.classnames), keep_epochs(folder, bank))
    return test_and_finish(folder, bank, fitted, seconds, thumbnails)


def test_and_finish(
    folder: RunFolder,
    bank: FeatureBank,
    fitted: FittedMethod,
    features_seconds: float,
    thumbnails: Iterable[Image.Image] | None = None,
    show: Callable[[Tested], None] | None = None,
) -> dict:
    """Tests a method that has just been fitted, finds its temperature, and writes what the run leaves.

    Args:
        folder, bank: Of the run, and the features of its task, on the device.
        fitted: The method.
        features_seconds: How long encoding or reading the features took.
        thumbnails: As of `RunFolder.finish`.
        show: Is given what the method says about the test images.
    """
    task, device = folder.task, bank.train_features.device
    own = FeatureTask(bank, task.cfg, task.seed, class_ids=task.class_ids)
    fitted = calibrated(fitted, task, bank)
    if what := task.cfg.data.unlabelled:
        features = unlabelled_features(task, task, bank.backbone, bank.train_features.shape[2]).to(bank.train_features)
        fitted = hear(TrainedMethod.of(fitted, task, bank), labelled_images(task, bank), features, what)
    tested = evaluate(TrainedMethod.of(fitted, task, bank), own, device)
    if show is not None:
        show(tested)
    targets = score_targets(TrainedMethod.of(fitted, task, bank), task, device)
    about = {"backbone": bank.backbone, "num_train": len(bank.train_labels), "targets": targets}
    record = make_record(folder, fitted, tested, device, features_seconds, **about)
    model = make_model(folder, bank, fitted, record)
    if model is None:
        logger.info("%s leaves no model folder: %s", task.cfg.run.trainer, why_not_saved(fitted, task.cfg))
    folder.finish(record, tested, fitted, model, thumbnails)
    return record


def why_not_saved(fitted: FittedMethod, cfg: Config) -> str:
    """Why a run leaves no model folder."""
    if fitted.together:
        return "what it says of a test image depends on the others"
    return load_method(cfg.run.trainer).not_saved or "it returns no classifier"


def keep_epochs(folder: RunFolder, bank: FeatureBank) -> Keep:
    """What writes the model of an epoch into the folder of a run, whose task's features are `bank`."""
    without_test = bank.without_test()

    def keep(model: HeGraphModel, epoch: int) -> None:
        saved = make_model(folder, without_test, fitted_adapter(model))
        assert saved is not None  # HeGraphAdapter always folds
        save_model(saved, folder.model_folder(epoch))

    return keep
