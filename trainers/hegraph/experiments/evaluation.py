"""Tests of a trained model on any data set: its own, other domains of its classes, other classes.

Which rule applies follows from the classes (see `find_rule`), and the log and the record say it. The rules are those of
`elsewhere.py`, which tests right after training, and give the same numbers.

Shapes: M test images, K classes, d feature width.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ..config import OPTIONS, Config, is_filled
from ..config_files import with_values
from ..datasets import Dataset, load_test_images
from ..datasets.base import check_classes
from ..datasets.splits import Selection
from ..features.bank import FeatureBank
from ..features.bank_file import BankFile
from ..method.cache import text_logits
from ..models.folder import load_model
from ..models.saved import SavedModel
from ..results.records import OTHER_CLASSES, SAME_CLASSES
from ..training.confidence import Calibration
from ..training.loop import TrainingSummary
from ..utils import processes
from ..utils.errors import UserError
from ..utils.schema import OpenPart, check
from .elsewhere import match_classes
from .folder import RunFolder, find_model
from .identity import bank_identity, run_config
from .outcome import Outcome
from .record import make_record
from .tasks import bank_class_ids, bank_to_test, check_has_test

logger = logging.getLogger(__name__)

# Keys that shaped a model of HeGraphAdapter, and that a test cannot change any more
KEPT = tuple(key for key, option in OPTIONS.items() if option.shapes_model)


class TestData(Protocol):
    """Test images of one data set."""

    @property
    def identity(self) -> dict:
        """Plain values that change whenever the data would."""
        ...

    @property
    def name(self) -> str:
        """Of the data set."""
        ...

    @property
    def classnames(self) -> Sequence[str]:
        """The K class names in label order."""
        ...

    @property
    def class_ids(self) -> Sequence[str]:
        """What tells classes apart across data sets, in label order."""
        ...

    def check_backbone(self, model: SavedModel) -> None:
        """Raises UserError if the features here are not those of the model's backbone."""
        ...

    def test_features(self) -> tuple[Tensor, Tensor]:
        """Features `[M, d]` and labels `[M]`."""
        ...

    def text_features(self) -> tuple[Tensor, Tensor]:
        """Positive and negative text nodes of the classes, each `[K, d]`."""
        ...


class BankTestData:
    """The test part of a feature bank.

    Raises:
        UserError: If the bank is unusable, of another data set than the configuration says, or has no test images.
    """

    def __init__(self, path: Path, cfg: Config) -> None:
        file = BankFile(path)
        file.check_dataset(cfg.data.name)
        check_has_test(file)
        self.bank = bank_to_test(file, cfg.data.classes)
        self.identity = bank_identity(file, Selection([], []))

    @property
    def name(self) -> str:
        """As `TestData`."""
        return self.bank.dataset

    @property
    def classnames(self) -> Sequence[str]:
        """As `TestData`."""
        return self.bank.classnames

    @property
    def class_ids(self) -> Sequence[str]:
        """As `TestData`: `bank_class_ids`."""
        return bank_class_ids(self.bank)

    def check_backbone(self, model: SavedModel) -> None:
        """As `TestData`."""
        if self.bank.backbone != model.backbone.title:
            raise UserError(
                f"the model is of {model.backbone.title!r} features, but the bank holds those of {self.bank.backbone!r}"
            )

    def test_features(self) -> tuple[Tensor, Tensor]:
        """As `TestData`."""
        assert self.bank.test_labels is not None  # they come with the features
        return self.bank.features_to_classify, self.bank.test_labels

    def text_features(self) -> tuple[Tensor, Tensor]:
        """As `TestData`."""
        return self.bank.text_positive, self.bank.text_negative


@dataclass(frozen=True)
class Tested:
    """A trained model on one data set.

    Attributes:
        outcome: What it says about the test images.
        bank: The test images as a bank without training images; its text features are zero-shot CLIP's.
        rule: "" on the data set that it was trained on, else `SAME_CLASSES` or `OTHER_CLASSES`.
    """

    outcome: Outcome
    bank: FeatureBank
    rule: str


