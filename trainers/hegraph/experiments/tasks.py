"""A few-shot task, and the one that is made of a feature bank. `image_task.py` makes one of images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from PIL import Image
from torch import Tensor

from ..config import Config
from ..datasets import Dataset
from ..datasets.base import check_classes
from ..datasets.splits import Selection, subsample_labels
from ..features.bank import FeatureBank, draw_bank
from ..features.bank_file import BankFile
from ..features.overlap import refuse_test_rows, test_features_apart
from ..models.saved import Backbone as BackboneConfig
from ..models.saved import Preprocessing, Prompts
from ..training.batches import BankBatches, TrainingData, products_with_cache
from ..utils.errors import UserError
from .identity import Split, bank_identity, bank_split
from .opened import Opened


class Task(Protocol):
    """One few-shot task. It is known which images it holds before any of them is encoded."""

    @property
    def split(self) -> Split:
        """The images that the protocol selected."""
        ...

    @property
    def identity(self) -> dict:
        """Plain values that change whenever the data would, apart from the split."""
        ...

    def prepare(self) -> None:
        """Loads what encoding needs, so that a mistake is found before anything is written."""
        ...

    def bank(self) -> FeatureBank:
        """The task's features; images are encoded where they are not on disk."""
        ...

    def batches(self, bank: FeatureBank) -> TrainingData:
        """Its training batches, made of its features."""
        ...


@runtime_checkable
class TargetSource(Protocol):
    """A task that can give other classes to test on, encoded by the same backbone."""

    def check_target(self, name: str) -> None:
        """Raises UserError if `target` cannot give this data set; no image is opened."""
        ...

    def target(self, name: str) -> FeatureBank:
        """Test images of other classes as a bank with its own text nodes, features of the same backbone and no training
        images: of a data set, or with NAME:base or NAME:new of a half of its classes.
        """
        ...


@runtime_checkable
class DomainSource(Protocol):
    """A task that can give other domains of its classes to test on, encoded by the same backbone.

    Attributes:
        dataset: The images of the task itself.
    """

    dataset: Dataset

    def target_dataset(self, name: str) -> Dataset:
        """Another data set, of which nothing is encoded yet."""
        ...

    def target_images(self, name: str) -> tuple[Dataset, Tensor, Tensor]:
        """Another data set, with the features `[M, d]` and labels `[M]` of its test images."""
        ...


@runtime_checkable
class ModelSource(Protocol):
    """A task that knows how its features were made, so that its model can take images.

    Attributes:
        dataset: The images of the task itself.
    """

    dataset: Dataset

    def backbone_config(self) -> BackboneConfig:
        """The backbone, as a model folder names it."""
        ...

    def preprocessing(self) -> Preprocessing:
        """How an image becomes the backbone's input."""
        ...

    def prompts(self) -> Prompts:
        """The sentences of the text nodes."""
        ...


@runtime_checkable
class ImageSource(Protocol):
    """A task whose images have to be encoded, and can be shown."""

    def encode(self) -> None:
        """Encodes what is not on disk."""
        ...

    def training_images(self) -> Iterator[Image.Image]:
        """The training images in the order of the cache, opened one by one."""
        ...


@dataclass
class TaskOfFeatures:
    """A task of features that are at hand, as of some of the training images of another task. Nothing is encoded.

    Attributes:
        features: Their bank.
        cfg: The checked configuration.
        seed: Of the batches.
        split, identity: As of `Task`; they are empty where nothing is kept of such a task.
    """

    features: FeatureBank
    cfg: Config
    seed: int
    split: Split = field(default_factory=dict)
    identity: dict = field(default_factory=dict)

    def prepare(self) -> None:
        """Needs nothing."""

    def bank(self) -> FeatureBank:
        """The features as they are."""
        return self.features

    def batches(self, bank: FeatureBank) -> TrainingData:
        """Its training batches."""
        return bank_batches(bank, self.cfg, self.seed)


