"""What is trained and tested on: rows of a feature bank, or images and the backbone that encodes them.

The backbone is loaded when something has to be encoded, and open_clip imported with it: that takes seconds, and a run
that is finished needs neither.
"""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor

from ..backbones.identity import backbone_identity
from ..baselines import TRANSDUCTIVE_METHODS
from ..config import Config
from ..datasets import Dataset, FewShotSample, load_few_shot, load_test_images, sample_few_shot, subsample_labels
from ..datasets.base import check_classes, find_copies
from ..datasets.loading import OWN, load_pool, load_unlabelled
from ..features import extract
from ..features.bank import SUFFIX, BankFile, Encoder, FeatureBank, mean_over_views, refuse_test_rows, sample_bank
from ..features.images import ImageViews
from ..method.unlabelled import ClassSums
from ..models.saved import Backbone as BackboneConfig
from ..models.saved import Preprocessing, Prompts, SavedModel
from ..prompts.sentences import description_file, resolve_source
from ..results.records import OTHER_CLASSES, SAME_CLASSES
from ..training.batches import BankBatches, OnlineBatches, TrainingData, products_with_cache
from ..utils import processes
from ..utils.errors import UserError
from ..utils.files import file_version, hash_json
from ..utils.reading import read_json

if TYPE_CHECKING:
    from ..backbones.clip import Backbone

logger = logging.getLogger(__name__)

POOL, TEST_SET = "pool", "test"  # what DATASET.UNLABELLED says of images of the task's own data set
NO_POOL = "{} has no images left for --unlabelled pool: all are drawn or for testing; give fewer --shots, or a path"
Split = dict[str, list[list]]  # "train" and "val", each rows of [path or bank row, label, class name]


@dataclass(frozen=True)
class Tested:
    """What a method says about the M test images of a data set with K classes; None for what there is not.

    Attributes:
        logits, text_logits, zero_shot: Of the method, of HeGraphAdapter's text classifier alone, and of zero-shot CLIP,
            each `[M, K]`.
        labels: Of the test images, `[M]`.
        rule: "" on the data set that the method was trained on, else `SAME_CLASSES` or `OTHER_CLASSES`.
    """

    dataset: str
    classnames: Sequence[str]
    logits: Tensor | None = None
    text_logits: Tensor | None = None
    zero_shot: Tensor | None = None
    labels: Tensor | None = None
    rule: str = ""


class Unlabelled(NamedTuple):
    """Images without labels, none of which is read yet.

    Attributes:
        identity: Gives plain values that change whenever the images would.
        features: Gives their unit-norm features `[M, d]`; raises UserError if one cannot be read.
        backbone: What made the features; "" for the task's own.
    """

    identity: Callable[[], object]
    features: Callable[[], Tensor]
    backbone: str = ""


