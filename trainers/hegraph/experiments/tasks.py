"""A few-shot task, and the one that is made of a feature bank. `image_task.py` makes one of images."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol, runtime_checkable

from PIL import Image
from torch import Tensor
from yacs.config import CfgNode

from ..datasets import Dataset, select_few_shot, subsample_labels
from ..features.bank import FeatureBank, draw_bank
from ..features.bank_file import BankFile
from ..models.schema import Backbone as BackboneConfig
from ..models.schema import Preprocessing, Prompts
from ..training.batches import BankBatches, TrainingData, products_with_cache
from ..utils.errors import UserError

Split = dict[str, list[list]]  # "train" and "val", each rows of [path or bank row, label, class name]


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
    """A task that can give other data sets to test on, encoded by the same backbone.

    Attributes:
        dataset: The images of the task itself.
    """

    dataset: Dataset

    def target_images(self, name: str) -> tuple[Dataset, Tensor, Tensor]:
        """Another data set, with the features `[M, d]` and labels `[M]` of its test images."""
        ...

    def target(self, name: str) -> FeatureBank:
        """A bank of another data set, with its own text nodes and no training images."""
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


class BankTask:
    """A task made of rows of a feature bank. Nothing is encoded, and of the image features only those rows are read.

    Args:
        source: The bank file, or its path.
        cfg: The checked configuration.
        seed: Seed of the few-shot selection and of the batches.

    Raises:
        UserError: If the bank is unusable or is of another data set or mode than the configuration says.
    """

    def __init__(self, source: Path | BankFile, cfg: CfgNode, seed: int) -> None:
        if cfg.TRAINER.HEGRAPHADAPTER.FEATURES.MODE == "online":
            raise UserError("FEATURES.MODE online encodes images, and --features has none; use FEATURES.MODE bank")
        file = source if isinstance(source, BankFile) else BankFile(source)
        file.check_dataset(cfg.DATASET.NAME)
        self.file, self.cfg, self.seed = file, cfg, seed
        train_labels = file.labels["train"].tolist()
        val_labels = file.labels["val"].tolist() if "val" in file.labels else []
        self.selection = select_few_shot(train_labels, val_labels, cfg.DATASET.NUM_SHOTS, random.Random(seed))
        self.identity = {"bank": file.identity(self.selection.train, self.selection.val)}
        names, which = file.classnames, cfg.DATASET.SUBSAMPLE_CLASSES
        # Where all classes are asked for, one without images stays here and is an error later
        drawn = range(len(names)) if which == "all" else {train_labels[row] for row in self.selection.train}
        kept = {label: new for new, label in enumerate(subsample_labels(drawn, which))}

        def rows(selected: list[int], labels: list[int]) -> list[list]:
            return [[row, kept[labels[row]], names[labels[row]]] for row in selected if labels[row] in kept]

        self.split = {"train": rows(self.selection.train, train_labels), "val": rows(self.selection.val, val_labels)}

    def prepare(self) -> None:
        """Needs nothing."""

    def bank(self) -> FeatureBank:
        """The rows that the protocol selected; test features are read by `FeatureBank.with_test`."""
        return draw_bank(self.file, self.selection).subsample(self.cfg.DATASET.SUBSAMPLE_CLASSES)

    def batches(self, bank: FeatureBank) -> TrainingData:
        return bank_batches(bank, self.cfg, self.seed)


def bank_batches(bank: FeatureBank, cfg: CfgNode, seed: int) -> BankBatches:
    """Batches of a task's features, with the products that every step of the configured variant needs."""
    full = cfg.TRAINER.HEGRAPHADAPTER.VARIANT == "full"  # the others have no cache
    products = products_with_cache(bank.train_features, bank.cache_keys()) if full else None
    return BankBatches(bank.train_features, bank.train_labels, cfg.DATALOADER.TRAIN_X.BATCH_SIZE, seed, products)


def bank_class_ids(bank: FeatureBank) -> tuple[str, ...]:
    """What tells the classes of a bank apart: their names or, where two have the same name, names with positions."""
    names = tuple(bank.classnames)
    return names if len(set(names)) == len(names) else tuple(f"{k}: {name}" for k, name in enumerate(names))