class BankTask:
    """A task made of rows of a feature bank. Nothing is encoded, and of the image features only those rows are read.

    Args:
        path: The bank file.
        cfg: The checked configuration.
        seed: Seed of the few-shot selection and of the batches.
        opened: What earlier runs of this process have opened; None opens the bank for this run alone.

    Raises:
        UserError: If the bank is unusable or is of another data set or mode than the configuration says.
    """

    def __init__(self, path: Path, cfg: Config, seed: int, opened: Opened | None = None) -> None:
        if cfg.data.features == "online":
            raise UserError("FEATURES.MODE online encodes images, and --features has none; use FEATURES.MODE bank")
        file = (opened or Opened()).bank(path)
        file.check_dataset(cfg.data.name)
        self.file, self.cfg, self.seed = file, cfg, seed
        train_labels = file.labels["train"].tolist()
        val_labels = file.labels["val"].tolist() if "val" in file.labels else []
        self.selection, self.split = bank_split(train_labels, val_labels, file.classnames, cfg, seed)
        self.identity = bank_identity(file, self.selection)

    def prepare(self) -> None:
        """Reads the rows of a bank of at most 1 GiB, so that a mistake is found before anything is written.

        The test features of a larger one are read and compared when they are predicted, since the first step need not
        wait for them.

        Raises:
            UserError: If an image of train or val is a test image as well, or the rows cannot be read.
        """
        if not self.file.is_large:
            refuse_test_rows(self._drawn)

    def bank(self) -> FeatureBank:
        """The rows that the protocol selected; test features of a large bank are read by `FeatureBank.with_test`."""
        return self._drawn

    @cached_property
    def _drawn(self) -> FeatureBank:
        drawn = draw_bank(self.file, self.selection).subsample(self.cfg.data.classes)
        if not self.file.is_large:
            return drawn.with_test()
        if drawn.read_test is None:
            return drawn
        return replace(drawn, read_test=cache(partial(test_features_apart, drawn)))

    def batches(self, bank: FeatureBank) -> TrainingData:
        return bank_batches(bank, self.cfg, self.seed)

    def check_target(self, name: str) -> None:
        """Raises UserError for any data set but the halves of the bank's own classes, and for a half of one class."""
        halves = [f"{self.file.dataset}:{which}" for which in ("base", "new")]
        if name not in halves:
            raise UserError(
                f"a feature bank has no other data sets: --target-datasets may be {' or '.join(halves)}, got {name!r}"
            )
        check_has_test(self.file)
        check_classes(len(labels_of(self.file, name.rpartition(":")[2])), name)

    def target(self, name: str) -> FeatureBank:
        """The test images of a half of the bank's classes."""
        self.check_target(name)
        return bank_to_test(self.file, name.rpartition(":")[2])


def check_has_test(file: BankFile) -> None:
    """Raises UserError if a bank has no test images."""
    if "test" not in file.labels:
        raise UserError(f"{file.path} has no test images, so no model can be tested on it")


def bank_to_test(file: BankFile, which: str) -> FeatureBank:
    """The test images of a bank, without its training images.

    Args:
        file: The bank.
        which: "all", or "base" or "new" for a half of the classes; see `datasets.splits.subsample_labels`.
    """
    bank = draw_bank(file, Selection([], []))
    if which == "all":
        return bank
    return bank.of_classes(torch.tensor(labels_of(file, which), dtype=torch.long))


def labels_of(file: BankFile, which: str) -> list[int]:
    """The labels of a half of a bank's classes, "base" or "new"; see `datasets.splits.subsample_labels`."""
    return subsample_labels(set(file.labels["train"].tolist()), which)


def check_trained_classes(task: Task) -> None:
    """Raises UserError if a task has training images of fewer than two classes, so that there is nothing to learn."""
    check_classes(len({label for _, label, _ in task.split["train"]}))


def bank_batches(bank: FeatureBank, cfg: Config, seed: int) -> BankBatches:
    """Batches of a task's features, with the products that every step of the configured variant needs."""
    full = cfg.model.variant == "full"  # the others have no cache
    products = products_with_cache(bank.train_features, bank.cache_keys()) if full else None
    return BankBatches(bank.train_features, bank.train_labels, cfg.data.batch_size, seed, products)


def bank_class_ids(bank: FeatureBank) -> tuple[str, ...]:
    """What tells the classes of a bank apart: their names or, where two have the same name, names with positions."""
    names = tuple(bank.classnames)
    return names if len(set(names)) == len(names) else tuple(f"{k}: {name}" for k, name in enumerate(names))
