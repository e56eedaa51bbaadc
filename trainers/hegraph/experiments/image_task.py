"""A few-shot task of images and a backbone.

The backbone is loaded when something has to be encoded, and open_clip imported with it: that takes seconds, and a run
that is finished needs neither.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image
from torch import Tensor

from ..config import Config
from ..datasets import Dataset, load_few_shot, load_test_images
from ..datasets.base import check_classes
from ..datasets.own import NAME as OWN
from ..datasets.own import refuse_copies
from ..features.bank import FeatureBank
from ..models.saved import Backbone as BackboneConfig
from ..models.saved import Preprocessing, Prompts, SavedModel
from ..training.batches import OnlineBatches, TrainingData
from ..utils import processes
from ..utils.errors import UserError
from .identity import Split, configured_backbone, images_identity, images_split
from .opened import Opened
from .tasks import bank_batches

if TYPE_CHECKING:
    from ..backbones.clip import Backbone
    from ..features.extract import Parts


class ImageTask:
    """Images that a few-shot protocol has selected, encoded by a backbone.

    Args:
        dataset: The selected images.
        cfg: The checked configuration.
        seed: Seed of the augmentation and of the batches.
        device: Where the backbone runs.
        opened: What earlier runs of this process have opened; None loads the backbone for this task alone.
    """

    def __init__(self, dataset: Dataset, cfg: Config, seed: int, device: str, opened: Opened | None = None) -> None:
        self.dataset, self.cfg, self.seed, self.device = dataset, cfg, seed, device
        self.encoding = cfg.encoding
        self.opened = opened or Opened()
        self._targets: dict[str, Dataset] = {}

    @cached_property
    def split(self) -> Split:
        """The images that the protocol selected."""
        return images_split(self.dataset)

    @cached_property
    def identity(self) -> dict:
        """Plain values that change whenever the data would, apart from the split.

        Raises:
            UserError: If the weights of the backbone or the descriptions of the classes cannot be had.
        """
        return images_identity(self.dataset, self.cfg, self._backbone_identity)

    @cached_property
    def _backbone_identity(self) -> dict:
        return configured_backbone(self.cfg, self.device)

    @cached_property
    def backbone(self) -> Backbone:
        """The frozen CLIP, loaded when it is first asked for.

        Raises:
            UserError: If it cannot be had, or the configuration contradicts it.
        """
        model, precision = self.cfg.backbone, self.cfg.backbone.precision
        backbone = self.opened.backbone(model.name, model.pretrained, self.device, precision, self._backbone_identity)
        _check_input(self.cfg, backbone)
        return backbone

    def prepare(self) -> None:
        """Loads the backbone, and compares the files of the user's own images.

        Raises:
            UserError: As `backbone` and `refuse_copies`.
        """
        self._refuse_copies()
        _ = self.backbone

    def encode(self) -> None:
        """Encodes what is not on disk; several processes of `torchrun` share the work.

        Raises:
            UserError: On an unreadable image, a class without a prompt, or a folder that cannot be written.
        """
        self._parts()

    def write_bank(self, path: Path) -> None:
        """Encodes what is not on disk, and writes the whole bank, none of which has to fit into memory.

        Args:
            path: The bank file, which the first process of `torchrun` writes.

        Raises:
            UserError: As `encode` and `refuse_copies`, or if the bank cannot be written.
        """
        from ..features.bank_file import Encoder
        from ..features.extract import write_bank

        self._refuse_copies()
        parts = self._parts()
        if processes.rank() == 0:
            encoder = Encoder(**self.backbone_config().model_dump(exclude={"title"}))
            write_bank(path, parts, self.dataset, self.backbone, encoder)

    def bank(self) -> FeatureBank:
        from ..features.extract import encode_task  # imports torchvision

        return encode_task(self.dataset, self.backbone, self.encoding, self.seed, self._folder(self.dataset))

    def backbone_config(self) -> BackboneConfig:
        """The backbone, as a model folder names it."""
        model, backbone = self.cfg.backbone, self.backbone
        return BackboneConfig(
            title=backbone.name,
            model=model.name,
            pretrained=model.pretrained,
            precision=backbone.precision,
            fingerprint=backbone.fingerprint,
        )

    def preprocessing(self) -> Preprocessing:
        """How an image becomes the backbone's input."""
        return Preprocessing.of(self.backbone)

    def prompts(self) -> Prompts:
        """The sentences of the text nodes."""
        from ..features.text import class_prompts

        positive, negative = class_prompts(self.dataset.name, self.dataset.classnames, self.encoding)
        return Prompts(positive=positive, negative=negative)

    @property
    def name(self) -> str:
        """Of the data set."""
        return self.dataset.name

    @property
    def classnames(self) -> Sequence[str]:
        """The class names in label order."""
        return self.dataset.classnames

    @property
    def class_ids(self) -> Sequence[str]:
        """What tells classes apart across data sets, in label order."""
        return self.dataset.ids

    def check_backbone(self, model: SavedModel) -> None:
        """Raises UserError if the backbone here does not give the features that the model was trained on."""
        from ..models.images import check_backbone

        check_backbone(model, self.backbone)

    def test_features(self) -> tuple[Tensor, Tensor]:
        """Features `[M, d]` and labels `[M]` of the test images."""
        from ..features.extract import encode_test

        return encode_test(self.dataset, self.backbone, self.encoding, self._folder(self.dataset))

    def text_features(self) -> tuple[Tensor, Tensor]:
        """Positive and negative text nodes of the classes, each `[K, d]`."""
        from ..features.text import encode_prompts

        folder = self._folder(self.dataset)
        text = encode_prompts(self.backbone, self.dataset.name, self.dataset.classnames, self.encoding, folder)
        return text["positive"], text["negative"]

    def training_images(self) -> Iterator[Image.Image]:
        """The training images in the order of the cache, opened one by one."""
        for item in self.dataset.train:
            yield self.dataset.read(item.path)

    def target_dataset(self, name: str) -> Dataset:
        """Another data set with its test images alone, of which nothing is encoded yet.

        Args:
            name: A data set, or NAME:base or NAME:new for a half of its classes.

        Raises:
            UserError: If it cannot be had.
        """
        if name not in self._targets:
            known, _, which = name.partition(":")
            self._targets[name] = load_test_images(known, self.cfg.data.root, self.seed, which or "all")
        return self._targets[name]

    def target_images(self, name: str) -> tuple[Dataset, Tensor, Tensor]:
        """Another data set, with the features `[M, d]` and labels `[M]` of its test images; arguments as
        `target_dataset`.
        """
        from ..features.extract import encode_test

        dataset = self.target_dataset(name)
        return dataset, *encode_test(dataset, self.backbone, self.encoding, self._folder(dataset))

    def check_target(self, name: str) -> None:
        """Raises UserError if a data set cannot be had, or has a single class."""
        check_classes(len(self.target_dataset(name).classnames), name)

    def target(self, name: str) -> FeatureBank:
        """A bank of another data set, with its own text nodes and no training images; arguments as `target_images`."""
        from ..features.text import encode_prompts

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

    def _refuse_copies(self) -> None:
        """The splits of other data sets are what they are, even where an image is in two of them."""
        if self.dataset.name == OWN:
            refuse_copies(self.dataset)

    def _parts(self) -> Parts:
        from ..features.extract import encode_parts  # imports torchvision

        return encode_parts(self.dataset, self.backbone, self.encoding, self.seed, self._folder(self.dataset))

    def _folder(self, dataset: Dataset) -> Path:
        return Path(self.cfg.data.features_dir) / dataset.name / self.backbone.name

    def batches(self, bank: FeatureBank) -> TrainingData:
        if self.cfg.data.features == "bank":
            return bank_batches(bank, self.cfg, self.seed)
        from ..features.extract import ImageViews, training_augmentation

        images = ImageViews(self.dataset, self.dataset.train, training_augmentation(self.backbone, self.encoding))
        batch_size = self.cfg.data.batch_size
        return OnlineBatches(images, self.backbone, bank.train_labels, batch_size, self.seed)


def load_image_task(cfg: Config, seed: int, device: str, opened: Opened | None = None) -> ImageTask:
    """The task that CoOp's protocol selects from a data set on disk.

    Raises:
        UserError: If the data set or the backbone cannot be had.
    """
    data = cfg.data
    if not data.name:
        raise UserError("no data: give --dataset-config-file configs/datasets/NAME.yaml, or --features BANK")
    dataset = load_few_shot(data.name, data.root, data.shots, seed, data.classes)
    return ImageTask(dataset, cfg, seed, device, opened)


def _check_input(cfg: Config, backbone: Backbone) -> None:
    """Resolution and normalisation are the model's; Dassl's keys for them must not contradict it."""
    for key, said, true in (
        ("SIZE", cfg.backbone.input_size, backbone.input_size),
        ("PIXEL_MEAN", cfg.backbone.mean, backbone.mean),
        ("PIXEL_STD", cfg.backbone.std, backbone.std),
    ):
        if said and tuple(said) != tuple(true):
            raise UserError(f"INPUT.{key} is {tuple(said)} but {backbone.name} takes {tuple(true)}; leave the key out")
