"""A few-shot task of images and a backbone. It imports open_clip, which takes seconds and which no bank needs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torch import Tensor
from yacs.config import CfgNode

from ..backbones.clip import Backbone
from ..backbones.loading import load_backbone
from ..datasets import Dataset, load_dataset, load_few_shot
from ..features import FeatureBank
from ..features.extract import encode_task, encode_test
from ..features.options import encoding_options
from ..features.text import encode_prompts
from ..features.views import ImageViews, training_augmentation
from ..prompts.positive import description_file, resolve_source
from ..training.batches import OnlineBatches, TrainingData
from ..utils.errors import UserError
from ..utils.files import hash_json, read_json
from .tasks import bank_batches


class ImageTask:
    """Images that a few-shot protocol has selected, encoded by a backbone.

    Args:
        dataset: The selected images.
        cfg: The whole configuration.
        seed: Of the augmentation and the batches.
        device: Where the backbone runs.

    Raises:
        UserError: If the backbone cannot be had, or the configuration contradicts it.
    """

    def __init__(self, dataset: Dataset, cfg: CfgNode, seed: int, device: str) -> None:
        self.dataset, self.cfg, self.seed = dataset, cfg, seed
        self.encoding = encoding_options(cfg)
        self.split = {"train": [list(item) for item in dataset.train], "val": [list(item) for item in dataset.val]}
        options = cfg.TRAINER.HEGRAPHADAPTER
        self.backbone = load_backbone(cfg.MODEL.BACKBONE.NAME, cfg.MODEL.BACKBONE.PRETRAINED, device, options.PREC)
        _check_input(cfg, self.backbone)
        self.identity = {"backbone": self.backbone.fingerprint, "image_sizes": dataset.file_sizes()}
        prompts = options.PROMPTS
        if resolve_source(dataset.name, prompts.SOURCE, prompts.DESCRIPTIONS) != "templates":
            self.identity["descriptions"] = hash_json(read_json(description_file(dataset.name, prompts.DESCRIPTIONS)))

    def bank(self) -> FeatureBank:
        return encode_task(self.dataset, self.backbone, self.encoding, self.seed, self._folder(self.dataset))

    def target_images(self, name: str) -> tuple[Dataset, Tensor, Tensor]:
        """Another data set, with the features `[M, d]` and labels `[M]` of its test images.

        Args:
            name: A data set, or NAME:base or NAME:new for a half of its classes.

        Raises:
            UserError: If it cannot be had.
        """
        name, _, which = name.partition(":")
        dataset = load_dataset(name, self.cfg.DATASET.ROOT, self.seed).subsample(which or "all")
        dataset = replace(dataset, train=[], val=[])
        dataset.check_files()
        return dataset, *encode_test(dataset, self.backbone, self.encoding, self._folder(dataset))

    def target(self, name: str) -> FeatureBank:
        """A bank of another data set, with its own text nodes and no training images; arguments as `target_images`."""
        dataset, features, labels = self.target_images(name)
        text = encode_prompts(self.backbone, dataset.name, dataset.classnames, self.encoding, self._folder(dataset))
        return FeatureBank(
            train_features=features.new_zeros(1, 0, features.shape[1]),
            train_labels=labels.new_zeros(0),
            test_features=features,
            test_labels=labels,
            text_positive=text["positive"],
            text_negative=text["negative"],
            classnames=list(dataset.classnames),
            dataset=dataset.name,
            backbone=self.backbone.name,
            logit_scale=self.backbone.logit_scale,
        )

    def _folder(self, dataset: Dataset) -> Path:
        return Path(self.cfg.TRAINER.HEGRAPHADAPTER.FEATURES.DIR) / dataset.name / self.backbone.name

    def batches(self, bank: FeatureBank) -> TrainingData:
        if self.cfg.TRAINER.HEGRAPHADAPTER.FEATURES.MODE == "bank":
            return bank_batches(bank, self.cfg, self.seed)
        images = ImageViews(self.dataset, self.dataset.train, training_augmentation(self.backbone, self.encoding))
        batch_size = self.cfg.DATALOADER.TRAIN_X.BATCH_SIZE
        return OnlineBatches(images, self.backbone, bank.train_labels, batch_size, self.seed)


def load_image_task(cfg: CfgNode, seed: int, device: str) -> ImageTask:
    """The task that CoOp's protocol selects from a data set on disk.

    Raises:
        UserError: If the data set or the backbone cannot be had.
    """
    data = cfg.DATASET
    if not data.NAME:
        raise UserError("no data: give --dataset-config-file configs/datasets/NAME.yaml, or --features BANK")
    dataset = load_few_shot(data.NAME, data.ROOT, data.NUM_SHOTS, seed, data.SUBSAMPLE_CLASSES)
    return ImageTask(dataset, cfg, seed, device)


def _check_input(cfg: CfgNode, backbone: Backbone) -> None:
    """Resolution and normalisation are the model's; Dassl's keys for them must not say otherwise."""
    for key, said, true in (
        ("SIZE", cfg.INPUT.SIZE, backbone.input_size),
        ("PIXEL_MEAN", cfg.INPUT.PIXEL_MEAN, backbone.mean),
        ("PIXEL_STD", cfg.INPUT.PIXEL_STD, backbone.std),
    ):
        if said and tuple(said) != tuple(true):
            raise UserError(f"INPUT.{key} is {tuple(said)} but {backbone.name} takes {tuple(true)}; leave the key out")
