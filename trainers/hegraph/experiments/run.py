"""Run of one experiment: task, features, method, test, record; or the test of a trained model."""

import json
import logging
import random
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from pydantic import InstanceOf
from torch import Tensor

from ..baselines import load_method
from ..baselines.base import FittedMethod
from ..baselines.hegraph import fitted_adapter
from ..config import Config, is_filled
from ..config_files import with_values
from ..datasets.base import Dataset
from ..features.bank import FeatureBank
from ..method.model import HeGraphModel
from ..method.training.loop import Checkpoints
from ..method.training.memory import note_work
from ..models.folder import CONFIG, THUMBNAILS, load_model, save_model
from ..models.saved import SavedModel
from ..models.support_set import label_kind
from ..models.thumbnails import write_thumbnails
from ..results.records import OTHER_CLASSES
from ..utils import processes
from ..utils.devices import available_device, wait_for
from ..utils.errors import UserError
from ..utils.reading import validate
from ..utils.seeds import preserved_generators, set_random_seed
from .adaptation import AdaptedModel, adapt_model, read_unlabelled
from .calibration import calibrate, log_calibration
from .checks import check_training, check_unlabelled, check_unseen, reason_not_saved
from .evaluation import Predictions, encode_targets, encode_test_images, evaluate, rule_for, score_targets
from .fitting import fit
from .image_task import ImageTask, with_decoding
from .opening import open_task
from .prompt_source import images_only_backbone, with_prompt_source
from .record import Seconds, make_model, write_outputs
from .run_folder import EPOCH_MODEL, RunFolder, find_model_of_epoch, run_config
from .tasks import FeatureTask, Task

logger = logging.getLogger(__name__)

Show = Callable[[Predictions], None]  # receives the predictions before the record is written


def run(
    cfg: Config,
    bank_file: Path | None = None,
    model_dir: Path | None = None,
    load_epoch: int | None = None,
    train: bool = True,
    keep_thumbnails: bool = False,
) -> dict:
    """Train and test a method with one seed, and write the record of the run.

    Args:
        cfg: Checked configuration; `TRAINER.NAME` names the method.
        bank_file: Feature bank of the data; None encodes the images of `DATASET.NAME`.
        model_dir: Folder of a finished run, or of a model, to test instead of training one.
        load_epoch: Epoch of `model_dir` whose model is tested (default: the last).
        train: False encodes the features and stops.
        keep_thumbnails: Whether to write thumbnails of the training images into the model folder, which works for a
            finished run as well.

    The global random generators are seeded during the run and restored after it.

    Returns:
        The record, or {} if nothing was tested. A finished run is not computed again, and CLIP is not loaded for it.
        The runs of a process share the bank and the backbone that were opened last. With `train=False`, the processes
        of `torchrun` share the encoding; everything else runs in one process.

    Raises:
        Locked: If another process works in the output folder.
        UserError: On any other error that the user can mend.

    Examples:
        >>> from hegraph import load_cfg, run
        >>> options = ["DATASET.NUM_SHOTS", 1, "TRAINER.HEGRAPHADAPTER.VARIANT", "training_free"]
        >>> record = run(load_cfg("digits", "mini", opts=[*options, "OUTPUT_DIR", "output/example"]))
        >>> print(f"zero-shot {record['accuracy_zero_shot']:.0f} %, adapted {record['accuracy']:.0f} %")
        zero-shot 78 %, adapted 80 %
    """
    with preserved_generators():
        return _run(cfg, bank_file, model_dir, load_epoch, train, keep_thumbnails)


def _run(
    cfg: Config,
    bank_file: Path | None,
    model_dir: Path | None,
    load_epoch: int | None,
    train: bool,
    keep_thumbnails: bool,
) -> dict:
    """Train and test a method with seeded global generators; arguments and errors as in `run`."""
    note_work()
    validate(InstanceOf[Config], cfg, "cfg")
    bank_file = None if bank_file is None else Path(bank_file)  # or strings
    model_dir = None if model_dir is None else Path(model_dir)
    if model_dir is not None and not train:
        raise UserError("train=False encodes the images of a training, and model_dir names a model to test: give one")
    if processes.world_size() > 1 and train:
        raise UserError("expected one process, but this one is in a group; only train=False shares its work")
    device = available_device(cfg.run.use_cuda)
    seed = cfg.run.seed if cfg.run.seed >= 0 else draw_seed()
    set_random_seed(seed)
    if keep_thumbnails and (bank_file is not None or model_dir is not None or not train):
        problem = "--keep-thumbnails needs a training on images"
        raise UserError(f"{problem}; leave it out with --features, --eval-only and --no-train")
    if model_dir is not None:
        return test_model(cfg, bank_file, model_dir, load_epoch, device)
    task = open_task(cfg, bank_file, seed, device)
    if keep_thumbnails and (reason := reason_not_saved(task)):
        raise UserError(f"--keep-thumbnails needs a model folder, and {cfg.run.trainer} saves none: {reason}")
    folder = RunFolder(task)
    if not train:
        return encode_only(folder)
    record = train_in(folder, device)
    if keep_thumbnails and isinstance(task, ImageTask):
        add_thumbnails(folder.model_folder, task.dataset)
    return record


