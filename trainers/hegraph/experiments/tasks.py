"""Tasks: features in memory, rows of a feature bank, or images with the backbone that encodes them.

The backbone, and open_clip with it, is loaded when an image has to be encoded. Both take seconds, and a finished run
needs neither.

Shapes: M test or unlabelled images, K classes, d feature width.
"""

from __future__ import annotations

import logging
import os
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from torch import Tensor

from ..baselines import MULTILABEL_METHODS, TRANSDUCTIVE_METHODS
from ..config import Config
from ..config_files import with_values
from ..datasets.base import Dataset, check_classes, find_copies, refuse_tested
from ..datasets.images import pixel_hash
from ..datasets.loading import OWN, load_few_shot, load_test_images, load_unlabelled
from ..datasets.registry import find_entry
from ..datasets.splits import FewShotSample, Item, sample_few_shot, subsample_labels
from ..features import extract
from ..features.backbones.identity import backbone_identity
from ..features.backbones.schema import BackboneConfig
from ..features.bank import SUFFIX, BankFile, FeatureBank, label_list, mean_over_views, refuse_test_rows, sample_bank
from ..features.images import ImageViews
from ..features.prompts.sentences import description_file, resolve_source
from ..method.training.batches import BankBatches, OnlineBatches, TrainingData, products_with_cache
from ..models.saved import Preprocessing, Prompts, TrainedModel
from ..results.records import OTHER_CLASSES, SAME_CLASSES, ImageFiles
from ..utils import processes
from ..utils.errors import UserError
from ..utils.files import file_version, hash_json
from ..utils.option import NODE, OUR_METHOD
from ..utils.reading import read_json
from ..utils.threads import map_in_threads

if TYPE_CHECKING:
    from ..features.backbones.clip import Backbone

logger = logging.getLogger(__name__)

POOL, TEST_SET = "pool", "test"  # values of DATASET.UNLABELLED for images of the task's own data set
NO_POOL = "{} has no images left for --unlabelled pool: train with fewer --shots, or give a path"
Split = dict[str, list[list]]  # "train" and "val", each rows of [path or bank row, label, class name]


@dataclass(frozen=True)
class Predictions:
    """Predictions on the M test images of a data set with K classes; None where nothing was predicted.

    Attributes:
        dataset, classnames: Name of the data set, and of its classes.
        logits, text_logits, zero_shot: Logits of the method, of HeGraphAdapter's text classifier alone, and of
            zero-shot CLIP, each `[M, K]`.
        labels: Classes of the test images, `[M]`; with several labels per image, booleans `[M, K]`.
        rule: "" on the data set of the training, else `SAME_CLASSES` or `OTHER_CLASSES`.
        thresholds: As of `FittedMethod`.
    """

    dataset: str
    classnames: Sequence[str]
    logits: Tensor | None = None
    text_logits: Tensor | None = None
    zero_shot: Tensor | None = None
    labels: Tensor | None = None
    rule: str = ""
    thresholds: Tensor | None = None


class Unlabelled(NamedTuple):
    """Unlabelled images, which are not read yet.

    Attributes:
        identity: Returns plain values that change whenever the images do.
        features: Returns unit-norm features `[M, d]`; raises UserError if an image cannot be read.
        backbone: Backbone of the features; "" for the backbone of the task.
    """

    identity: Callable[[], object]
    features: Callable[[], Tensor]
    backbone: str = ""


