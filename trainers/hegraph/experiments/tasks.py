"""What is trained and tested on: one base class, and tasks that are made of features. `image_task.py` has images."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from ..config import Config
from ..datasets import Selection, select_few_shot, subsample_labels
from ..datasets.base import check_classes
from ..features.bank import (
    SUFFIX,
    BankFile,
    FeatureBank,
    draw_bank,
    mean_over_views,
    refuse_test_rows,
    test_features_apart,
)
from ..models.saved import Backbone as BackboneConfig
from ..models.saved import Preprocessing, Prompts, SavedModel
from ..training.batches import BankBatches, TrainingData, products_with_cache
from ..utils.errors import UserError
from ..utils.files import file_version, hash_file

if TYPE_CHECKING:
    from ..baselines.base import FittedMethod

POOL = "pool"  # what DATASET.UNLABELLED says of images of the task's own data set
Split = dict[str, list[list]]  # "train" and "val", each rows of [path or bank row, label, class name]


class Opened:
    """What runs of one process share, and none of them changes: of each kind what was opened or fitted last."""

    def __init__(self) -> None:
        self._last: dict[str, tuple[object, Any]] = {}

    def last(self, kind: str, key: object, make: Callable[[], Any]) -> Any:
        """What `make` gives, made again only if the last of its kind had another key."""
        if kind not in self._last or self._last[kind][0] != key:
            self._last.pop(kind, None)  # two of a kind need not fit the memory
            self._last[kind] = key, make()
        return self._last[kind][1]

    def bank(self, path: Path) -> BankFile:
        """A feature bank, opened again only if the file is another or has changed; errors as of `BankFile`."""
        try:
            version = file_version(path)
        except OSError:
            return BankFile(path)  # which says what is wrong
        return self.last("bank", version, lambda: BankFile(path))

    def fitted(self, dataset: str, key: str, fit: Callable[[], FittedMethod]) -> FittedMethod:
        """A fitted method that `key` tells from all others of a data set; those of the last data set are kept."""
        known = self.last("fitted", dataset, dict)
        if key not in known:
            known[key] = fit()
        return known[key]


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


class Task(ABC):
    """Images that a method is fitted to, tested on, or both. It is known which these are before any is encoded.

    Attributes:
        cfg, seed: The checked configuration, and the seed of everything that is drawn.
        split: The images that the few-shot protocol selected.
        identity: Plain values that change whenever the data would, apart from the split.
        name: Of the data set.
        classnames, class_ids: Its K class names, and what tells them apart across data sets, in label order.
        backbone: The frozen CLIP that encodes the images; None where it is not at hand.
        opened: What runs of this process share.
    """

    cfg: Config
    seed: int
    split: Split
    identity: dict
    name: str
    classnames: Sequence[str]
    class_ids: Sequence[str]
    backbone: Any = None
    opened: Opened

    def check_trained_classes(self) -> None:
        """Raises UserError if the training images are of fewer than two classes, so that there is nothing to learn."""
        check_classes(len({label for _, label, _ in self.split["train"]}))

    def prepare(self) -> None:  # noqa: B027  (there may be nothing to do)
        """Loads what encoding needs, so that a mistake is found before anything is written."""

    def encode(self) -> None:  # noqa: B027
        """Encodes the images that are not on disk, with the other processes of `torchrun`."""

    @abstractmethod
    def bank(self) -> FeatureBank:
        """The task's features."""

    @abstractmethod
    def test_bank(self) -> FeatureBank:
        """The features of its test images and its text nodes, without training images."""

    def test_features(self) -> tuple[Tensor | None, Tensor | None]:
        """Features `[M, d]` and labels `[M]` of the test images; None where there are none."""
        bank = self.test_bank()
        return bank.test_features, bank.test_labels

    def batches(self, bank: FeatureBank) -> TrainingData:
        """The training batches of a bank, with the products that every step of the configured variant needs."""
        full = self.cfg.model.variant == "full"  # the others have no cache
        products = products_with_cache(bank.train_features, bank.cache_keys()) if full else None
        return BankBatches(bank.train_features, bank.train_labels, self.cfg.data.batch_size, self.seed, products)

    def made_of(self, bank: FeatureBank) -> tuple[BackboneConfig, Preprocessing | None, Prompts | None]:
        """How the features of its bank were made, as a model folder says it."""
        known = {} if bank.encoder is None else bank.encoder.model_dump()
        return BackboneConfig(title=bank.backbone, **known), None, None

    def check_backbone(self, model: SavedModel) -> None:  # noqa: B027
        """Raises UserError if the features here are not those of the model's backbone."""

    def unlabelled(self, what: str) -> Unlabelled:
        """The images without labels that DATASET.UNLABELLED names: a feature bank; "pool", the training images of the
        task's classes that were not drawn, and the validation images; or a folder or CSV file.

        Raises:
            UserError: If there are no such images, or there is no backbone that encodes them.
        """
        if what.endswith(SUFFIX):
            file = BankFile(Path(what))
            rows = {split: range(len(labels)) for split, labels in file.labels.items()}
            return Unlabelled(lambda: hash_file(file.path), lambda: features_of_images(file, rows), file.backbone)
        if what == POOL:
            raise UserError(f"{self.name} is given as features, and has no images that were not drawn")
        raise UserError(
            f"{what} has to be encoded, and a run from features has no backbone; make a feature bank of it "
            "(features extract), or give images instead of --features"
        )

    def training_images(self) -> Iterator[Image.Image] | None:
        """The training images in the order of the cache, opened one by one; None where there are none to show."""
        return None

    def target(self, name: str, same_classes: bool) -> Task:
        """Another data set to test on, NAME or a half of its classes, NAME:base or NAME:new. Nothing is encoded yet.

        Raises:
            UserError: If it cannot be had, has a single class, or has not only `same_classes` as this task.
        """
        raise UserError("features that are given as arrays have no other data sets; leave out --target-datasets")