def test_images(cfg: Config) -> Dataset:
    """The data set whose test images the configuration names.

    Raises:
        UserError: If it cannot be had.
    """
    data = cfg.data
    if not data.name:
        raise UserError("no data: give --dataset-config-file configs/datasets/NAME.yaml, or --features BANK")
    return load_test_images(data.name, data.root, max(cfg.run.seed, 0), data.classes)


def test_model(cfg: Config, bank_file: Path | None, folder: Path, epoch: int | None, device: str) -> dict:
    """Tests a trained model, and writes and returns the record.

    Of several processes that `torchrun` started, all encode and the first writes; the others return {}.

    Args:
        cfg: The checked configuration; its data set is tested on.
        bank_file: A feature bank to test on; None encodes the test images of `DATASET.NAME`.
        folder: The output folder of the run that trained the model, or the model folder.
        epoch: The epoch whose model is tested; None takes the last.
        device: "cpu" or "cuda".

    Raises:
        UserError: If model or data cannot be had, or do not fit each other.
    """
    path = find_model(folder, epoch)
    model = load_model(path)
    check_configuration(model, cfg)
    data: TestData
    if bank_file is not None:
        data = BankTestData(bank_file, cfg)
    else:
        from .image_task import ImageTask

        data = ImageTask(test_images(cfg), cfg, model.trained_on.seed, device)
    run_folder = RunFolder.of_test(cfg, data.identity, model.trained_on.seed, path)
    if (record := run_folder.finished()) is not None:
        return record
    if processes.rank():  # the first process has the folder; this one helps it to encode
        evaluate(model, data, device)
        return {}
    with run_folder.locked():
        started = time.monotonic()
        return write_test(evaluate(model, data, device), model, cfg, run_folder, "alone", started)


def write_test(tested: Tested, model: SavedModel, cfg: Config, folder: RunFolder, host: str, started: float) -> dict:
    """Writes and returns the record of a test; `started` is when encoding began, in seconds of the monotonic clock."""
    seconds = time.monotonic() - started
    record = make_record(tested.outcome, tested.bank, cfg, model.trained_on.seed, folder, host, seconds)
    trained = model.trained_on
    record |= {"shots": trained.shots, "num_train": trained.num_train, "split_hash": trained.split_hash}
    record |= {"selected_on": trained.selected_on, "selected": trained.selected}
    if tested.rule:
        record |= {"rule": tested.rule, "num_classes": len(tested.bank.classnames), "trained_on": trained.dataset}
    folder.finish(record, tested.outcome, tested.bank.classnames)
    return record


def check_configuration(model: SavedModel, cfg: Config) -> None:
    """Checks that a configuration does not ask for another model than the one at hand.

    Raises:
        UserError: If it names another method, or changes a key that shaped the model. A key that follows from the shots
            of this configuration, which need not be those of the model, changes nothing. Nor does a key that was chosen
            on val, where it has the chosen value, or the one that it had before the choice.
    """
    if cfg.run.trainer != model.method:
        raise UserError(f"the model is of {model.method}; give --trainer {model.method}, not {cfg.run.trainer}")
    here = json.loads(json.dumps(run_config(cfg)))  # rows may be tuples here, and are lists in the model folder
    there = model.trained_on.config
    chosen = _chosen_on_val(model, cfg)
    of_method = [key for key in there if key.startswith(f"TRAINER.{model.method.upper()}.")]
    for key in KEPT if model.method == "HeGraphAdapter" else of_method:
        kept = chosen.get(key, there.get(key))
        if key in there and here.get(key) not in (kept, there[key]) and not is_filled(cfg, key):
            how = "got" if key in chosen else "was trained with"
            where = " on val" if key in chosen else ""
            raise UserError(
                f"the model {how} {key} {kept}{where} and keeps it, but the configuration says {here.get(key)}; leave "
                "the key as it was, or train again"
            )