@dataclass(eq=False, repr=False)
class Task(ABC):
    """Images that a method is fitted to, tested on, or both.

    Attributes:
        cfg: Checked configuration.
        seed: Seed of everything that is sampled.
        name, classnames: Name of the data set, and of its K classes in label order.
        class_ids: Identifiers of the classes across data sets, in label order.
        split: Sampled training and validation images; {} where no run records them.
        bank_files: Feature banks that the task reads.
        multilabel: Whether images have several labels each.
    """

    cfg: Config
    seed: int
    name: str
    classnames: Sequence[str]
    class_ids: Sequence[str]
    split: Split
    bank_files: Sequence[Path] = ()
    multilabel: bool = False

    @property
    @abstractmethod
    def identity(self) -> dict:
        """Plain values that change whenever the data change, apart from the split."""

    @property
    @abstractmethod
    def has_test(self) -> bool:
        """Whether there are test images."""

    @abstractmethod
    def bank(self) -> FeatureBank:
        """Return the features of the task. Images without features on disk are encoded, by all `torchrun` processes."""

    @property
    def has_val(self) -> bool:
        """Whether there are validation images that are not test images."""
        return bool(self.split["val"])

    @property
    def backbone(self) -> Backbone | None:
        """Frozen CLIP that encodes the images; None for a task of features."""
        return None

    @property
    def test_files(self) -> ImageFiles | None:
        """Files of the test images; None if they are not files."""
        return None

    def image_ids(self, split: str) -> dict[str, int]:
        """Return hashes by which a model recognises images of "train" or "test", by path; {} for other than own images.

        Raises:
            UserError: If an image cannot be read.
        """
        return {}

    def check_single_label(self, action: str) -> None:
        """Raise UserError if images have several labels. `action` is the subject of its message."""
        if self.multilabel:
            raise UserError(f"{action} needs one label per image, and {self.name} has several")

    def prepare(self) -> None:
        """Read the bank, or load the backbone, before anything is written.

        Raises:
            UserError: If that fails, or a training or validation image is a test image as well.
        """
        refuse_test_rows(self.bank(), {part: [row for row, *_ in items] for part, items in self.split.items()})

    def test_bank(self) -> FeatureBank:
        """Return the features of the test images and the text nodes."""
        return self.bank()

    def test_features(self) -> tuple[Tensor | None, Tensor | None]:
        """Return features `[M, d]` and labels `[M]` of the test images; None without test images."""
        if not self.has_test:
            return None, None
        bank = self.bank()
        return bank.test_features, bank.test_labels

    def batches(self, bank: FeatureBank) -> TrainingData:
        """Return the training batches of a bank, with the products that each step of the configured variant needs."""
        full = self.cfg.model.variant == "full"  # the only variant with a cache
        products = products_with_cache(bank.train_features, bank.cache_keys()) if full else None
        return BankBatches(bank.train_features, bank.train_labels, self.cfg.data.batch_size, self.seed, products)

    def encoding_metadata(self, bank: FeatureBank) -> tuple[BackboneConfig, Preprocessing | None, Prompts | None]:
        """Return the encoding of the features in a bank, as a model folder stores it."""
        return bank.encoder.model_copy(update={"title": bank.backbone}), None, None

    def check_backbone(self, model: TrainedModel) -> None:
        """Raise UserError if the features are of another backbone than the model."""
        bank = self.bank()
        if bank.backbone != model.backbone.title:
            problem = f"expected a bank of {model.backbone.title!r} features, which the model takes"
            raise UserError(f"{problem}, got one of {bank.backbone!r}")
        model.backbone.compare_precision(bank.encoder.precision)

    @cached_property
    def unlabelled(self) -> Unlabelled:
        """Unlabelled images that DATASET.UNLABELLED names; UserError if there are none.

        The value is "test" for the test images, "pool" for the validation images and the training images that are not
        sampled, or the path of a feature bank, a folder or a CSV file.
        """
        what = self.cfg.data.unlabelled
        if what == TEST_SET:
            if not self.has_test:
                raise UserError(f"{self.name} has no test images; give --unlabelled {POOL}, or a path")
            return Unlabelled(lambda: None, lambda: cast(Tensor, self.test_features()[0]))
        if what.endswith(SUFFIX):
            file = BankFile(Path(what))
            rows = {split: range(len(labels)) for split, labels in file.labels.items()}
            return Unlabelled(lambda: file.digest, lambda: _features_of(file, rows), file.backbone)
        raise UserError(f"{what} has to be encoded, and a run from features has no backbone; make a feature bank of it")

    @cached_property
    def targets(self) -> list[tuple[str, Task, str]]:
        """Name, task and rule of each data set in DATASET.TARGET_DOMAINS and TARGET_DATASETS; no image is opened.

        Raises:
            UserError: If a data set is missing, or its classes do not fit the rule.
        """
        data = self.cfg.data
        same = [(name, self.target(name, True), SAME_CLASSES) for name in data.target_domains]
        return same + [(name, self.target(name, False), OTHER_CLASSES) for name in data.target_datasets]

    def target(self, name: str, same_classes: bool) -> Task:
        """Return the test images of another data set; nothing is encoded yet.

        Args:
            name: NAME, or NAME:base or NAME:new for a half of its classes.
            same_classes: Whether all its classes must be classes of this task.

        Raises:
            UserError: If there is no such data set, or it has a single class or classes that it must not have.
        """
        raise UserError(f"{self.name} has no further data set {name!r}; leave out the targets")