class FeatureTask(Task):
    """A task of features that are at hand; arguments as of `Task`. Nothing is encoded. Where nothing is kept of it, it
    needs neither split nor identity. `class_ids` of None are made of the names.
    """

    features: FeatureBank

    def __init__(
        self,
        features: FeatureBank,
        cfg: Config,
        seed: int,
        split: Split | None = None,
        identity: dict | None = None,
        class_ids: Sequence[str] | None = None,
    ) -> None:
        self.features, self.cfg, self.seed, self.name = features, cfg, seed, features.dataset
        self.split, self.identity, self.opened = split or {}, identity or {}, Opened()
        self.classnames = features.classnames
        self.class_ids = ids_of_names(self.classnames) if class_ids is None else class_ids

    def bank(self) -> FeatureBank:
        return self.features

    def test_bank(self) -> FeatureBank:
        return self.features.with_test()

    def check_backbone(self, model: SavedModel) -> None:
        if self.features.backbone != model.backbone.title:
            raise UserError(
                f"the model is of {model.backbone.title!r} features, but the bank holds those of "
                f"{self.features.backbone!r}"
            )
        encoder = self.features.encoder
        model.backbone.compare_precision("fp32" if encoder is None else encoder.precision)


class BankTask(FeatureTask):
    """A task made of rows of the feature bank at `path`; of the image features only those rows are read.

    Raises:
        UserError: If the bank is unusable or is of another data set or mode than the configuration says.
    """

    def __init__(self, path: Path, cfg: Config, seed: int, opened: Opened | None = None) -> None:
        if cfg.data.features == "online":
            raise UserError("FEATURES.MODE online encodes images, and --features has none; use FEATURES.MODE bank")
        self.opened = opened or Opened()
        self.file = file = self.opened.bank(path)
        file.check_dataset(cfg.data.name)
        self.cfg, self.seed, self.name = cfg, seed, file.dataset
        labels = {name: file.labels[name].tolist() if name in file.labels else [] for name in ("train", "val")}
        self.selection = select_few_shot(labels["train"], labels["val"], cfg.data.shots, random.Random(seed))
        # Where all classes are asked for, one without images stays here and is an error later
        of_all = cfg.data.classes == "all"
        drawn = range(len(file.classnames)) if of_all else {labels["train"][row] for row in self.selection.train}
        self.kept = subsample_labels(drawn, cfg.data.classes)  # labels in the file of the classes of this task
        self.classnames = [file.classnames[label] for label in self.kept]
        self.class_ids = ids_of_names(self.classnames)
        new = {label: position for position, label in enumerate(self.kept)}
        self.split = {
            name: [[row, new[label], file.classnames[label]] for row in rows if (label := labels[name][row]) in new]
            for name, rows in (("train", self.selection.train), ("val", self.selection.val))
        }
        self.identity = bank_identity(file, self.selection)

    @cached_property
    def features(self) -> FeatureBank:  # type: ignore[override]
        """The rows that the protocol selected; test features of a large bank stay on disk until `with_test`."""
        drawn = draw_bank(self.file, self.selection).subsample(self.cfg.data.classes)
        if not self.file.is_large:
            return drawn.with_test()
        if drawn.read_test is None:
            return drawn
        return replace(drawn, read_test=cache(partial(test_features_apart, drawn)))

    def prepare(self) -> None:
        """Reads the rows of a bank of at most 1 GiB; the test features of a larger one are compared when they are read.

        Raises:
            UserError: If an image of train or val is a test image as well, or the rows cannot be read.
        """
        if not self.file.is_large:
            refuse_test_rows(self.features)

    def unlabelled(self, what: str) -> Unlabelled:
        if what != POOL:
            return super().unlabelled(what)
        kept, rows = torch.tensor(self.kept), {}
        for split, labels in self.file.labels.items():
            rows[split] = torch.isin(labels, kept).nonzero().flatten().tolist()
        rows["train"] = sorted({*rows["train"]} - {*self.selection.train})
        all_rows = [range(len(self.file.labels.get(split, []))) for split in ("train", "val")]
        return Unlabelled(lambda: self.file.identity(*all_rows), lambda: features_of_images(self.file, rows))

    def target(self, name: str, same_classes: bool) -> Task:
        """The test images of a half of the bank's classes; there is nothing else to test on."""
        if same_classes:
            raise UserError("a feature bank has no other data sets; leave out --target-domains")
        halves = [f"{self.name}:{which}" for which in ("base", "new")]
        if name not in halves:
            raise UserError(
                f"a feature bank has no other data sets: --target-datasets may be {' or '.join(halves)}, got {name!r}"
            )
        task = bank_to_test(self.file, name.rpartition(":")[2], self.cfg, self.seed)
        check_classes(len(task.class_ids), name)
        return task


