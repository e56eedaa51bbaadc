"""A few-shot task of images and a backbone, and how a run opens the task that it is asked for.

The backbone is loaded when something has to be encoded, and open_clip imported with it: that takes seconds, and a run
that is finished needs neither.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from ..backbones.identity import backbone_identity
from ..baselines import TRANSDUCTIVE_METHODS
from ..config import Config
from ..datasets import Dataset, load_few_shot, load_test_images
from ..datasets.base import check_classes
from ..datasets.loading import load_pool, load_unlabelled
from ..datasets.own import NAME as OWN
from ..datasets.own import files_among, refuse_copies
from ..features import extract
from ..features.bank import SUFFIX, Encoder, FeatureBank
from ..features.extract import class_prompts, encode_prompts
from ..features.images import ImageViews
from ..models.saved import Backbone as BackboneConfig
from ..models.saved import Preprocessing, Prompts, SavedModel
from ..prompts.sentences import description_file, resolve_source
from ..training.batches import OnlineBatches, TrainingData
from ..utils import processes
from ..utils.errors import UserError
from ..utils.files import hash_json
from ..utils.reading import read_json
from .tasks import (
    POOL,
    TOGETHER,
    BankTask,
    Split,
    Task,
    Unlabelled,
    bank_to_test,
    match_classes,
    refuse_tested,
    shared_bank,
)

if TYPE_CHECKING:
    from ..backbones.clip import Backbone

logger = logging.getLogger(__name__)


class ImageTask(Task):
    """Images that a few-shot protocol has selected, encoded by a backbone on a device; `seed` is also that of their
    augmentation. What encodes raises UserError on an unreadable image, a class without a prompt, or a folder that
    cannot be written.
    """

    def __init__(self, dataset: Dataset, cfg: Config, seed: int, device: str) -> None:
        self.dataset, self.cfg, self.seed, self.device = dataset, cfg, seed, device
        self.name, self.classnames, self.class_ids = dataset.name, dataset.classnames, dataset.ids

    @cached_property
    def split(self) -> Split:  # type: ignore[override]
        return {part: [list(item) for item in getattr(self.dataset, part)] for part in ("train", "val")}

    @cached_property
    def identity(self) -> dict:  # type: ignore[override]
        """As of `Task`. Raises UserError if the weights or the descriptions of the classes cannot be had."""
        identity: dict = {"backbone": self._backbone_identity, "image_sizes": self.dataset.file_sizes()}
        prompts = self.cfg.encoding
        if resolve_source(self.name, prompts.source, prompts.descriptions) != "templates":
            identity["descriptions"] = hash_json(read_json(description_file(self.name, prompts.descriptions)))
        return identity

    @cached_property
    def _backbone_identity(self) -> dict:
        options = self.cfg.backbone
        return backbone_identity(options.name, options.pretrained, options.precision, self.device)

    @cached_property
    def backbone(self) -> Backbone:
        """The frozen CLIP, loaded when it is first asked for; raises UserError if the configuration contradicts it."""
        options = self.cfg.backbone
        version = hash_json(self._backbone_identity)
        backbone = _shared_backbone(options.name, options.pretrained, self.device, options.precision, version)
        for key, said, true in (
            ("SIZE", options.input_size, backbone.input_size),
            ("PIXEL_MEAN", options.mean, backbone.mean),
            ("PIXEL_STD", options.std, backbone.std),
        ):
            if said and tuple(said) != tuple(true):
                raise UserError(
                    f"INPUT.{key} is {tuple(said)} but {backbone.name} takes {tuple(true)}; leave the key out"
                )
        return backbone

    def prepare(self) -> None:
        """Loads the backbone, and refuses a user's own training images that are test images as well."""
        if self.name == OWN:  # other splits are what they are, even where an image is in two of them
            refuse_copies(self.dataset)
        _ = self.backbone

    def write_bank(self, path: Path) -> None:
        """Encodes what is not on disk, and has the first process of `torchrun` write the whole bank."""
        self.prepare()
        bank = self.bank()
        if processes.rank() == 0:
            encoder = Encoder(**self.backbone_config().model_dump(exclude={"title"}))
            replace(bank, encoder=encoder).save(path)

    def bank(self) -> FeatureBank:
        return extract.encode_task(self.dataset, self.backbone, self.cfg.encoding, self.seed, self._folder)

    def test_features(self) -> tuple[Tensor, Tensor]:
        return extract.encode_test(self.dataset, self.backbone, self.cfg.encoding, self._folder)

    def text_features(self) -> tuple[Tensor, Tensor]:
        """Positive and negative text nodes of the classes, each `[K, d]`."""
        text = encode_prompts(self.backbone, self.name, self.classnames, self.cfg.encoding, self._folder)
        return text["positive"], text["negative"]

    def test_bank(self) -> FeatureBank:
        """As of `Task`, without training images."""
        features, labels = self.test_features()
        positive, negative = self.text_features()
        return FeatureBank(
            train_features=features.new_zeros(1, 0, features.shape[1]),
            train_labels=labels.new_zeros(0),
            test_features=features,
            test_labels=labels,
            text_positive=positive,
            text_negative=negative,
            classnames=list(self.classnames),
            dataset=self.name,
            backbone=self.backbone.name,
            logit_scale=self.backbone.logit_scale,
        )

    def unlabelled(self, what: str) -> Unlabelled:
        if what.endswith(SUFFIX):
            return super().unlabelled(what)
        if what == POOL:
            data, used = self.cfg.data, {item.path for item in (*self.dataset.train, *self.dataset.test)}
            images = load_pool(self.name, data.root, self.seed, data.classes, used)
        else:
            images = load_unlabelled(Path(what))
        # Splits that others have made are what they are, even where an image is in two of them
        own = what != POOL or self.name == OWN
        return Unlabelled(lambda: [images.paths(), images.file_sizes()], lambda: self._encoded(images, own))

    def _encoded(self, images: Dataset, check: bool) -> Tensor:
        """Features of unlabelled images, and if asked for a check that none of their files is one of a test image."""
        if check and (pool := images.files("test")) and (tested := self.dataset.files("test")):
            refuse_tested(files_among(pool, tested), len(pool))
        if self.cfg.data.skip_unreadable and (left_out := [*images.unreadable_images()]):
            logger.warning("%d of %d images are left out, such as %s", len(left_out), len(images.test), left_out[0])
            images = images.without(left_out)
        views = ImageViews(images, images.test, self.backbone.preprocess)
        return extract.encode_images(self.backbone, views, self.cfg.encoding, self._folder, "unlabelled")[0]

    def backbone_config(self) -> BackboneConfig:
        """The backbone, as a model folder names it."""
        options, backbone = self.cfg.backbone, self.backbone
        return BackboneConfig(
            title=backbone.name,
            model=options.name,
            pretrained=options.pretrained,
            precision=backbone.precision,
            fingerprint=backbone.fingerprint,
        )

    def made_of(self, bank: FeatureBank) -> tuple[BackboneConfig, Preprocessing, Prompts]:
        positive, negative = class_prompts(self.name, self.classnames, self.cfg.encoding)
        prompts = Prompts(positive=positive, negative=negative)
        return self.backbone_config(), Preprocessing.of(self.backbone), prompts

    def check_backbone(self, model: SavedModel) -> None:
        from ..models.images import check_backbone  # imports torchvision

        check_backbone(model, self.backbone)

    def target(self, name: str, same_classes: bool) -> ImageTask:
        known, _, which = name.partition(":")
        dataset = load_test_images(known, self.cfg.data.root, self.seed, which or "all")
        task = ImageTask(dataset, self.cfg, self.seed, self.device)
        if same_classes:
            match_classes(self.class_ids, task.class_ids, self.name, name)
        check_classes(len(task.class_ids), name)
        return task

    def batches(self, bank: FeatureBank) -> TrainingData:
        if self.cfg.data.features == "bank":
            return super().batches(bank)
        augmented = extract.training_augmentation(self.backbone, self.cfg.encoding)
        images = ImageViews(self.dataset, self.dataset.train, augmented)
        return OnlineBatches(images, self.backbone, bank.train_labels, self.cfg.data.batch_size, self.seed)

    @property
    def _folder(self) -> Path:
        return Path(self.cfg.data.features_dir) / self.name / self.backbone.name