def add_thumbnails(model: Path, dataset: Dataset) -> None:
    """Write thumbnails of the training images into a model folder, unless it has them."""
    if (model / CONFIG).is_file() and not (model / THUMBNAILS).is_dir():
        write_thumbnails(model, (dataset.read(item.path) for item in dataset.train))


def draw_seed() -> int:
    """Return a random seed below 2**31, the same in all processes of `torchrun`."""
    return processes.broadcast_from_rank0(lambda: random.SystemRandom().randrange(2**31))


def encode_only(folder: RunFolder) -> dict:
    """Encode the images of a run, in all processes of `torchrun`; return the record if the run is finished, else {}."""
    if (record := folder.finished()) is not None:
        return record
    folder.task.prepare()

    def encode() -> dict:
        folder.task.bank()
        return {}

    return encode() if processes.rank() else folder.run_once(encode)  # the first process locks the folder


def train_in(folder: RunFolder, device: str) -> dict:
    """Train in an output folder unless its run is finished; return the record."""
    if (record := folder.finished()) is not None:
        return record
    check_training(folder.task)
    folder.task.prepare()
    return folder.run_once(lambda: train_and_test(folder, device))


def train_and_test(folder: RunFolder, device: str) -> dict:
    """Encode, train, test and write the record, in a folder that this process has locked."""
    task = folder.task
    started = time.monotonic()
    bank = task.bank()
    seconds = time.monotonic() - started
    encode_targets(task)  # before the training, so that an unreadable image ends the run early
    unlabelled = None
    if task.cfg.data.unlabelled:
        unlabelled = read_unlabelled(task, bank.text_positive, bank.backbone, device)
    bank = bank.to(device)
    fitted = fit(task, bank, checkpoints_with_models(folder, bank))
    return test_and_finish(folder, bank, fitted, seconds, unlabelled)


def test_and_finish(
    folder: RunFolder,
    bank: FeatureBank,
    fitted: FittedMethod,
    seconds: float,
    unlabelled: Tensor | None = None,
    show: Show | None = None,
) -> dict:
    """Calibrate a fitted method, adapt it to unlabelled images, test it and write the outputs of the run.

    Args:
        folder: Output folder, which this process has locked.
        bank: Features of the task, on the device.
        fitted: Result of `fit` on the bank.
        seconds: Time of encoding or reading the features.
        unlabelled: Features `[M, d]` of the unlabelled images to adapt to.
        show: Function that receives the predictions before the record is written.
    """
    task = folder.task
    device = bank.train_features.device
    fitted = calibrate(fitted, task, bank)
    log_calibration(fitted.calibration)
    model = make_model(folder, bank, fitted).model_copy(update={"fitted": fitted})
    if model.names_sentence:
        logger.info("%s", model.names_sentence)
    adapted = AdaptedModel(model, {})
    if unlabelled is not None:
        adapted = adapt_model(model, unlabelled, task.cfg.data.unlabelled, device)
    target = FeatureTask(bank, task.cfg, task.seed, class_ids=task.class_ids)
    return test_and_write(folder, adapted, target, device, seconds, show)


def test_and_write(
    folder: RunFolder,
    adapted: AdaptedModel,
    target: Task,
    device: str | torch.device,
    seconds: float,
    show: Show | None = None,
) -> dict:
    """Test a fitted or loaded model; write and return the record.

    Args:
        folder: Output folder, which this process has locked.
        adapted: The model, after its adaptation to unlabelled images if there is one.
        target: Test images, whose features are in memory or on disk.
        device: Device of the computation.
        seconds: Time of encoding or reading the features.
        show: Function that receives the predictions before the record is written.
    """
    started = time.monotonic()
    predictions = evaluate(adapted.model, target, device, logits=adapted.logits)
    wait_for(torch.device(device))
    measured = Seconds(features=seconds, test=time.monotonic() - started)
    if show is not None:
        show(predictions)
    targets = score_targets(adapted.model, folder.task, device) if folder.model is None else {}
    return write_outputs(folder, adapted, predictions, device, measured, targets)