class FeatureTask(Task):
    """Task whose features are in memory."""

    def __init__(
        self,
        bank: FeatureBank,
        cfg: Config,
        seed: int,
        split: Split | None = None,
        identity: dict | None = None,
        class_ids: Sequence[str] = (),
        bank_files: Sequence[Path] = (),
    ) -> None:
        ids = class_ids or ids_of_names(bank.classnames)
        super().__init__(cfg, seed, bank.dataset, bank.classnames, ids, split or {}, bank_files, bank.multilabel)
        self._bank, self._identity = bank, identity or {}

    @property
    def identity(self) -> dict:
        return self._identity

    @property
    def has_test(self) -> bool:
        return self._bank.test_labels is not None and len(self._bank.test_labels) > 0

    def bank(self) -> FeatureBank:
        return self._bank


class BankTask(Task):
    """Task of the rows that the few-shot protocol samples from a feature bank; other training rows are not read.

    Raises:
        UserError: If the bank cannot be used, or the configuration names another data set or mode.
    """

    def __init__(self, path: Path, cfg: Config, seed: int) -> None:
        if cfg.data.features == "online":
            raise UserError("FEATURES.MODE online encodes images, and --features has none; use FEATURES.MODE bank")
        self.file = file = shared_bank(path, cfg)
        labels = {name: label_list(file.labels[name]) if name in file.labels else [] for name in ("train", "val")}
        self.selection = sample_few_shot(labels["train"], labels["val"], cfg.data.shots, random.Random(seed))
        # With all classes, a class without images stays, and a later check refuses it
        of_all = cfg.data.classes == "all" or file.multilabel  # `check_multilabel` refuses a part of the classes
        sampled = range(len(file.classnames)) if of_all else {labels["train"][row] for row in self.selection.train}
        # Labels in the file of the classes of this task
        self.file_labels = subsample_labels(sampled, "all" if of_all else cfg.data.classes)
        classnames = [file.classnames[label] for label in self.file_labels]
        new_labels = {label: position for position, label in enumerate(self.file_labels)}
        split: Split = {"train": [], "val": []}
        for part, rows in self.selection._asdict().items():
            for row in rows:
                label = labels[part][row]
                if of_all or label in new_labels:
                    new = label if of_all else new_labels[label]
                    split[part].append([row, new, names_of(file.classnames, label)])
        super().__init__(cfg, seed, file.dataset, classnames, ids_of_names(classnames), split, (path,), file.multilabel)

    @cached_property
    def identity(self) -> dict:
        return bank_identity(self.file, lambda: self._bank)

    @property
    def has_test(self) -> bool:
        return "test" in self.file.labels and (self.multilabel or bool(self._in_classes("test").any()))

    @cached_property
    def _bank(self) -> FeatureBank:
        return sample_bank(self.file, self.selection).subsample(self.cfg.data.classes)

    def bank(self) -> FeatureBank:
        """Return the sampled rows and the test images."""
        return self._bank

    @cached_property
    def unlabelled(self) -> Unlabelled:
        if self.cfg.data.unlabelled != POOL:
            return super().unlabelled
        pool = {part: self._in_classes(part) for part in self.file.labels if part != "test"}
        pool["train"][self.selection.train] = False
        rows = {part: selected.nonzero().flatten().tolist() for part, selected in pool.items()}
        if not any(rows.values()):
            raise UserError(NO_POOL.format(self.name))
        return Unlabelled(lambda: self.file.digest, lambda: _features_of(self.file, rows))

    def _in_classes(self, part: str) -> Tensor:
        """Return whether each image of a part of the file has a class of this task, shape `[N]`."""
        return torch.isin(self.file.labels[part], torch.tensor(self.file_labels))

    def target(self, name: str, same_classes: bool) -> Task:
        """Return the test images of a half of the bank's classes, the only further data sets of a bank."""
        halves = [f"{self.name}:{which}" for which in ("base", "new")]
        if same_classes or name not in halves:
            raise UserError(f"a feature bank has no data set {name!r}: --target-datasets may be {', '.join(halves)}")
        task = bank_to_test(self.file, name.rpartition(":")[2], self.cfg, self.seed)
        check_classes(len(task.class_ids), name)
        return task