def bank_to_test(file: BankFile, which: str, cfg: Config, seed: int) -> FeatureTask:
    """The test images of a bank, of "all" classes or of the half "base" or "new"; raises UserError if it has none."""
    if "test" not in file.labels:
        raise UserError(f"{file.path} has no test images, so no model can be tested on it")
    bank = draw_bank(file, Selection([], []))
    if which != "all":
        half = subsample_labels(set(file.labels["train"].tolist()), which)
        bank = bank.of_classes(torch.tensor(half, dtype=torch.long))
    return FeatureTask(bank, cfg, seed, identity=bank_identity(file, Selection([], [])))


def bank_identity(file: BankFile, drawn: Selection) -> dict:
    """Plain values that change whenever something does that a run takes from a bank."""
    identity = {"bank": file.identity(drawn.train, drawn.val)}
    if file.encoder is not None and file.encoder.precision != "fp32":  # as of all banks that do not say it
        identity["precision"] = file.encoder.precision
    return identity


def features_of_images(file: BankFile, rows: Mapping[str, Sequence[int]]) -> Tensor:
    """Features `[M, d]` of some images of train and val, one of each: of training images the mean over the views."""
    found = [mean_over_views(file.features("train", rows["train"]))]
    return torch.cat([*found, *(file.features("val", rows["val"]) for _ in rows.keys() & {"val"})])


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
        shown = ", ".join([*unknown[:3], *(["..."] if len(unknown) > 3 else [])])
        raise UserError(
            f"{len(unknown)} of {len(target_ids)} classes of {target} are none of {source}'s ({shown}); with other "
            f"classes it is tested by --target-datasets {target}"
        )
    return [labels[class_id] for class_id in target_ids]


def ids_of_names(names: Sequence[str]) -> tuple[str, ...]:
    """What tells classes apart: their names or, where two have the same name, names with positions."""
    unique = len(set(names)) == len(names)
    return tuple(names) if unique else tuple(f"{k}: {name}" for k, name in enumerate(names))
