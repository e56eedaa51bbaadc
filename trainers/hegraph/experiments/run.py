"""One experiment: task -> features -> method -> test -> record, or the test of a trained model."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import InstanceOf

from ..baselines.base import FittedMethod
from ..config import Config
from ..config_files import with_values
from ..features.bank import FeatureBank
from ..method.model import HeGraphModel
from ..models.folder import CONFIG, THUMBNAILS, load_model, save_model, write_thumbnails
from ..models.saved import SavedModel
from ..results.records import OTHER_CLASSES
from ..training.confidence import Calibration
from ..utils import processes
from ..utils.devices import available_device
from ..utils.errors import UserError
from ..utils.schema import check
from .evaluation import (
    TrainedMethod,
    check_configuration,
    encode_targets,
    evaluate,
    hear,
    score_targets,
    test_loaded,
    unlabelled_features,
)
from .fitting import Keep, calibrated, fit, fitted_adapter, set_random_seed
from .folder import RunFolder, find_model, make_model
from .tasks import POOL, ImageTask, Task, Tested, open_task


def run(
    cfg: Config,
    bank_file: Path | None = None,
    model_dir: Path | None = None,
    load_epoch: int | None = None,
    train: bool = True,
    keep_thumbnails: bool = False,
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

    Returns:
        The record, or {} if nothing was tested. A run whose folder holds its record is not computed again, and CLIP is
        not even loaded for it. Of several processes that `torchrun` started, all encode and the first goes on. The runs
        of a process share the bank and the backbone that were opened last.

    Raises:
        Locked: If another process is at work in the output folder.
        UserError: On anything else that the user can mend.
    """
    check(InstanceOf[Config], cfg, "cfg")
    bank_file, model_dir = (None if path is None else Path(path) for path in (bank_file, model_dir))  # may be text
    device = available_device(cfg.run.use_cuda)
    seed = cfg.run.seed if cfg.run.seed >= 0 else draw_seed()
    set_random_seed(seed)
    if keep_thumbnails and (bank_file is not None or model_dir is not None):
        raise UserError("--keep-thumbnails needs training images; leave it out with --features and --eval-only")
    if model_dir is not None:
        return test_model(cfg, bank_file, model_dir, load_epoch, device)
    folder = RunFolder(open_task(cfg, bank_file, seed, device))
    record = train_in(folder, device, train)
    task, model = folder.task, folder.model_folder
    wanted = keep_thumbnails and (model / CONFIG).is_file() and not (model / THUMBNAILS).is_dir()
    if wanted and isinstance(task, ImageTask):
        write_thumbnails(model, (task.dataset.read(item.path) for item in task.dataset.train))
    return record


def draw_seed() -> int:
    """The seed of an unseeded run, below 2**31; the processes of `torchrun` share the one that the first draws."""
    return processes.of_first(lambda: random.SystemRandom().randrange(2**31))


def train_in(folder: RunFolder, device: str, train: bool) -> dict:
    """The record of the training run of a folder, whose work is done unless it is finished; arguments as of `run`."""
    task = folder.task
    if (record := folder.finished()) is not None:
        return record
    if train:
        task.check_trained_classes()
        _ = task.targets
    task.prepare()
    if processes.rank() == 0:
        return folder.do(lambda: train_and_test(folder, device, train))
    task.bank()  # the first process has the folder; this one helps it to encode
    if train:
        encode_targets(task)
    return {}


def train_and_test(folder: RunFolder, device: str, train: bool) -> dict:
    """Encodes and, if asked for, trains, tests and writes the record, in a folder that is this process's own."""
    task, started = folder.task, time.monotonic()
    bank = task.bank()
    seconds = time.monotonic() - started
    if not train:
        return {}
    if processes.world_size() > 1:
        encode_targets(task)
        processes.stop()  # the others end here: what is read from now on must not wait for them
    bank = bank.to(device)
    fitted = fit(task, bank, folder.checkpoints, keep_epochs(folder, bank))
    return test_and_finish(folder, bank, fitted, seconds)


