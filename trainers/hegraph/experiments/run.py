"""One experiment: task -> features -> method -> test -> record, or the test of a trained model.

`evaluate` is the one way to test, after training as with `--eval-only`, on a method's own data set and on any other.
The rule follows from the classes:

- other domains of the same classes (CoOp's and the paper's protocol, Table 1): the trained text classifier is applied
  as it is. Classes are matched by what tells them apart across data sets (`Task.class_ids`, which are WordNet ids in
  ImageNet and its variants, where names repeat), never by position. Only the target's classes compete;
- other classes (CoCoOp's protocol: cross-dataset, base to new): HeGraphAdapter transfers as `TransferableAdapter` says,
  other methods by a rule of their own. A method without one is not tested.

Before it is tested, a method may hear images without labels, as `DATASET.UNLABELLED` names them
(`method/unlabelled.py`). There are two protocols, and no table mixes them with each other or with the inductive one.
*With unlabelled images*: a pool that holds no test image is heard, and test images are predicted one by one, as ever.
*Transductive*: the test images are the pool, so that what is said of one depends on the others.

Shapes: M images, K classes, d width.
"""

from __future__ import annotations

import json
import logging
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import InstanceOf
from torch import Tensor

from ..baselines import ALL_BASELINES, TRANSDUCTIVE_METHODS, load_method
from ..baselines.base import FittedMethod
from ..config import OPTIONS, Config, is_filled
from ..config_files import with_values
from ..datasets.base import check_classes
from ..features.bank import FeatureBank, row_hashes
from ..method.cache import text_logits
from ..method.model import HeGraphModel, TransferableAdapter
from ..method.options import ModelOptions
from ..method.unlabelled import ClassSums, adapt_to_unlabelled
from ..models.folder import CONFIG, THUMBNAILS, load_model, save_model, write_thumbnails
from ..models.saved import SavedModel, check_adaptable
from ..results.records import OTHER_CLASSES, SAME_CLASSES, SEMI_SUPERVISED, TRANSDUCTIVE, TargetRecord
from ..training.choice import accuracy
from ..training.confidence import Calibration
from ..training.loop import Checkpoints
from ..utils import processes
from ..utils.devices import available_device, wait_for
from ..utils.errors import UserError
from ..utils.files import hash_content
from ..utils.option import OUR_METHOD
from ..utils.reading import validate
from .checks import check_training, check_unlabelled
from .fitting import calibrated, classify_in_batches, fit, fitted_adapter, set_random_seed, transfer_fn
from .record import Training, make_model, write_outputs
from .run_folder import RunFolder, find_model_of_epoch, run_config
from .tasks import POOL, TEST_SET, FeatureTask, ImageTask, Task, Tested, match_classes, open_task, refuse_tested

logger = logging.getLogger(__name__)