def names_of(classnames: Sequence[str], label: int | tuple[int, ...]) -> str:
    """Return the class name of a label, or names joined by `|`, as of `Item`."""
    return "|".join(classnames[each] for each in (label if isinstance(label, tuple) else (label,)))


@lru_cache(maxsize=1)
def _opened(path: Path, version: object) -> BankFile:
    return BankFile(path)


def shared_bank(path: Path, cfg: Config) -> BankFile:
    """Return a feature bank of the configured data set, shared by the runs of a process while its file is unchanged.

    Raises:
        UserError: As `BankFile`, or if the bank is of another data set.
    """
    file = _opened(path, file_version(path) if os.path.isfile(path) else None)
    file.check_dataset(cfg.data.name)
    return file


def bank_to_test(file: BankFile, which: str, cfg: Config, seed: int) -> Task:
    """Return the test images of a bank, of "all" classes or of the half "base" or "new"; UserError without any."""
    bank = sample_bank(file, FewShotSample([], []))
    if which != "all":
        half = subsample_labels(set(file.labels["train"].tolist()), which)
        bank = bank.of_classes(torch.tensor(half, dtype=torch.long))
    task = FeatureTask(bank, cfg, seed, identity=bank_identity(file, lambda: bank), bank_files=(file.path,))
    if not task.has_test:
        images = "test images" if which == "all" else f"test images of the {which} classes"
        raise UserError(f"{file.path} has no {images}, so no model can be tested on it")
    return task


def bank_identity(file: BankFile, take: Callable[[], FeatureBank]) -> dict:
    """Return plain values that change whenever the part of a bank that `take` returns changes."""
    identity = {"bank": file.digest_of(take)}
    if file.encoder.precision != "fp32":  # older banks, without a precision, are fp32
        identity["precision"] = file.encoder.precision
    return identity


def _features_of(file: BankFile, rows: Mapping[str, Sequence[int]]) -> Tensor:
    """Return one feature per image of train and val rows, `[M, d]`: for train the mean over the views."""
    trained, val = mean_over_views(file.features("train", rows["train"])), rows.get("val", ())
    return torch.cat([trained, file.features("val", val)]) if val else trained