@dataclass(eq=False)
class Task:
    """Images that a method is fitted to, tested on, or both. This class has their features at hand.

    Attributes:
        cfg, seed: The checked configuration, and the seed of everything that is drawn.
        split: The images that the few-shot protocol selected; {} where no run keeps them.
        identity: Plain values that change whenever the data would, apart from the split.
        class_ids: What tells its K classes apart across data sets, in label order.
        reads: Files that the features come from.
        name, classnames: Of the data set, and of its classes.
        backbone: The frozen CLIP that encodes the images; None where it is not at hand.
    """

    features: FeatureBank
    cfg: Config
    seed: int
    split: Split = field(default_factory=dict)
    identity: dict = field(default_factory=dict)
    class_ids: Sequence[str] = ()
    reads: Sequence[Path] = ()
    name: str = field(init=False)
    classnames: Sequence[str] = field(init=False)
    backbone: Any = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.name, self.classnames = self.features.dataset, self.features.classnames
        self.class_ids = self.class_ids or ids_of_names(self.classnames)

    def check_trained_classes(self) -> None:
        """Raises UserError if the training images are of fewer than two classes, so that there is nothing to learn."""
        check_classes(len({label for _, label, _ in self.split["train"]}))

    @property
    def has_test(self) -> bool:
        """Whether there are test images."""
        return self.features.test_labels is not None and len(self.features.test_labels) > 0

    @property
    def has_val(self) -> bool:
        """Whether there are validation images that are no test images."""
        return bool(self.split["val"])

    def prepare(self) -> None:
        """Does what may fail before anything is written."""

    def bank(self) -> FeatureBank:
        """The task's features. What is not on disk is encoded, with the other processes of `torchrun`."""
        return self.features

    def test_bank(self) -> FeatureBank:
        """The features of its test images, and its text nodes."""
        return self.features

    def test_features(self) -> tuple[Tensor | None, Tensor | None]:
        """Features `[M, d]` and labels `[M]` of the test images; None where there are none."""
        return (self.features.test_features, self.features.test_labels) if self.has_test else (None, None)

    def batches(self, bank: FeatureBank) -> TrainingData:
        """The training batches of a bank, with the products that every step of the configured variant needs."""
        full = self.cfg.model.variant == "full"  # the others have no cache
        products = products_with_cache(bank.train_features, bank.cache_keys()) if full else None
        return BankBatches(bank.train_features, bank.train_labels, self.cfg.data.batch_size, self.seed, products)

    def encoding_metadata(self, bank: FeatureBank) -> tuple[BackboneConfig, Preprocessing | None, Prompts | None]:
        """How the features of its bank were made, as a model folder says it."""
        known = {} if bank.encoder is None else bank.encoder.model_dump()
        return BackboneConfig(title=bank.backbone, **known), None, None

    def labelled(self, bank: FeatureBank) -> ClassSums:
        """What a bank's images tell unlabelled ones, on the CPU; nothing for zero-shot CLIP, which has seen none."""
        keys, labels = bank.cache_keys().cpu(), bank.train_labels.cpu()
        seen = 0 if self.cfg.run.trainer == "ZeroShot" else len(keys)
        return ClassSums.of(keys[:seen], labels[:seen], len(bank.classnames))

    def check_backbone(self, model: SavedModel) -> None:
        """Raises UserError if the features here are not those of the model's backbone."""
        here, encoder = self.features.backbone, self.features.encoder
        if here != model.backbone.title:
            raise UserError(f"the model is of {model.backbone.title!r} features, but the bank holds those of {here!r}")
        model.backbone.compare_precision("fp32" if encoder is None else encoder.precision)

    def unlabelled(self, what: str) -> Unlabelled:
        """The images without labels that DATASET.UNLABELLED names: "test", the test images; a feature bank; "pool", the
        training images of the task's classes that were not drawn, and the validation images; or a folder or CSV file.
        UserError without any.
        """
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
        """Names, tasks and rules of the further data sets to test on, DATASET.TARGET_DOMAINS and TARGET_DATASETS. No
        image is opened. Raises UserError if one cannot be had, or has classes that it must not have.
        """
        data = self.cfg.data
        same = [(name, self.target(name, True), SAME_CLASSES) for name in data.target_domains]
        return same + [(name, self.target(name, False), OTHER_CLASSES) for name in data.target_datasets]

    def target(self, name: str, same_classes: bool) -> Task:
        """Another data set to test on, NAME or a half of its classes, NAME:base or NAME:new. Nothing is encoded yet.
        UserError if it cannot be had, has a single class, or has not only `same_classes` as this task.
        """
        raise NotImplementedError