Show = Callable[[Tested], None]  # what the host does with what was tested, before the record is written
# Keys that shaped a model of HeGraphAdapter, and that a test cannot change any more
MODEL_KEYS = tuple(key for key, option in OPTIONS.items() if option.shapes_model)


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
        not even loaded for it. The runs of a process share the bank and the backbone that were opened last. With
        `train=False`, the processes of `torchrun` share the encoding; everything else is done by one process.

    Raises:
        Locked: If another process is at work in the output folder.
        UserError: On anything else that the user can mend.
    """
    validate(InstanceOf[Config], cfg, "cfg")
    bank_file, model_dir = (None if path is None else Path(path) for path in (bank_file, model_dir))  # may be text
    if model_dir is not None and not train:
        raise UserError("train=False encodes the images of a training, and model_dir names a model to test: give one")
    if processes.world_size() > 1 and train:
        raise UserError("expected one process, but this one is in a group; only train=False shares its work")
    device = available_device(cfg.run.use_cuda)
    seed = cfg.run.seed if cfg.run.seed >= 0 else draw_seed()
    set_random_seed(seed)
    if keep_thumbnails and (bank_file is not None or model_dir is not None):
        raise UserError("--keep-thumbnails needs training images; leave it out with --features and --eval-only")
    if keep_thumbnails and not leaves_model(cfg):
        raise UserError(f"--keep-thumbnails puts them beside a model, and this run of {cfg.run.trainer} leaves none")
    if model_dir is not None:
        return test_model(cfg, bank_file, model_dir, load_epoch, device)
    folder = RunFolder(open_task(cfg, bank_file, seed, device))
    if not train:
        return encode_only(folder)
    record = train_in(folder, device)
    task, model = folder.task, folder.model_folder
    wanted = keep_thumbnails and (model / CONFIG).is_file() and not (model / THUMBNAILS).is_dir()
    if wanted and isinstance(task, ImageTask):
        write_thumbnails(model, (task.dataset.read(item.path) for item in task.dataset.train))
    return record


def draw_seed() -> int:
    """The seed of an unseeded run, below 2**31; the processes of `torchrun` share the one that the first draws."""
    return processes.broadcast_from_rank0(lambda: random.SystemRandom().randrange(2**31))


def leaves_model(cfg: Config) -> bool:
    """Whether a training run leaves a model folder."""
    saved = cfg.run.trainer not in ALL_BASELINES or not load_method(cfg.run.trainer).not_saved
    return saved and cfg.data.unlabelled != TEST_SET


def encode_only(folder: RunFolder) -> dict:
    """Encode the images of a run, in all processes of `torchrun`; return the record if the run is finished, else {}."""
    if (record := folder.finished()) is not None:
        return record
    folder.task.prepare()

    def encode() -> dict:
        folder.task.bank()
        return {}

    return encode() if processes.rank() else folder.do(encode)  # the first process has the folder


def train_in(folder: RunFolder, device: str) -> dict:
    """The record of the training run of a folder, whose work is done unless it is finished; arguments as of `run`."""
    if (record := folder.finished()) is not None:
        return record
    check_training(folder.task)
    folder.task.prepare()
    return folder.do(lambda: train_and_test(folder, device))


def train_and_test(folder: RunFolder, device: str) -> dict:
    """Encodes, trains, tests and writes the record, in a folder that is this process's own."""
    task, started = folder.task, time.monotonic()
    bank = task.bank()
    seconds = time.monotonic() - started
    encode_targets(task)  # and the unlabelled images: an unreadable one is found before the training
    unlabelled = None
    if task.cfg.data.unlabelled:
        unlabelled = read_unlabelled(task, task, task.labelled(bank), bank.backbone, device)
    bank = bank.to(device)
    fitted = fit(task, bank, keep_epochs(folder, bank))
    return test_and_finish(folder, bank, fitted, seconds, unlabelled)


def test_and_finish(
    folder: RunFolder,
    bank: FeatureBank,
    fitted: FittedMethod,
    seconds: float,
    unlabelled: UnlabelledImages | None = None,
    show: Show | None = None,
) -> dict:
    """Finds the temperature of a method that has just been fitted to a bank, which lies on the device, adapts it to
    unlabelled images, tests it, and writes what the run leaves. `show` is given what it says about the test images;
    getting the features took `seconds`.
    """
    task, device, name = folder.task, bank.train_features.device, folder.task.cfg.run.trainer
    fitted = calibrated(fitted, task, bank)
    trained = TrainedMethod(name, fitted, bank.dataset, task.class_ids, bank.text_positive, bank.logit_scale)
    if unlabelled is not None:
        trained = adapt(trained, unlabelled, device)
    tested = evaluate(trained, FeatureTask(bank, task.cfg, task.seed, class_ids=task.class_ids), device)
    if show is not None:
        show(tested)
    targets = score_targets(trained, task, device)
    training = Training.of_run(folder, bank, fitted)
    return write_outputs(folder, trained.fitted, tested, training, device, seconds, targets, bank)


def keep_epochs(folder: RunFolder, bank: FeatureBank) -> Checkpoints:
    """The checkpoints of a run, whose task's features are `bank`, which keep the models of epochs in its folder."""

    def save_epoch(model: HeGraphModel, epoch: int) -> None:
        saved = make_model(folder, bank, fitted_adapter(model), None)
        assert saved is not None  # HeGraphAdapter always folds
        save_model(saved, folder.path / f"model-epoch{epoch}")

    return replace(folder.checkpoints, on_epoch=save_epoch)


# What is tested