@lru_cache(maxsize=1)
def _shared_backbone(name: str, pretrained: str, device: str, precision: str, version: str) -> Backbone:
    """The backbone that the runs of a process share; `version` changes whenever its weights do."""
    from ..backbones.loading import load_backbone  # imports open_clip

    return load_backbone(name, pretrained, device, precision)


def open_task(cfg: Config, bank_file: Path | None, seed: int, device: str, only_test: bool = False) -> Task:
    """The task of a run: rows of a feature bank, or images of `DATASET.NAME`. Nothing is encoded yet.

    Args:
        seed: Of the selection and the run.
        device: Where the backbone runs.
        only_test: Whether a trained model is to be tested, so that there are test images alone.

    Raises:
        UserError: If bank, data set or weights cannot be had, a transductive method is to predict images one by one, or
            other data sets are to be tested with predictions of the test images together.
    """
    what, method = cfg.data.unlabelled, cfg.run.trainer
    if method in TRANSDUCTIVE_METHODS and what != TOGETHER:
        raise UserError(f"{method} predicts all test images together: give --unlabelled {TOGETHER}, got {what!r}")
    if what == TOGETHER and (cfg.data.target_domains or cfg.data.target_datasets):
        raise UserError(f"--unlabelled {TOGETHER} reaches no other data set; leave out the targets, or give {POOL}")
    if bank_file is None:
        return load_image_task(cfg, seed, device, only_test)
    if not only_test:
        return BankTask(bank_file, cfg, seed)
    return bank_to_test(shared_bank(bank_file, cfg), cfg.data.classes, cfg, seed)


def load_image_task(cfg: Config, seed: int, device: str, only_test: bool = False) -> ImageTask:
    """The task that CoOp's protocol selects from a data set on disk; arguments and errors as of `open_task`."""
    data = cfg.data
    if not data.name:
        raise UserError("no data: give --dataset-config-file configs/datasets/NAME.yaml, or --features BANK")
    if only_test:
        dataset = load_test_images(data.name, data.root, max(cfg.run.seed, 0), data.classes)
    else:
        dataset = load_few_shot(data.name, data.root, data.shots, seed, data.classes)
    return ImageTask(dataset, cfg, seed, device)
