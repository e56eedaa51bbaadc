"""Task of images, with the backbone that encodes them.

The backbone, and open_clip with it, is loaded when an image has to be encoded. Both take seconds, and a finished run
needs neither.

Shapes: M test or unlabelled images, K classes, d feature width.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from ..config import Config
from ..datasets.base import Dataset, check_classes, refuse_tested
from ..datasets.copies import content_keys
from ..datasets.decoding import FULL
from ..datasets.groups import SharedGroups
from ..datasets.images import pixel_hash
from ..datasets.loading import OWN, load_test_images, load_unlabelled
from ..datasets.splits import Item
from ..features import extract
from ..features.backbones.identity import backbone_identity
from ..features.backbones.schema import BackboneConfig
from ..features.bank import SUFFIX, FeatureBank
from ..features.images import ImageViews
from ..features.prompts.sentences import description_file, resolve_source
from ..method.mean_text import with_own_nodes
from ..method.training.batches import OnlineBatches, TrainingData
from ..models.saved import Preprocessing, Prompts, TrainedModel
from ..results.records import ImageFiles
from ..utils import processes
from ..utils.errors import UserError
from ..utils.files import hash_json
from ..utils.reading import read_json
from ..utils.threads import map_in_threads
from .prompt_source import images_only_backbone, with_prompt_source
from .tasks import NO_POOL, POOL, TEST_SET, Split, Task, Unlabelled, match_classes

if TYPE_CHECKING:
    from ..features.backbones.base import Backbone

logger = logging.getLogger(__name__)


_without_copies: set[str] = set()  # hashes of own data sets in which this process found no copy of a test image


class ImageTask(Task):
    """Task of images that a backbone encodes on a device. `seed` is also the seed of their augmentation.

    The constructor takes a backbone that is loaded already; None loads the one of the configuration on first access. It
    raises UserError if the configuration asks for prompts, and the backbone encodes images only.
    Methods that encode raise UserError on an unreadable image, a class without a prompt, or a read-only folder.
    """

    def __init__(self, dataset: Dataset, cfg: Config, seed: int, device: str, backbone: Backbone | None = None) -> None:
        cfg = with_prompt_source(cfg, images_only_backbone(cfg))
        split: Split = {"train": list(map(list, dataset.train)), "val": list(map(list, dataset.val))}
        super().__init__(cfg, seed, dataset.name, dataset.classnames, dataset.ids, split, multilabel=dataset.multilabel)
        self.dataset = dataset
        self.device = device
        self._loaded_backbone = backbone

    @cached_property
    def identity(self) -> dict:
        """As in `Task`; UserError if the weights or the descriptions of the classes are missing."""
        identity: dict = {"backbone": self._backbone_identity, "image_files": self.dataset.files_hash()}
        if self.dataset.groups:
            identity["groups"] = hash_json(sorted(self.dataset.groups.items()))
        prompts = self.cfg.encoding
        if resolve_source(self.name, prompts.source, prompts.descriptions) in ("descriptions", "both"):
            identity["descriptions"] = hash_json(read_json(description_file(self.name, prompts.descriptions)))
        return identity

    @property
    def shared_groups(self) -> SharedGroups | None:
        return self.dataset.shared_groups()

    @property
    def test_groups(self) -> list[int] | None:
        numbers = extract.group_numbers(self.dataset, {"test": self.dataset.test}).get("test_groups")
        return None if numbers is None else numbers.tolist()

    def image_ids(self, split: str) -> dict[str, int]:
        paths = [item.path for item in self.dataset.splits[split]] if self.name == OWN else []
        return dict(zip(paths, map_in_threads(lambda path: pixel_hash(self.dataset.read(path)), paths)))

    @property
    def test_files(self) -> ImageFiles | None:
        root = self.dataset.root
        test = [item.path for item in self.dataset.test]
        return None if root is None else ImageFiles(root=str(root), test=test)

    @cached_property
    def _backbone_identity(self) -> dict:
        options = self.cfg.backbone
        return backbone_identity(options.name, options.pretrained, options.precision, self.device)

    @property
    def images_only(self) -> str:
        return images_only_backbone(self.cfg)

    @property
    def decode(self) -> str:
        """Decoding of image files: the one of the configuration, or "full" for a published data set."""
        return FULL if self.dataset.source is None else self.cfg.encoding.decode

    @cached_property
    def backbone(self) -> Backbone:
        """The frozen CLIP, loaded at the first access; UserError if the configuration contradicts it."""
        if self._loaded_backbone is not None:
            return self._loaded_backbone.with_decoding(self.decode)
        options = self.cfg.backbone
        version = hash_json(self._backbone_identity)
        backbone = _shared_backbone(options.name, options.pretrained, self.device, options.precision, version)
        for key, name in (("SIZE", "input_size"), ("PIXEL_MEAN", "mean"), ("PIXEL_STD", "std")):
            configured = tuple(getattr(options, name))
            true = tuple(getattr(backbone, name))
            if configured not in ((), true):
                raise UserError(f"INPUT.{key} is {configured} but {backbone.name} takes {true}; leave the key out")
        return backbone.with_decoding(self.decode)

    def prepare(self) -> None:
        """Load the backbone; raise UserError if own training or validation images are copies of test images."""
        if self.name == OWN:  # published splits are not changed, even if two parts share an image
            splits = []
            for items in self.dataset.splits.values():
                splits.append([item.path for item in items])
            key = hash_json([splits, self.dataset.files_hash()])
            if key not in _without_copies:
                self.dataset.refuse_copies()
                _without_copies.add(key)
        _ = self.backbone

    def write_bank(self, path: Path) -> None:
        """Encode the images without features on disk; the first process of `torchrun` writes the bank.

        Without prompts, the bank has no text.
        """
        self.prepare()
        bank = self.bank()
        if processes.rank() == 0:
            replace(bank, encoder=self.backbone_config()).save(path)

    def bank(self) -> FeatureBank:
        return with_own_nodes(self.encoded())

    def encoded(self) -> FeatureBank:
        """Return the features of the task as in `bank`; without prompts, the text nodes are 0."""
        return extract.encode_task(self.dataset, self.backbone, self.cfg.encoding, self.seed, self._folder)

    @property
    def has_test(self) -> bool:
        return bool(self.dataset.test)

    @property
    def has_val(self) -> bool:
        return bool(self.dataset.val) and not self.dataset.val_is_test

    def test_features(self) -> tuple[Tensor | None, Tensor | None]:
        if not self.has_test:
            return None, None
        images = self.dataset.test
        return self.encode(self.dataset, images, "test"), extract.labels_of(self.dataset, images)

    def encode(self, dataset: Dataset, images: Sequence[Item], name: str) -> Tensor:
        """Return one feature per image of a data set, without augmentation, `[M, d]`; `name` is shown to the user."""
        views = ImageViews(dataset, images, self.backbone.preprocess)
        return extract.encode_images(self.backbone, views, self.cfg.encoding, self._folder, name)[0]

    def text_features(self) -> tuple[Tensor, Tensor]:
        """Return positive and negative text nodes of the classes, each `[K, d]`; 0 without prompts."""
        text = extract.encode_prompts(self.backbone, self.name, self.classnames, self.cfg.encoding, self._folder)
        return text["positive"], text["negative"]

    def test_bank(self) -> FeatureBank:
        """Return the features of the test images and the text nodes, without training images."""
        dataset = self.dataset.only_test()
        return extract.encode_task(dataset, self.backbone, self.cfg.encoding, self.seed, self._folder)

    @cached_property
    def unlabelled(self) -> Unlabelled:
        what = self.cfg.data.unlabelled
        if what == TEST_SET or what.endswith(SUFFIX):
            return super().unlabelled
        if what == POOL:
            if not self.dataset.pool:
                raise UserError(NO_POOL.format(self.name))
            images = replace(self.dataset, train=[], val=[], test=[*self.dataset.pool])
        else:
            images = load_unlabelled(Path(what))
        published = what == POOL and self.name != OWN
        return Unlabelled(
            lambda: [images.paths(), images.files_hash()],
            lambda: self._encoded(images, published),
            of_published_split=published,
        )

    def _encoded(self, images: Dataset, published: bool) -> Tensor:
        """Return features of unlabelled images; UserError if one is a copy of a test image, unless `published`."""
        pool = images.readers(images.test)
        tested = self.dataset.readers(self.dataset.test)
        if not published and pool and tested:
            keys = content_keys([*pool, *tested])
            in_test = {*keys[len(pool) :]}
            copies = [images.name_of(item.path) for item, key in zip(images.test, keys) if key in in_test]
            refuse_tested(copies, len(pool), "unlabelled")
        if self.cfg.data.skip_unreadable and (left_out := [*images.unreadable_images()]):
            logger.warning("%d of %d images are left out, such as %s", len(left_out), len(images.test), left_out[0])
            if len(left_out) == len(images.test):
                raise UserError(f"none of {len(left_out)} unlabelled images can be read, such as {left_out[0]}")
            images = images.without(left_out)
        return self.encode(images, images.test, "unlabelled")

    def backbone_config(self) -> BackboneConfig:
        """Return the backbone as a model folder stores it."""
        return BackboneConfig.of(self.backbone, self.cfg.backbone.name, self.cfg.backbone.pretrained)

    def encoding_metadata(self, bank: FeatureBank) -> tuple[BackboneConfig, Preprocessing, Prompts | None]:
        if not bank.has_text:
            return self.backbone_config(), Preprocessing.of(self.backbone), None
        positive, negative = extract.class_prompts(self.name, self.classnames, self.cfg.encoding)
        prompts = Prompts(positive=positive, negative=negative)
        return self.backbone_config(), Preprocessing.of(self.backbone), prompts

    def check_backbone(self, model: TrainedModel) -> None:
        from ..models.images import check_backbone  # imports torchvision

        check_backbone(model, self.backbone)

    def target(self, name: str, same_classes: bool) -> ImageTask:
        known, _, which = name.partition(":")
        dataset = load_test_images(known, self.cfg.data.root, self.seed, which or "all")
        task = ImageTask(dataset, with_decoding(self.cfg, self.decode), self.seed, self.device)
        task.check_single_label("a test on another data set")
        if same_classes:
            match_classes(self.class_ids, task.class_ids, self.name, name)
        check_classes(len(task.class_ids), name)
        return task

    def batches(self, bank: FeatureBank) -> TrainingData:
        if self.cfg.data.features == "bank":
            return self.batches_of_features(bank)
        augmented = extract.training_augmentation(self.backbone, self.cfg.encoding)
        images = ImageViews(self.dataset, self.dataset.train, augmented)
        return OnlineBatches(images, self.backbone, bank.train_labels, self.cfg.data.batch_size, self.seed)

    @property
    def _folder(self) -> Path | None:
        """Folder of the encoded features; None keeps them in memory."""
        if not self.cfg.data.features_dir:
            return None
        return Path(self.cfg.data.features_dir) / self.name / self.backbone.name


def with_decoding(cfg: Config, decode: str) -> Config:
    """Return a configuration that decodes own images as a trained model does, whatever it says itself."""
    return replace(cfg, encoding=replace(cfg.encoding, decode=decode))


@lru_cache(maxsize=1)
def _shared_backbone(name: str, pretrained: str, device: str, precision: str, version: str) -> Backbone:
    """Return the backbone that the runs of a process share; `version` changes whenever its weights do."""
    from ..features.backbones.loading import load_backbone  # imports open_clip

    return load_backbone(name, pretrained, device, precision)