@dataclass(frozen=True)
class TrainedMethod:
    """A fitted method by its name, the data set and the K classes that it was fitted to, and zero-shot CLIP's text
    features of these, `[K, d]`, and its `tau`. `class_ids` tell classes apart across data sets.
    """

    method: str
    fitted: FittedMethod
    dataset: str
    class_ids: Sequence[str]
    text_positive: Tensor
    logit_scale: float

    @classmethod
    def loaded(cls, model: SavedModel, device: str) -> TrainedMethod:
        """A model that was read from its folder."""
        classifier, adapter = model.classifier.to(device), model.transfer
        if model.transfer_rule == "zero-shot":
            adapter = TransferableAdapter(ModelOptions(variant="base"), {})  # which leaves text features as they are
        transfer = None if adapter is None else transfer_fn(adapter.to(device), model.logit_scale)
        # No fit gives exactly 1: it stands for a model whose temperature was not fitted
        fitted_on = "nothing" if model.temperature == 1 else "model"
        fitted = FittedMethod(
            classifier.logits,
            transfer=transfer,
            classifier=classifier,
            text_classifier=classifier.text_only() if model.method == OUR_METHOD else None,
            variant=model.variant,
            calibration=Calibration(model.temperature, fitted_on, known=model.known),
        )
        text = model.text_positive.to(device)
        return cls(model.method, fitted, model.trained_on.dataset, model.class_ids, text, model.logit_scale)


# Images without labels


class UnlabelledImages(NamedTuple):
    """Unlabelled images that a method can adapt to.

    Attributes:
        what: DATASET.UNLABELLED.
        features: Of unit norm, shape `[M, d]`.
        labelled: Sums of the images that the method was fitted to; None for a method that predicts all test images
            together.
    """

    what: str
    features: Tensor
    labelled: ClassSums | None


def read_unlabelled(
    task: Task, source: Task, labelled: ClassSums | None, backbone: str, device: str
) -> UnlabelledImages:
    """Encode or read the unlabelled images that the configuration of a task names. `source` is the task whose images
    that were not drawn are the pool, and `backbone` made the features that the method takes.

    Raises:
        UserError: If the images cannot be had, are of another backbone, or are test images in a pool; or as
            `check_hearing`.
    """
    what = task.cfg.data.unlabelled
    found = (source if what == POOL else task).unlabelled(what)
    if found.backbone not in ("", backbone):
        raise UserError(f"{what} holds features of {found.backbone!r}, but the method's are of {backbone!r}")
    features = found.features()
    if what != TEST_SET and (tested := task.test_features()[0]) is not None:
        known = set(row_hashes(tested))
        refuse_tested([f"row {n}" for n, row in enumerate(row_hashes(features)) if row in known], len(features))
    if task.cfg.run.trainer in TRANSDUCTIVE_METHODS:
        return UnlabelledImages(what, features, None)
    width = features.shape[1] if labelled is None else labelled.sums.shape[1]
    return UnlabelledImages(what, features, check_adaptable(labelled, features, width, device))


def adapt(trained: TrainedMethod, unlabelled: UnlabelledImages, device: str | torch.device) -> TrainedMethod:
    """A method, with its temperature, that has adapted to unlabelled images on a device."""
    fitted, name, what = trained.fitted, trained.method, unlabelled.what
    if unlabelled.labelled is None:
        heard_of: dict[str, Any] = {"protocol": TRANSDUCTIVE, "unlabelled": {"images": what}}
        return replace(trained, fitted=replace(fitted, adaptation=heard_of))
    assert fitted.classifier is not None  # `check_method`
    features, labelled = unlabelled.features.to(device), unlabelled.labelled.to(device)
    started = time.monotonic()
    # Images with labels, as those of val, would tell zero-shot CLIP its temperature
    temperature = 1.0 if name == "ZeroShot" else fitted.calibration.temperature
    text, scale = trained.text_positive, trained.logit_scale
    adaptation = adapt_to_unlabelled(fitted.classifier, labelled, text, features, scale, temperature)
    wait_for(features.device)
    seconds = time.monotonic() - started
    logger.info("%d unlabelled images were heard in %.2f s", len(features), seconds)
    class_prior = {name: round(value, 4) for name, value in asdict(adaptation.class_prior).items()}
    images = {
        "images": what,
        "num_images": len(features),
        "hash": hash_content(features.cpu()),
        "class_prior": class_prior,
    }
    transductive, classifier = what == TEST_SET, adaptation.classifier
    fitted = replace(
        fitted,
        logits=(lambda _: adaptation.logits) if transductive else classifier.logits,
        classifier=None if transductive else classifier,
        text_classifier=None if transductive or fitted.text_classifier is None else classifier.text_only(),
        transductive=transductive,
        seconds=fitted.seconds + seconds,
        calibration=replace(fitted.calibration, known=None),  # known images score otherwise now
        adaptation={"protocol": TRANSDUCTIVE if transductive else SEMI_SUPERVISED, "unlabelled": images},
        unlabelled=None if transductive else features,
    )
    return replace(trained, fitted=fitted)