class ImageTask(Task):
    """Task of images that a backbone encodes on a device. `seed` is also the seed of their augmentation.

    Methods that encode raise UserError on an unreadable image, a class without a prompt, or a read-only folder.
    """

    def __init__(self, dataset: Dataset, cfg: Config, seed: int, device: str) -> None:
        split = {part: [list(item) for item in getattr(dataset, part)] for part in ("train", "val")}
        names, ids = dataset.classnames, dataset.ids
        super().__init__(cfg, seed, dataset.name, names, ids, split, multilabel=dataset.multilabel)
        self.dataset, self.device = dataset, device

    @cached_property
    def identity(self) -> dict:
        """As of `Task`; UserError if the weights or the descriptions of the classes are missing."""
        identity: dict = {"backbone": self._backbone_identity, "image_sizes": self.dataset.file_sizes()}
        prompts = self.cfg.encoding
        if resolve_source(self.name, prompts.source, prompts.descriptions) != "templates":
            identity["descriptions"] = hash_json(read_json(description_file(self.name, prompts.descriptions)))
        return identity

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

    @cached_property
    def backbone(self) -> Backbone:
        """The frozen CLIP, loaded at the first access; UserError if the configuration contradicts it."""
        options = self.cfg.backbone
        version = hash_json(self._backbone_identity)
        backbone = _shared_backbone(options.name, options.pretrained, self.device, options.precision, version)
        for key, name in (("SIZE", "input_size"), ("PIXEL_MEAN", "mean"), ("PIXEL_STD", "std")):
            configured, true = tuple(getattr(options, name)), tuple(getattr(backbone, name))
            if configured not in ((), true):
                raise UserError(f"INPUT.{key} is {configured} but {backbone.name} takes {true}; leave the key out")
        return backbone

    def prepare(self) -> None:
        """Load the backbone; raise UserError if training images of a user's own data set are test images as well."""
        if self.name == OWN:  # published splits are not changed, even if two parts share an image
            self.dataset.refuse_copies()
        _ = self.backbone

    def write_bank(self, path: Path) -> None:
        """Encode the images without features on disk; the first process of `torchrun` writes the bank."""
        self.prepare()
        bank = self.bank()
        if processes.rank() == 0:
            replace(bank, encoder=self.backbone_config()).save(path)

    def bank(self) -> FeatureBank:
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
        """Return positive and negative text nodes of the classes, each `[K, d]`."""
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
        # Published splits are not changed, even if two parts share an image
        own = what != POOL or self.name == OWN
        return Unlabelled(lambda: [images.paths(), images.file_sizes()], lambda: self._encoded(images, own))

    def _encoded(self, images: Dataset, refuse_copies: bool) -> Tensor:
        """Return features of unlabelled images; with `refuse_copies`, UserError if a file is that of a test image."""
        if refuse_copies and (pool := images.files("test")) and (tested := self.dataset.files("test")):
            refuse_tested(find_copies(pool, tested), len(pool), "unlabelled")
        if self.cfg.data.skip_unreadable and (left_out := [*images.unreadable_images()]):
            logger.warning("%d of %d images are left out, such as %s", len(left_out), len(images.test), left_out[0])
            if len(left_out) == len(images.test):
                raise UserError(f"none of {len(left_out)} unlabelled images can be read, such as {left_out[0]}")
            images = images.without(left_out)
        return self.encode(images, images.test, "unlabelled")

    def backbone_config(self) -> BackboneConfig:
        """Return the backbone as a model folder stores it."""
        return BackboneConfig.of(self.backbone, self.cfg.backbone.name, self.cfg.backbone.pretrained)

    def encoding_metadata(self, bank: FeatureBank) -> tuple[BackboneConfig, Preprocessing, Prompts]:
        positive, negative = extract.class_prompts(self.name, self.classnames, self.cfg.encoding)
        prompts = Prompts(positive=positive, negative=negative)
        return self.backbone_config(), Preprocessing.of(self.backbone), prompts

    def check_backbone(self, model: TrainedModel) -> None:
        from ..models.images import check_backbone  # imports torchvision

        check_backbone(model, self.backbone)

    def target(self, name: str, same_classes: bool) -> ImageTask:
        known, _, which = name.partition(":")
        dataset = load_test_images(known, self.cfg.data.root, self.seed, which or "all")
        task = ImageTask(dataset, self.cfg, self.seed, self.device)
        task.check_single_label("a test on another data set")
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
    """Return the backbone that the runs of a process share; `version` changes whenever its weights do."""
    from ..features.backbones.loading import load_backbone  # imports open_clip

    return load_backbone(name, pretrained, device, precision)


# Opening the task of a run


