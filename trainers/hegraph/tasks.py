"""Where a few-shot task comes from: a feature bank on disk, or a data set's images and a backbone."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from yacs.config import CfgNode

from .backbone import Backbone, load_backbone
from .batches import BankBatches, OnlineBatches, TrainingData
from .datasets import Item, load_dataset, select_few_shot
from .errors import UserError
from .features import FeatureBank, ImageViews, encode_task, load_bank, training_augmentation
from .files import hash_file, read_json

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
        if self.full.test_features is None:
            raise UserError(f"{path} has no test_features and test_labels: there is nothing to test on")
        self.cfg, self.seed = cfg, seed
        self.identity = {"bank": hash_file(path)}
        train_labels = self.full.train_labels.tolist()
        val_labels = [] if self.full.val_labels is None else self.full.val_labels.tolist()
        self.selection = select_few_shot(train_labels, val_labels, cfg.DATASET.NUM_SHOTS, seed)
        names = self.full.classnames
        self.split = {
            "train": [[row, train_labels[row], names[train_labels[row]]] for row in self.selection.train],
            "val": [[row, val_labels[row], names[val_labels[row]]] for row in self.selection.val],
        }

    def bank(self) -> FeatureBank:
        return self.full.select(self.selection)

    def batches(self, bank: FeatureBank) -> TrainingData:
        return _bank_batches(bank, self.cfg, self.seed)


class ImageTask:
    """Images of a data set, encoded by a backbone.

    Args:
        cfg: The whole configuration.
        seed: Of the few-shot selection, the augmentation and the batches.
        device: Where the backbone runs.

    Raises:
        UserError: If the data set or the backbone cannot be had.
    """

    def __init__(self, cfg: CfgNode, seed: int, device: str) -> None:
        if not cfg.DATASET.NAME:
            raise UserError("no data: give --dataset-config-file configs/datasets/NAME.yaml, or --features BANK")
        self.cfg, self.seed = cfg, seed
        self.dataset = load_dataset(cfg.DATASET.NAME, cfg.DATASET.ROOT)
        train_labels = [item.label for item in self.dataset.train]
        val_labels = [item.label for item in self.dataset.val]
        self.selection = select_few_shot(train_labels, val_labels, cfg.DATASET.NUM_SHOTS, seed)
        self.train: list[Item] = [self.dataset.train[i] for i in self.selection.train]
        val = [self.dataset.val[i] for i in self.selection.val]
        self.split = {"train": [list(item) for item in self.train], "val": [list(item) for item in val]}
        self.backbone: Backbone = load_backbone(cfg.MODEL.BACKBONE.NAME, cfg.MODEL.BACKBONE.PRETRAINED, device)
        _check_input(cfg, self.backbone)
        descriptions = cfg.TRAINER.HEGRAPHADAPTER.PROMPTS.DESCRIPTIONS
        self.identity = {"backbone": self.backbone.fingerprint}
        if descriptions:
            self.identity["descriptions"] = read_json(Path(descriptions))

    def bank(self) -> FeatureBank:
        folder = Path(self.cfg.TRAINER.HEGRAPHADAPTER.FEATURES.DIR) / self.dataset.name / self.backbone.name
        return encode_task(self.dataset, self.selection, self.backbone, self.cfg, self.seed, folder)

    def batches(self, bank: FeatureBank) -> TrainingData:
        if self.cfg.TRAINER.HEGRAPHADAPTER.FEATURES.MODE == "bank":
            return _bank_batches(bank, self.cfg, self.seed)
        images = ImageViews(self.dataset, self.train, training_augmentation(self.backbone, self.cfg))
        batch_size = self.cfg.DATALOADER.TRAIN_X.BATCH_SIZE
        return OnlineBatches(images, self.backbone, bank.train_labels, batch_size, self.seed)


def _check_input(cfg: CfgNode, backbone: Backbone) -> None:
    """Resolution and normalisation are the model's; Dassl's keys for them must not say otherwise."""
    size = (backbone.image_size, backbone.image_size)
    for key, said, true in (
        ("SIZE", cfg.INPUT.SIZE, size),
        ("PIXEL_MEAN", cfg.INPUT.PIXEL_MEAN, backbone.mean),
        ("PIXEL_STD", cfg.INPUT.PIXEL_STD, backbone.std),
    ):
        if tuple(said) != tuple(true):
            raise UserError(f"INPUT.{key} is {tuple(said)} but {backbone.name} takes {tuple(true)}; set it so")


def _bank_batches(bank: FeatureBank, cfg: CfgNode, seed: int) -> BankBatches:
    return BankBatches(bank.train_features, bank.train_labels, cfg.DATALOADER.TRAIN_X.BATCH_SIZE, seed)