# Test images


def evaluate(trained: TrainedMethod, target: Task, device: str | torch.device, rule: str | None = None) -> Tested:
    """What a trained method says about the test images of a target, by a rule; None finds the rule.

    Raises:
        UserError: If the features are of another width, a logit is not finite, or there is but one class.
    """
    check_classes(len(target.class_ids), target.name)
    fitted = trained.fitted
    if rule != OTHER_CLASSES:
        found, columns = find_rule(trained, target)
        rule = found if rule is None else rule
    logits = text = None
    if rule != OTHER_CLASSES:
        given, labels = target.test_features()
        if given is None:
            return Tested(target.name, target.classnames)
        text_features, logit_scale = trained.text_positive[columns], trained.logit_scale
    else:
        other = target.test_bank().to(str(device))
        given, labels = other.features_to_classify, other.test_labels
        text_features, logit_scale = other.text_positive, other.logit_scale
    features, width = given.to(device), trained.text_positive.shape[1]
    if features.shape[1] != width:
        raise UserError(f"the model takes features of width {width}, got {features.shape[1]}")
    zero_shot = text_logits(features, text_features, logit_scale)
    if rule != OTHER_CLASSES:
        logits, text = (part[:, columns] for part in _on_known_classes(fitted, features, elsewhere=bool(rule)))
    elif fitted.transfer is not None:
        logits = text = fitted.transfer(other)
    if logits is not None and not logits.isfinite().all():
        raise UserError(f"{trained.method} predicts NaN or infinite logits")
    text = None if fitted.text_classifier is None else text
    labels = None if labels is None else labels.to(device)
    return Tested(target.name, target.classnames, logits, text, zero_shot, labels, rule)


@torch.no_grad()
def _on_known_classes(fitted: FittedMethod, features: Tensor, elsewhere: bool) -> tuple[Tensor, Tensor]:
    """Logits of a method, and of its text classifier if it has one, which is all that counts on other data sets."""
    if fitted.text_classifier is None or fitted.classifier is None:
        logits = fitted.logits(features) if fitted.transductive else classify_in_batches(fitted.logits, features)
        return logits, logits
    parts = (fitted.text_classifier if elsewhere else fitted.classifier).parts(features)
    return fitted.classifier.combine(parts), parts.text


def find_rule(trained: TrainedMethod, target: Task) -> tuple[str, list[int]]:
    """The rule: "" where data set and classes are those of the training, `SAME_CLASSES` where all classes are among the
    method's, else `OTHER_CLASSES`; and of every class of the data its position among the method's, [] for others.
    """
    if not set(target.class_ids) <= set(trained.class_ids):
        return OTHER_CLASSES, []
    columns = match_classes(trained.class_ids, target.class_ids, trained.dataset, target.name)
    its_own = target.name == trained.dataset and columns == list(range(len(trained.class_ids)))
    return "" if its_own else SAME_CLASSES, columns


# Further data sets at the end of a training run


def encode_targets(task: Task) -> None:
    """Encodes what `score_targets` will test on and is not on disk."""
    for _, target, rule in task.targets:
        _ = target.test_features() if rule == SAME_CLASSES else target.test_bank()


def score_targets(trained: TrainedMethod, task: Task, device: str | torch.device) -> dict[str, TargetRecord]:
    """Test a method on the further data sets of a task."""
    scores = {}
    for name, target, rule in task.targets:
        tested = evaluate(trained, target, device, rule)
        # `check_training` refuses a target without test images, or one that the method cannot classify
        assert tested.labels is not None and tested.zero_shot is not None and tested.logits is not None
        scores[name] = TargetRecord(
            accuracy=accuracy(tested.logits, tested.labels),
            accuracy_zero_shot=accuracy(tested.zero_shot, tested.labels),
            num_test=len(tested.labels),
            num_classes=tested.zero_shot.shape[1],
            rule=rule,
        )
    return scores


