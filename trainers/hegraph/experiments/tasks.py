"""Where a few-shot task comes from: a feature bank on disk; of images, see `image_task.py`."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Protocol

from yacs.config import CfgNode

from ..datasets import select_few_shot, subsample_labels
from ..features import FeatureBank, load_bank
from ..training.batches import BankBatches, TrainingData, products_with_cache
from ..utils.errors import UserError
from ..utils.files import hash_file

Split = dict[str, list[list]]  # "train" and "val", each rows of [path or bank row, label, class name]


class Task(Protocol):
    """One few-shot task.

    Attributes:
        split: What the protocol selected.
        identity: Plain values that change whenever the data would; the split aside.
    """

    split: Split
    identity: dict

    def bank(self) -> FeatureBank:
        """The task's features."""

    def batches(self, bank: FeatureBank) -> TrainingData:
        """Its training batches, given its features."""


class BankTask:
    """Rows of a feature bank. Nothing is encoded.

    Args:
        path: The bank file.
        cfg: The whole configuration.
        seed: Of the few-shot selection and the batches.

    Raises:
        UserError: If the bank is unusable or is of another data set or mode than the configuration says.
    """

    def __init__(self, path: Path, cfg: CfgNode, seed: int) -> None:
        if cfg.TRAINER.HEGRAPHADAPTER.FEATURES.MODE == "online":
            raise UserError("FEATURES.MODE online encodes images, and --features has none; use FEATURES.MODE bank")
        self.full = load_bank(path)
        if cfg.DATASET.NAME and self.full.dataset != cfg.DATASET.NAME:
            raise UserError(f"{path} holds {self.full.dataset!r} but DATASET.NAME is {cfg.DATASET.NAME!r}")
        self.cfg, self.seed = cfg, seed
        self.identity = {"bank": hash_file(path)}
        train_labels = self.full.train_labels.tolist()
        val_labels = [] if self.full.val_labels is None else self.full.val_labels.tolist()
        self.selection = select_few_shot(train_labels, val_labels, cfg.DATASET.NUM_SHOTS, random.Random(seed))
        names, which = self.full.classnames, cfg.DATASET.SUBSAMPLE_CLASSES
        # Of all classes, one without images is an error later, and not left out here
        drawn = range(len(names)) if which == "all" else {train_labels[row] for row in self.selection.train}
        kept = {label: new for new, label in enumerate(subsample_labels(drawn, which))}

        def rows(selected: list[int], labels: list[int]) -> list[list]:
            return [[row, kept[labels[row]], names[labels[row]]] for row in selected if labels[row] in kept]

        self.split = {"train": rows(self.selection.train, train_labels), "val": rows(self.selection.val, val_labels)}

    def bank(self) -> FeatureBank:
        return self.full.select(self.selection).subsample(self.cfg.DATASET.SUBSAMPLE_CLASSES)

    def batches(self, bank: FeatureBank) -> TrainingData:
        return bank_batches(bank, self.cfg, self.seed)


def bank_batches(bank: FeatureBank, cfg: CfgNode, seed: int) -> BankBatches:
    """Batches from a task's features, with what a step of the configured variant wants worked out before."""
    full = cfg.TRAINER.HEGRAPHADAPTER.VARIANT == "full"  # the others have no cache
    products = products_with_cache(bank.train_features, bank.cache_keys()) if full else None
    return BankBatches(bank.train_features, bank.train_labels, cfg.DATALOADER.TRAIN_X.BATCH_SIZE, seed, products)