def _chosen_on_val(model: SavedModel, cfg: Config) -> dict[str, object]:
    """The keys that `--select val` chose for a model, with the chosen values as a configuration holds them."""
    if model.method != "HeGraphAdapter" or not model.trained_on.selected:
        return {}
    selected = check(_Selected, model.trained_on.selected, "the model does not say what was chosen on val")
    pairs = list(zip(selected.keys, selected.value))
    with_chosen = run_config(with_values(cfg, [entry for pair in pairs for entry in pair]))
    return {key: with_chosen.get(key) for key, _ in pairs}


class _Selected(OpenPart):
    """What `tune_on_val` says of its choice, as far as it is read here."""

    keys: list[str]
    value: list[Any]


def find_rule(model: SavedModel, data: TestData) -> tuple[str, list[int]]:
    """How a model is tested on a data set.

    Returns:
        "" where data set and classes are those of the training, `SAME_CLASSES` where all classes are among the model's,
        else `OTHER_CLASSES`; and of every class of the data its position among the model's, [] for other classes.
    """
    known = set(model.class_ids)
    if not all(class_id in known for class_id in data.class_ids):
        return OTHER_CLASSES, []
    columns = match_classes(model.class_ids, data.class_ids, model.trained_on.dataset, data.name)
    same = data.name == model.trained_on.dataset and columns == list(range(len(model.class_ids)))
    return ("" if same else SAME_CLASSES), columns


def evaluate(model: SavedModel, data: TestData, device: str) -> Tested:
    """What a trained model says about test images.

    Raises:
        UserError: If the features are another backbone's, or the model has no rule for these classes, or there is but
            one of them.
    """
    data.check_backbone(model)
    check_classes(len(data.classnames))
    rule, columns = find_rule(model, data)
    if rule:
        logger.info("%s: tested by the rule for %s", data.name, rule)
    features, labels = (tensor.to(device) for tensor in data.test_features())
    if features.shape[1] != model.classifier.width:
        raise UserError(f"the model takes features of width {model.classifier.width}, got {features.shape[1]}")
    classifier = model.classifier.to(device)
    # HeGraphAdapter's cache has learned the style of its images; another method is tested whole, as by `elsewhere`
    without_cache = bool(rule) and model.method == "HeGraphAdapter"
    if rule == OTHER_CLASSES:
        positive, negative = (tensor.to(device) for tensor in data.text_features())
        logits = text = _transfer(model, features, positive, negative)
    else:
        positive = model.text_positive[columns].to(device)
        parts = (classifier.text_only() if without_cache else classifier).parts(features)
        logits, text = classifier.combine(parts)[:, columns], parts.text[:, columns]
    whole = rule != OTHER_CLASSES and not without_cache  # the temperature is that of the whole model on its classes
    has_text = model.method == "HeGraphAdapter"
    outcome = Outcome(
        logits,
        labels,
        TrainingSummary(),
        num_parameters=0,
        text_logits=text if has_text else None,
        variant=model.variant,
        calibration=Calibration(model.temperature, "model", known=model.known) if whole else Calibration(),
    )
    return Tested(outcome, _test_bank(model, data, features, labels, positive), rule)


def _transfer(model: SavedModel, features: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    if model.transfer_rule == "adapter" and model.transfer is not None:
        return model.transfer.to(features.device).logits(features, positive, negative, model.logit_scale)
    if model.transfer_rule == "zero-shot":
        return text_logits(features, positive, model.logit_scale)
    raise UserError(f"{model.method} has no rule for classes that it was not trained on; test it on its own classes")


def _test_bank(model: SavedModel, data: TestData, features: Tensor, labels: Tensor, positive: Tensor) -> FeatureBank:
    return FeatureBank(
        train_features=features.new_zeros(1, 0, features.shape[1]),
        train_labels=torch.zeros(0, dtype=torch.long, device=features.device),
        test_features=features,
        test_labels=labels,
        text_positive=positive,
        text_negative=positive,
        classnames=list(data.classnames),
        dataset=data.name,
        backbone=model.backbone.title,
        logit_scale=model.logit_scale,
    )