class BankTask(Task):
    """A task made of rows of the feature bank at `path`; of its training images only those rows are read. Raises
    UserError if the bank is unusable or is of another data set or mode than the configuration says.
    """

    def __init__(self, path: Path, cfg: Config, seed: int) -> None:
        if cfg.data.features == "online":
            raise UserError("FEATURES.MODE online encodes images, and --features has none; use FEATURES.MODE bank")
        self.file = file = shared_bank(path, cfg)
        self.cfg, self.seed, self.name, self.reads = cfg, seed, file.dataset, (path,)
        labels = {name: file.labels[name].tolist() if name in file.labels else [] for name in ("train", "val")}
        self.selection = sample_few_shot(labels["train"], labels["val"], cfg.data.shots, random.Random(seed))
        # Where all classes are asked for, one without images stays here and is an error later
        of_all = cfg.data.classes == "all"
        sampled = range(len(file.classnames)) if of_all else {labels["train"][row] for row in self.selection.train}
        self.kept = subsample_labels(sampled, cfg.data.classes)  # labels in the file of the classes of this task
        self.classnames = [file.classnames[label] for label in self.kept]
        self.class_ids = ids_of_names(self.classnames)
        new = {label: position for position, label in enumerate(self.kept)}
        self.split = {
            name: [[row, new[label], file.classnames[label]] for row in rows if (label := labels[name][row]) in new]
            for name, rows in (("train", self.selection.train), ("val", self.selection.val))
        }

    @cached_property
    def identity(self) -> dict:  # type: ignore[override]
        return bank_identity(self.file, lambda: self.features)

    @cached_property
    def features(self) -> FeatureBank:  # type: ignore[override]
        """The rows that the protocol selected, and the test images."""
        return sample_bank(self.file, self.selection).subsample(self.cfg.data.classes)

    @property
    def has_test(self) -> bool:
        return "test" in self.file.labels

    def prepare(self) -> None:
        """Reads the rows; raises UserError if they cannot be read, or one of train or val is a test image as well."""
        refuse_test_rows(self.features)

    def unlabelled(self, what: str) -> Unlabelled:
        if what != POOL:
            return super().unlabelled(what)
        here = {name: torch.isin(labels, torch.tensor(self.kept)) for name, labels in self.file.labels.items()}
        here["train"][self.selection.train] = False
        rows = {name: of_classes.nonzero().flatten().tolist() for name, of_classes in here.items() if name != "test"}
        if not any(rows.values()):
            raise UserError(NO_POOL.format(self.name))
        return Unlabelled(lambda: self.file.digest, lambda: _features_of(self.file, rows))

    def target(self, name: str, same_classes: bool) -> Task:
        """The test images of a half of the bank's classes; there is nothing else to test on."""
        halves = [f"{self.name}:{which}" for which in ("base", "new")]
        if same_classes or name not in halves:
            raise UserError(f"a feature bank has no data set {name!r}: --target-datasets may be {', '.join(halves)}")
        task = bank_to_test(self.file, name.rpartition(":")[2], self.cfg, self.seed)
        check_classes(len(task.class_ids), name)
        return task


@lru_cache(maxsize=1)
def _opened(path: Path, version: object) -> BankFile:
    return BankFile(path)


def shared_bank(path: Path, cfg: Config) -> BankFile:
    """A feature bank of the configured data set, which the runs of a process share as long as its file is the same;
    errors as of `BankFile`.
    """
    file = _opened(path, file_version(path) if os.path.isfile(path) else None)
    file.check_dataset(cfg.data.name)
    return file


def bank_to_test(file: BankFile, which: str, cfg: Config, seed: int) -> Task:
    """The test images of a bank, of "all" classes or of the half "base" or "new"; raises UserError if it has none."""
    if "test" not in file.labels:
        raise UserError(f"{file.path} has no test images, so no model can be tested on it")
    bank = sample_bank(file, FewShotSample([], []))
    if which != "all":
        half = subsample_labels(set(file.labels["train"].tolist()), which)
        bank = bank.of_classes(torch.tensor(half, dtype=torch.long))
    return Task(bank, cfg, seed, identity=bank_identity(file, lambda: bank), reads=(file.path,))


def bank_identity(file: BankFile, take: Callable[[], FeatureBank]) -> dict:
    """Plain values that change whenever something does that a run takes from a bank, as `take` gives it."""
    identity = {"bank": file.digest_of(take)}
    if file.encoder is not None and file.encoder.precision != "fp32":  # as of all banks that do not say it
        identity["precision"] = file.encoder.precision
    return identity