# --eval-only


def test_loaded(model: SavedModel, trained: TrainedMethod, target: Task, device: str) -> Tested:
    """What a model that was read from its folder, as `trained`, says about test images; UserError as `evaluate`, or if
    the features are another backbone's, or the model has no rule for these classes.
    """
    target.check_backbone(model)
    if trained.fitted.transfer is None and find_rule(trained, target)[0] == OTHER_CLASSES:
        raise UserError(f"{model.method} has no rule for other classes than its own; test it on those")
    return evaluate(trained, target, device)


def check_configuration(model: SavedModel, cfg: Config) -> None:
    """Checks that a configuration does not ask for another model than the one at hand.

    Raises:
        UserError: If it names another method, or changes a key that shaped the model. A key that follows from the shots
            of this configuration, which need not be those of the model, changes nothing. Nor does a key that was chosen
            on val, where it has the chosen value, or the one that it had before the choice.
    """
    if cfg.run.trainer != model.method:
        raise UserError(f"the model is of {model.method}; give --trainer {model.method}, not {cfg.run.trainer}")
    here = json.loads(json.dumps(run_config(cfg)))  # rows may be tuples here, and are lists in the folder
    before, ours, prefix = model.trained_on.config, model.method == OUR_METHOD, f"TRAINER.{model.method.upper()}."
    there = dict(before)
    if ours and model.trained_on.selected:  # on val
        said = [model.trained_on.selected.get(name) for name in ("keys", "value")]
        keys, values = validate(tuple[list[str], list], tuple(said), "the model does not say what was chosen on val")
        with_chosen = run_config(with_values(cfg, dict(zip(keys, values))))
        there |= {key: with_chosen.get(key) for key in keys}
    for key, value in before.items():
        kept = key in MODEL_KEYS if ours else key.startswith(prefix)
        if kept and here.get(key) not in (there[key], value) and not is_filled(cfg, key):
            raise UserError(
                f"the model was trained by another recipe, and keeps it: {key} {there[key]}, not {here.get(key)}; to "
                f"test it as it is, end the command with {key} '{there[key]}'"
            )


def test_model(cfg: Config, bank_file: Path | None, folder: Path, epoch: int | None, device: str) -> dict:
    """Test the model of `find_model_of_epoch` on a bank or on DATASET.NAME; write and return the record.

    Raises:
        UserError: If model or data cannot be read, or do not fit each other.
    """
    path = find_model_of_epoch(folder, epoch)
    model = load_model(path)
    check_configuration(model, cfg)
    target = open_task(cfg, bank_file, model.trained_on.seed, device, only_test=True)
    run_folder = RunFolder(target, model=path)
    if (record := run_folder.finished()) is not None:
        return record
    trained = TrainedMethod.loaded(model, device)
    if what := cfg.data.unlabelled:
        if find_rule(trained, target)[0] == OTHER_CLASSES:
            raise UserError(
                f"--unlabelled adapts a model to its own classes, but {target.name} has others; leave it out"
            )
        as_trained = with_values(cfg, {"DATASET.NUM_SHOTS": model.trained_on.shots})
        source = open_task(as_trained, bank_file, model.trained_on.seed, device) if what == POOL else target
        check_unlabelled(source, what)
        unlabelled = read_unlabelled(target, source, model.labelled, model.backbone.title, device)
        trained = adapt(trained, unlabelled, device)
    return run_folder.do(lambda: test_and_write(run_folder, model, trained, device))


def test_and_write(
    folder: RunFolder, model: SavedModel, trained: TrainedMethod, device: str, show: Show | None = None
) -> dict:
    """Tests a model that was read from its folder, as `trained`, and writes and returns the record; `show` as of
    `test_and_finish`.
    """
    started = time.monotonic()
    tested = test_loaded(model, trained, folder.task, device)
    if show is not None:
        show(tested)
    fitted = trained.fitted
    # The temperature is that of the whole model on its classes
    if tested.rule == OTHER_CLASSES or (tested.rule and model.method == OUR_METHOD):
        fitted = replace(fitted, calibration=Calibration())
    seconds = time.monotonic() - started
    return write_outputs(folder, fitted, tested, Training.of_model(model), device, seconds)