def open_task(cfg: Config, bank_file: Path | None, seed: int, device: str, trained_shots: int | None = None) -> Task:
    """Return the task of a run: rows of a feature bank, or images of `DATASET.NAME`. Nothing is encoded yet.

    Args:
        seed: Seed of the few-shot sample and the run.
        device: Device of the backbone.
        trained_shots: Number of shots of a trained model to test, which with `seed` determines the pool of
            `--unlabelled pool`; the task has no training images. None for a training.

    Raises:
        UserError: If bank, data set or weights are missing, a transductive method lacks `--unlabelled test`, or further
            data sets are combined with it.
    """
    what, method = cfg.data.unlabelled, cfg.run.trainer
    if method in TRANSDUCTIVE_METHODS and what != TEST_SET:
        raise UserError(f"{method} predicts all test images together: give --unlabelled {TEST_SET}, got {what!r}")
    if what == TEST_SET and (cfg.data.target_domains or cfg.data.target_datasets):
        raise UserError(f"--unlabelled {TEST_SET} reaches no other data set; leave out the targets, or give {POOL}")
    if bank_file is None:
        task: Task = load_image_task(cfg, seed, device, trained_shots)
    elif trained_shots is None:
        task = BankTask(bank_file, cfg, seed)
    else:
        task = bank_to_test(shared_bank(bank_file, cfg), cfg.data.classes, cfg, seed)
        if what == POOL:
            as_trained = with_values(cfg, {"DATASET.NUM_SHOTS": trained_shots})
            task.unlabelled = BankTask(bank_file, as_trained, seed).unlabelled
    check_multilabel(task)
    return task


def check_multilabel(task: Task) -> None:
    """Raise UserError if a configuration asks for something that several labels per image exclude."""
    cfg, data = task.cfg, task.cfg.data
    name = cfg.run.trainer
    if not task.multilabel:
        if name in MULTILABEL_METHODS:
            raise UserError(f"{name} is for several labels per image, and {task.name} has one; change --trainer")
        return
    if name == OUR_METHOD and cfg.model.variant != "training_free":
        problem = f"{task.name} has several labels per image, which VARIANT {cfg.model.variant} does not support"
        raise UserError(f"{problem}; end the command with {NODE}.VARIANT training_free")
    if name not in (OUR_METHOD, "ZeroShot", *MULTILABEL_METHODS):
        known = ", ".join((OUR_METHOD, "ZeroShot", *MULTILABEL_METHODS))
        raise UserError(f"{task.name} has several labels per image, which {name} does not support; use one of {known}")
    excluded = {
        f"DATASET.SUBSAMPLE_CLASSES {data.classes}": data.classes != "all",
        "--unlabelled": data.unlabelled,
        "--target-domains and --target-datasets": data.target_domains or data.target_datasets,
        "--select val": cfg.run.select_on == "val",
        f"{NODE}.FEATURES.MODE online": data.features == "online",
    }
    if asked := [option for option, is_asked in excluded.items() if is_asked]:
        raise UserError(f"{task.name} has several labels per image; leave out {asked[0]}")


def load_image_task(cfg: Config, seed: int, device: str, trained_shots: int | None = None) -> ImageTask:
    """Return the task that CoOp's protocol samples from a data set on disk; arguments and errors as of `open_task`."""
    data = cfg.data
    pool = data.unlabelled == POOL
    if not data.name:
        raise UserError("no data: give --dataset-config-file NAME, such as digits, or --features BANK")
    if trained_shots is None:
        dataset = load_few_shot(data.name, data.root, data.shots, seed, data.classes, pool)
    elif not pool:
        dataset = load_test_images(data.name, data.root, max(cfg.run.seed, 0), data.classes)
    else:
        if (entry := find_entry(data.name)) and entry.train_on:  # a data set of test images alone
            raise UserError(NO_POOL.format(data.name))
        dataset = load_few_shot(data.name, data.root, trained_shots, seed, data.classes, pool).only_test()
    return ImageTask(dataset, cfg, seed, device)


# Comparison of tasks


def match_classes(source_ids: Sequence[str], target_ids: Sequence[str], source: str, target: str) -> list[int]:
    """Return the label in the source of each class of the target; raise UserError if the source lacks one."""
    labels = {class_id: label for label, class_id in enumerate(source_ids)}
    unknown = [class_id for class_id in target_ids if class_id not in labels]
    if unknown:
        raise UserError(
            f"{len(unknown)} of {len(target_ids)} classes of {target} are none of {source}'s, such as {unknown[0]}; "
            f"with other classes it is tested by --target-datasets {target}"
        )
    return [labels[class_id] for class_id in target_ids]


def ids_of_names(names: Sequence[str]) -> tuple[str, ...]:
    """Return identifiers of classes: their names or, if two names are equal, names with positions."""
    unique = len(set(names)) == len(names)
    return tuple(names) if unique else tuple(f"{k}: {name}" for k, name in enumerate(names))