def test_and_finish(
    folder: RunFolder,
    bank: FeatureBank,
    fitted: FittedMethod,
    features_seconds: float,
    show: Callable[[Tested], None] | None = None,
) -> dict:
    """Finds the temperature of a method that has just been fitted to a bank, which lies on the device, tests it, and
    writes what the run leaves. `show` is given what it says about the test images; getting the features took
    `features_seconds`.
    """
    task, device, name = folder.task, bank.train_features.device, folder.task.cfg.run.trainer
    fitted = calibrated(fitted, task, bank)
    trained = TrainedMethod(name, fitted, bank.dataset, task.class_ids, bank.text_positive, bank.logit_scale)
    if what := task.cfg.data.unlabelled:
        features = unlabelled_features(task, task, bank.backbone).to(bank.train_features)
        trained = hear(trained, task.labelled(bank), features, what)
    tested = evaluate(trained, Task(bank, task.cfg, task.seed, class_ids=task.class_ids), device)
    if show is not None:
        show(tested)
    targets = score_targets(trained, task, device)
    about = {"backbone": bank.backbone, "num_train": len(bank.train_labels), "targets": targets}
    return folder.finish(trained.fitted, tested, device, features_seconds, bank, **about)


def keep_epochs(folder: RunFolder, bank: FeatureBank) -> Keep:
    """What writes the model of an epoch into the folder of a run, whose task's features are `bank`."""
    without_test = bank.without_test()

    def keep(model: HeGraphModel, epoch: int) -> None:
        saved = make_model(folder, without_test, fitted_adapter(model))
        assert saved is not None  # HeGraphAdapter always folds
        save_model(saved, folder.path / f"model-epoch{epoch}")

    return keep


# --eval-only


def test_model(cfg: Config, bank_file: Path | None, folder: Path, epoch: int | None, device: str) -> dict:
    """Tests the model of `find_model` on the test images of a bank or of DATASET.NAME, and writes and returns the
    record. Raises UserError if model or data cannot be had, or do not fit each other.
    """
    path = find_model(folder, epoch)
    model = load_model(path)
    check_configuration(model, cfg)
    target = open_task(cfg, bank_file, model.trained_on.seed, device, only_test=True)
    run_folder = RunFolder(target, model=path)
    if (record := run_folder.finished()) is not None:
        return record
    trained = TrainedMethod.loaded(model, device)
    if processes.rank():  # the first process has the folder; this one helps it to encode
        test_loaded(model, trained, target, device)
        return {}
    if what := cfg.data.unlabelled:
        as_trained = with_values(cfg, {"DATASET.NUM_SHOTS": model.trained_on.shots})
        source = open_task(as_trained, bank_file, model.trained_on.seed, device) if what == POOL else target
        features = unlabelled_features(target, source, model.backbone.title).to(device)
        trained = hear(trained, model.labelled, features, what)
    return run_folder.do(lambda: test_and_write(run_folder, model, trained, device))


def test_and_write(
    folder: RunFolder,
    model: SavedModel,
    trained: TrainedMethod,
    device: str,
    show: Callable[[Tested], None] | None = None,
) -> dict:
    """Tests a model that was read from its folder, as `trained`, and writes and returns the record; `show` as of
    `test_and_finish`.
    """
    started = time.monotonic()
    tested = test_loaded(model, trained, folder.task, device)
    if show is not None:
        show(tested)
    fitted, origin = trained.fitted, model.trained_on
    # The temperature is that of the whole model on its classes
    if tested.rule == OTHER_CLASSES or (tested.rule and model.method == "HeGraphAdapter"):
        fitted = replace(fitted, calibration=Calibration())
    of_model = ("shots", "num_train", "split_hash", "selected_on", "selected")
    about: dict[str, Any] = {key: getattr(origin, key) for key in of_model}
    if tested.rule:
        about |= {"rule": tested.rule, "num_classes": len(tested.classnames), "trained_on": origin.dataset}
    seconds = time.monotonic() - started
    return folder.finish(fitted, tested, device, seconds, backbone=model.backbone.title, **about)