def checkpoints_with_models(folder: RunFolder, bank: FeatureBank) -> Checkpoints:
    """Return the checkpoints of a run on a bank; with TRAIN.CHECKPOINT_FREQ, they also save model folders."""

    def save_epoch(model: HeGraphModel, epoch: int) -> None:
        saved = make_model(folder, bank, fitted_adapter(model))
        assert isinstance(saved, SavedModel)
        save_model(saved, folder.path / f"{EPOCH_MODEL}{epoch}")

    return replace(folder.checkpoints, on_epoch=save_epoch)


# Test of a trained model


def check_configuration(model: SavedModel, cfg: Config) -> None:
    """Check that a configuration agrees with a trained model.

    Keys that follow from the number of shots may differ. A key that was selected on val may have the selected value or
    the value before the selection.

    Raises:
        UserError: If the configuration names another method, or changes a key that the model stores.
    """
    if cfg.run.trainer != model.method:
        raise UserError(f"the model is of {model.method}; give --trainer {model.method}, not {cfg.run.trainer}")
    configured = json.loads(json.dumps(run_config(cfg)))  # turns tuples into lists, as in the folder
    method = load_method(model.method)
    expected = dict(model.trained_on.config)
    if method.selects_on_val and model.trained_on.selected:
        selected = tuple(model.trained_on.selected.get(name) for name in ("keys", "value"))
        keys, values = validate(tuple[list[str], list], selected, "the model lacks the keys selected on val")
        with_selected = run_config(with_values(cfg, dict(zip(keys, values))))
        expected |= {key: with_selected.get(key) for key in keys}
    for key, before_selection in model.trained_on.config.items():
        value = configured.get(key)
        if method.stores_key(key) and value not in (expected[key], before_selection) and not is_filled(cfg, key):
            problem = f"the model was trained with other settings, which a test cannot change: {key} {expected[key]}"
            raise UserError(f"{problem}, not {value}; to test it, end the command with {key} '{expected[key]}'")


def test_model(cfg: Config, bank_file: Path | None, folder: Path, epoch: int | None, device: str) -> dict:
    """Test the model of `find_model_of_epoch` on a bank or on DATASET.NAME; write and return the record.

    Raises:
        UserError: If model or data cannot be read, or do not fit each other, or a test image was a training image.
    """
    path = find_model_of_epoch(folder, epoch)
    model = load_model(path)
    if bank_file is None:
        cfg = with_prompt_source(cfg, images_only_backbone(cfg))
    check_configuration(model, cfg)
    cfg = with_decoding(cfg, model.backbone.decode)
    target = open_task(cfg, bank_file, model.trained_on.seed, device, model.trained_on)
    if target.multilabel != (model.thresholds is not None):
        own = label_kind(target.multilabel)
        of_model = label_kind(not target.multilabel)
        raise UserError(f"{target.name} has {own} per image, but the model has {of_model}; train on such data")
    run_folder = RunFolder(target, model=path)
    if (record := run_folder.finished()) is not None:
        return record
    check_unseen(path, model, target)
    if cfg.data.unlabelled:
        if rule_for(model, target) == OTHER_CLASSES:
            raise UserError(f"--unlabelled adapts to classes of the model, but {target.name} has others; leave it out")
        check_unlabelled(target)
    return run_folder.run_once(lambda: adapt_and_test(run_folder, model, device))


def adapt_and_test(folder: RunFolder, model: SavedModel, device: str, show: Show | None = None) -> dict:
    """Adapt a loaded model to unlabelled images if the configuration names some, test it; return the record.

    Args:
        folder: Output folder, which this process has locked, with the task to test on.
        model: The model.
        device: Device of the computation.
        show: Function that receives the predictions before the record is written.
    """
    task = folder.task
    adapted = AdaptedModel(model, {})
    if source := task.cfg.data.unlabelled:
        unlabelled = read_unlabelled(task, model.text_positive, model.backbone.title, device)
        adapted = adapt_model(model, unlabelled, source, device)
    started = time.monotonic()
    task.check_backbone(model)
    encode_test_images(task, rule_for(model, task))
    return test_and_write(folder, adapted, task, device, time.monotonic() - started, show)
