"""What is trained and tested on: one base class, and tasks that are made of features. `image_task.py` has images."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from ..config import Config
from ..datasets import Selection, select_few_shot, subsample_labels
from ..datasets.base import check_classes
from ..features.bank import (
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
from ..utils.files import file_version

if TYPE_CHECKING:
    from ..backbones.clip import Backbone
    from ..baselines.base import FittedMethod

Split = dict[str, list[list]]  # "train" and "val", each rows of [path or bank row, label, class name]


class Opened:
    """What runs of one process share, and none of them changes: the bank, the backbone, and the base of a transductive
    method that were opened or fitted last.
    """

    def __init__(self) -> None:
        self._bank: tuple[object, BankFile] | None = None
        self._backbone: tuple[object, Backbone] | None = None
        self._fitted: dict[tuple[str, str], FittedMethod] = {}

    def bank(self, path: Path) -> BankFile:
        """A feature bank, opened again only if the file is another or has changed; errors as of `BankFile`."""
        try:
            key = file_version(path)
        except OSError:  # `BankFile` says what is wrong
            key = None
        if self._bank is None or key is None or self._bank[0] != key:
            self._bank = None  # the test features of two banks need not fit the memory
            self._bank = key, BankFile(path)
        return self._bank[1]

    def backbone(self, name: str, pretrained: str, device: str, precision: str, identity: dict) -> Backbone:
        """A frozen CLIP; arguments and errors as of `load_backbone`, and its `backbone_identity`."""
        key = name, pretrained, device, precision, identity
        if self._backbone is None or self._backbone[0] != key:
            from ..backbones.loading import load_backbone  # imports open_clip

            self._backbone = None
            self._backbone = key, load_backbone(name, pretrained, device, precision)
        return self._backbone[1]

    def fitted(self, dataset: str, key: str, fit: Callable[[], FittedMethod]) -> FittedMethod:
        """A fitted method that `key` tells from all others of a data set; those of the last data set are kept."""
        if (dataset, key) not in self._fitted:
            self._fitted = {known: method for known, method in self._fitted.items() if known[0] == dataset}
            self._fitted[dataset, key] = fit()
        return self._fitted[dataset, key]


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

    def pool(self) -> Tensor:
        """Features `[M, d]` of the unlabelled images of the same data set, `--unlabelled pool`: the training images of
        its classes that were not drawn, and the validation images.

        Raises:
            UserError: If there are no further images at hand.
        """
        raise UserError(f"{self.name} is given as features, and has no images that were not drawn")

    def pool_identity(self) -> object:
        """What changes whenever the images of `pool` would."""
        return self.identity

    def files_identity(self, path: Path) -> object:
        """What changes whenever the images of `encoded` would; errors as of it."""
        raise UserError(
            f"{path} has to be encoded, and a run from features has no backbone; make a feature bank of it "
            "(features extract), or give images instead of --features"
        )

    def encoded(self, path: Path) -> Tensor:
        """Features `[M, d]` of the images in a folder or CSV file that holds no labels.

        Raises:
            UserError: If the path has no images, one cannot be read, or there is no backbone that encodes them.
        """
        raise NotImplementedError  # `files_identity` is asked before

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
        self.split, self.identity, self._class_ids, self.opened = split or {}, identity or {}, class_ids, Opened()

    @property
    def classnames(self) -> Sequence[str]:  # type: ignore[override]
        return self.features.classnames

    @property
    def class_ids(self) -> Sequence[str]:  # type: ignore[override]
        return bank_class_ids(self.features) if self._class_ids is None else self._class_ids

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
        file = self.opened.bank(path)
        file.check_dataset(cfg.data.name)
        self.file, self.cfg, self.seed, self.name, self._class_ids = file, cfg, seed, file.dataset, None
        train_labels = file.labels["train"].tolist()
        val_labels = file.labels["val"].tolist() if "val" in file.labels else []
        self.selection, self.split = bank_split(train_labels, val_labels, file.classnames, cfg, seed)
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

    def pool(self) -> Tensor:
        drawn, labels = set(self.selection.train), self.file.labels
        kept = {label for _, label, _ in self.split["train"]}
        if self.cfg.data.classes != "all":  # with their labels in the whole bank
            kept = {labels["train"][row].item() for row, *_ in self.split["train"]}
        rows: dict[str, list[int]] = {
            split: [row for row, label in enumerate(labels[split].tolist()) if label in kept]
            for split in ("train", "val")
            if split in labels
        }
        rows["train"] = [row for row in rows["train"] if row not in drawn]
        return features_of_images(self.file, rows)

    def pool_identity(self) -> object:
        return self.file.identity(*(range(len(self.file.labels.get(split, []))) for split in ("train", "val")))

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


def bank_split(
    train_labels: list[int], val_labels: list[int], names: Sequence[str], cfg: Config, seed: int
) -> tuple[Selection, Split]:
    """The rows of a feature bank that the protocol selects, and what `split.json` says of them; labels are those of
    every row, and names in label order.
    """
    selection = select_few_shot(train_labels, val_labels, cfg.data.shots, random.Random(seed))
    which = cfg.data.classes
    # Where all classes are asked for, one without images stays here and is an error later
    drawn = range(len(names)) if which == "all" else {train_labels[row] for row in selection.train}
    kept = {label: new for new, label in enumerate(subsample_labels(drawn, which))}

    def rows(selected: list[int], labels: list[int]) -> list[list]:
        return [[row, kept[labels[row]], names[labels[row]]] for row in selected if labels[row] in kept]

    return selection, {"train": rows(selection.train, train_labels), "val": rows(selection.val, val_labels)}


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


def bank_class_ids(bank: FeatureBank) -> tuple[str, ...]:
    """What tells the classes of a bank apart: their names or, where two have the same name, names with positions."""
    names = tuple(bank.classnames)
    return names if len(set(names)) == len(names) else tuple(f"{k}: {name}" for k, name in enumerate(names))