def _features_of(file: BankFile, rows: Mapping[str, Sequence[int]]) -> Tensor:
    """Features `[M, d]` of some images of train and val, one of each: of training images the mean over the views."""
    trained, val = mean_over_views(file.features("train", rows["train"])), rows.get("val", ())
    return torch.cat([trained, file.features("val", val)]) if val else trained


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
        for key, name in (("SIZE", "input_size"), ("PIXEL_MEAN", "mean"), ("PIXEL_STD", "std")):
            said, true = tuple(getattr(options, name)), tuple(getattr(backbone, name))
            if said not in ((), true):
                raise UserError(f"INPUT.{key} is {said} but {backbone.name} takes {true}; leave the key out")
        return backbone

    def prepare(self) -> None:
        """Loads the backbone, and refuses a user's own training images that are test images as well."""
        if self.name == OWN:  # other splits are what they are, even where an image is in two of them
            self.dataset.refuse_copies()
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

    @property
    def has_test(self) -> bool:
        return bool(self.dataset.test)

    @property
    def has_val(self) -> bool:
        return bool(self.dataset.val) and not self.dataset.val_is_test

    def test_features(self) -> tuple[Tensor | None, Tensor | None]:
        if not self.has_test:
            return None, None
        return extract.encode_test(self.dataset, self.backbone, self.cfg.encoding, self._folder)

    def text_features(self) -> tuple[Tensor, Tensor]:
        """Positive and negative text nodes of the classes, each `[K, d]`."""
        text = extract.encode_prompts(self.backbone, self.name, self.classnames, self.cfg.encoding, self._folder)
        return text["positive"], text["negative"]

    def test_bank(self) -> FeatureBank:
        """As of `Task`, without training images."""
        dataset = replace(self.dataset, train=[], val=[])
        return extract.encode_task(dataset, self.backbone, self.cfg.encoding, self.seed, self._folder)

    def unlabelled(self, what: str) -> Unlabelled:
        if what == TEST_SET or what.endswith(SUFFIX):
            return super().unlabelled(what)
        if what == POOL:
            data, used = self.cfg.data, {item.path for item in (*self.dataset.train, *self.dataset.test)}
            images = load_pool(self.name, data.root, self.seed, data.classes, used)
            if not images.test:
                raise UserError(NO_POOL.format(self.name))
        else:
            images = load_unlabelled(Path(what))
        # Splits that others have made are what they are, even where an image is in two of them
        own = what != POOL or self.name == OWN
        return Unlabelled(lambda: [images.paths(), images.file_sizes()], lambda: self._encoded(images, own))

    def _encoded(self, images: Dataset, check: bool) -> Tensor:
        """Features of unlabelled images, and if asked for a check that none of their files is one of a test image."""
        if check and (pool := images.files("test")) and (tested := self.dataset.files("test")):
            refuse_tested(find_copies(pool, tested), len(pool))
        if self.cfg.data.skip_unreadable and (left_out := [*images.unreadable_images()]):
            logger.warning("%d of %d images are left out, such as %s", len(left_out), len(images.test), left_out[0])
            if len(left_out) == len(images.test):
                raise UserError(f"none of {len(left_out)} unlabelled images can be read, such as {left_out[0]}")
            images = images.without(left_out)
        views = ImageViews(images, images.test, self.backbone.preprocess)
        return extract.encode_images(self.backbone, views, self.cfg.encoding, self._folder, "unlabelled")[0]

    def backbone_config(self) -> BackboneConfig:
        """The backbone, as a model folder names it."""
        return BackboneConfig.of(self.backbone, self.cfg.backbone.name, self.cfg.backbone.pretrained)

    def encoding_metadata(self, bank: FeatureBank) -> tuple[BackboneConfig, Preprocessing, Prompts]:
        positive, negative = extract.class_prompts(self.name, self.classnames, self.cfg.encoding)
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


# How a run opens the task that it is asked for


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
    if method in TRANSDUCTIVE_METHODS and what != TEST_SET:
        raise UserError(f"{method} predicts all test images together: give --unlabelled {TEST_SET}, got {what!r}")
    if what == TEST_SET and (cfg.data.target_domains or cfg.data.target_datasets):
        raise UserError(f"--unlabelled {TEST_SET} reaches no other data set; leave out the targets, or give {POOL}")
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


# What tasks are compared by


def refuse_tested(found: Sequence[object], count: int) -> None:
    """Raises UserError if some of so many unlabelled images were found among the test images."""
    if found:
        raise UserError(
            f"{len(found)} of {count} unlabelled images are test images as well, such as {found[0]}, so the test would "
            "say nothing about new images; take them out, or give --unlabelled test to predict the test images together"
        )


def match_classes(source_ids: Sequence[str], target_ids: Sequence[str], source: str, target: str) -> list[int]:
    """The label in the source of every class of the target; raises UserError if the source has not all of them."""
    labels = {class_id: label for label, class_id in enumerate(source_ids)}
    unknown = [class_id for class_id in target_ids if class_id not in labels]
    if unknown:
        raise UserError(
            f"{len(unknown)} of {len(target_ids)} classes of {target} are none of {source}'s, such as {unknown[0]}; "
            f"with other classes it is tested by --target-datasets {target}"
        )
    return [labels[class_id] for class_id in target_ids]


def ids_of_names(names: Sequence[str]) -> tuple[str, ...]:
    """What tells classes apart: their names or, where two have the same name, names with positions."""
    unique = len(set(names)) == len(names)
    return tuple(names) if unique else tuple(f"{k}: {name}" for k, name in enumerate(names))
