"""Tasks: images that a method is fitted to, tested on, or both. This file has the base class and features in memory.

`bank_task.py` has the rows of a feature bank, `image_task.py` the images with the backbone that encodes them, and
`opening.py` opens the task of a run.

Shapes: M test or unlabelled images, K classes, d feature width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from torch import Tensor

from ..config import Config
from ..datasets.groups import SharedGroups
from ..features.backbones.schema import BackboneConfig
from ..features.bank import SUFFIX, BankFile, FeatureBank, mean_over_views
from ..features.copies import refuse_test_rows
from ..method.training.batches import BankBatches, TrainingData, products_with_cache
from ..method.training.choice import has_val
from ..models.saved import Preprocessing, Prompts, TrainedModel
from ..results.records import OTHER_CLASSES, SAME_CLASSES, ImageFiles
from ..utils.errors import UserError

if TYPE_CHECKING:
    from ..features.backbones.base import Backbone

# Values of DATASET.UNLABELLED for images of the task's own data set
POOL = "pool"
TEST_SET = "test"
NO_POOL = "{} has no images left for --unlabelled pool: train with fewer --shots, or give a path"
Split = dict[str, list[list]]  # "train" and "val", each rows of [path or bank row, label, class name]


class Unlabelled(NamedTuple):
    """Unlabelled images, which are not read yet.

    Attributes:
        identity: Returns plain values that change whenever the images do.
        features: Returns unit-norm features `[M, d]`; raises UserError if an image cannot be read.
        backbone: Backbone of the features; "" for the backbone of the task.
        of_published_split: Whether the images belong to a published split, which is used as it is, even if two of its
            parts share an image.
    """

    identity: Callable[[], object]
    features: Callable[[], Tensor]
    backbone: str = ""
    of_published_split: bool = False


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
    def images_only(self) -> str:
        """Name of the encoder or the feature bank if it has no text; "" otherwise."""
        return ""

    @property
    def test_files(self) -> ImageFiles | None:
        """Files of the test images; None if they are not files."""
        return None

    @property
    def shared_groups(self) -> SharedGroups | None:
        """Numbers of val and test images whose groups occur in train; None without groups."""
        return None

    @property
    def test_groups(self) -> list[int] | None:
        """Number of the group of each test image; None without groups."""
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
        rows = {}
        for part, items in self.split.items():
            rows[part] = [row for row, *_ in items]
        refuse_test_rows(self.bank(), rows)

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
        """Return the training batches of the whole task, whose features are in a bank."""
        return self.batches_of_features(bank)

    def batches_of_features(self, bank: FeatureBank) -> BankBatches:
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
            return Unlabelled(lambda: file.digest, lambda: features_of_rows(file, rows), file.backbone)
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
    """Task whose features are in memory.

    Args:
        bank: The features.
        cfg: Checked configuration.
        seed: Seed of everything that is sampled.
        split, identity, bank_files: As in `Task`.
        class_ids: As in `Task`; () derives them from the class names.
        pool: Images of `--unlabelled pool`; None: there is no pool.
    """

    def __init__(
        self,
        bank: FeatureBank,
        cfg: Config,
        seed: int,
        split: Split | None = None,
        identity: dict | None = None,
        class_ids: Sequence[str] = (),
        bank_files: Sequence[Path] = (),
        pool: Unlabelled | None = None,
    ) -> None:
        super().__init__(
            cfg,
            seed,
            bank.dataset,
            bank.classnames,
            class_ids or ids_of_names(bank.classnames),
            split or {},
            bank_files,
            bank.multilabel,
        )
        self._bank = bank
        self._identity = identity or {}
        self._pool = pool

    @property
    def identity(self) -> dict:
        return self._identity

    @property
    def has_test(self) -> bool:
        return self._bank.test_labels is not None and len(self._bank.test_labels) > 0

    @property
    def has_val(self) -> bool:
        return has_val(self._bank)

    @cached_property
    def unlabelled(self) -> Unlabelled:
        if self.cfg.data.unlabelled == POOL and self._pool is not None:
            return self._pool
        return super().unlabelled

    @property
    def test_groups(self) -> list[int] | None:
        groups = self._bank.test_groups
        return None if groups is None else groups.tolist()

    def bank(self) -> FeatureBank:
        return self._bank


def features_of_rows(file: BankFile, rows: Mapping[str, Sequence[int]]) -> Tensor:
    """Return one feature per image of train and val rows of a bank, `[M, d]`: for train the mean over the views."""
    trained = mean_over_views(file.features("train", rows["train"]))
    val = rows.get("val", ())
    return torch.cat([trained, file.features("val", val)]) if val else trained


def names_of(classnames: Sequence[str], label: int | tuple[int, ...]) -> str:
    """Return the class name of a label, or names joined by `|`, as in `Item`."""
    return "|".join(classnames[each] for each in (label if isinstance(label, tuple) else (label,)))


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
    """Return identifiers of classes: their names; a name that occurs several times with its position.

    If such an identifier is the name of another class, all names get positions.
    """
    counts = Counter(names)
    ids = [f"{k}: {name}" if counts[name] > 1 else name for k, name in enumerate(names)]
    if len(set(ids)) < len(ids):
        ids = [f"{k}: {name}" for k, name in enumerate(names)]
    return tuple(ids)
