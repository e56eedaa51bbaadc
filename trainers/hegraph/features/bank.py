"""The feature bank: every feature that one few-shot task needs, in one `.safetensors` file.

Shapes: N training images, V augmented views of each, M test images, K classes, d feature width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..datasets.splits import SPLITS, Selection, subsample_labels
from ..utils.files import write_tensors
from .bank_file import OPTIONAL, REQUIRED, BankFile, Encoder, bank_metadata


@dataclass(frozen=True)
class FeatureBank:
    """Features, labels and names of one task; all features are unit-norm float32.

    Attributes:
        train_features: Training images, shape `[V, N, d]`.
        train_labels: Their labels, shape `[N]`.
        text_positive: Positive text nodes, shape `[K, d]`.
        text_negative: Negative text nodes, shape `[K, d]`.
        val_features, val_labels: Validation images, shapes `[L, d]` and `[L]`, or None.
        test_features, test_labels: Test images, shapes `[M, d]` and `[M]`, or None.
        text_norms: Norms of the positive text nodes before they were normalised, shape `[K]`; None if not known.
        classnames: The K class names in label order.
        dataset, backbone: Their names, for records.
        logit_scale: CLIP's `tau`, by which cosines are multiplied.
        encoder: How the backbone is loaded; None where that is not known here.
        read_test: Reads the test features, where they are still on disk: then `test_features` is None and
            `test_labels` is not.
        averaged: The last `train_features` whose views were averaged, with the cache keys that came of it. Copies that
            `replace` makes share the list on purpose: they mostly have the same features, whose mean is taken once.
    """

    train_features: Tensor
    train_labels: Tensor
    text_positive: Tensor
    text_negative: Tensor
    classnames: Sequence[str]
    dataset: str
    backbone: str
    logit_scale: float
    val_features: Tensor | None = None
    val_labels: Tensor | None = None
    test_features: Tensor | None = None
    test_labels: Tensor | None = None
    text_norms: Tensor | None = None
    encoder: Encoder | None = None
    read_test: Callable[[], Tensor] | None = None
    averaged: list[Tensor] = field(default_factory=list, repr=False, compare=False)

    def subsample(self, which: str) -> FeatureBank:
        """The bank of all classes or of one half of them, with labels from 0.

        Args:
            which: "all", "base" or "new"; see `datasets.splits.subsample_labels`.
        """
        if which == "all":
            return self
        kept = subsample_labels(set(self.train_labels.tolist()), which)
        return self.of_classes(torch.tensor(kept, dtype=torch.long))

    def of_classes(self, kept: Tensor) -> FeatureBank:
        """The bank of some classes, with labels from 0.

        Args:
            kept: Their labels here, in ascending order, int64.
        """
        kept = kept.to(self.train_labels.device)
        changes: dict[str, Any] = {
            "classnames": [self.classnames[label] for label in kept.tolist()],
            "text_positive": self.text_positive[kept],
            "text_negative": self.text_negative[kept],
            "text_norms": None if self.text_norms is None else self.text_norms[kept],
        }
        for split in SPLITS:
            features, all_labels = getattr(self, f"{split}_features"), getattr(self, f"{split}_labels")
            if all_labels is None:
                continue
            rows = torch.isin(all_labels, kept)
            changes[f"{split}_labels"] = torch.searchsorted(kept, all_labels[rows])
            if features is not None:
                changes[f"{split}_features"] = features[..., rows, :]
            elif self.read_test is not None:
                changes["read_test"] = partial(_some_rows, self.read_test, rows.cpu())
        return replace(self, **changes)

    @property
    def features_to_classify(self) -> Tensor:
        """The test features, shape `[M, d]`; they are read now if they are still on disk.

        Raises:
            ValueError: If the bank has no test images.
            UserError: As `with_test`.
        """
        features = self.with_test().test_features
        if features is None:
            raise ValueError("the bank has no test images, so there is nothing to classify")
        return features

    def with_test(self) -> FeatureBank:
        """The bank with its test features, which are read now if they are still on disk.

        Raises:
            UserError: If they cannot be read, are not finite or not of unit norm.
        """
        if self.read_test is None:
            return self
        return replace(self, test_features=self.read_test().to(self.train_features.device), read_test=None)

    def without_test(self) -> FeatureBank:
        """The bank without its test images, as a method sees it while it is trained."""
        return replace(self, test_features=None, test_labels=None, read_test=None)

    def to(self, device: str) -> FeatureBank:
        """The bank with all its tensors on a device; the bank itself if they are there."""
        moved: dict[str, Any] = {k: v.to(device) for k, v in self.__dict__.items() if isinstance(v, Tensor)}
        return self if all(moved[name] is getattr(self, name) for name in moved) else replace(self, **moved)

    def cache_keys(self) -> Tensor:
        """One key per training image: the mean over its views, re-normalised, shape `[N, d]`.

        All who ask for them share them, as they do the features, so nobody changes them in place.
        """
        if not self.averaged or self.averaged[0] is not self.train_features:
            self.averaged[:] = self.train_features, mean_over_views(self.train_features)
        return self.averaged[1]

    def save(self, path: Path) -> None:
        """Writes the bank, atomically.

        Raises:
            UserError: If the file cannot be written.
        """
        bank = self.with_test()
        tensors = {name: getattr(bank, name) for name in (*REQUIRED, *OPTIONAL)}
        metadata = bank_metadata(self.dataset, self.backbone, self.classnames, self.logit_scale, self.encoder)
        write_tensors(path, {name: tensor for name, tensor in tensors.items() if tensor is not None}, metadata)


def mean_over_views(features: Tensor) -> Tensor:
    """The re-normalised mean of the views of each image: `[V, N, d]` becomes `[N, d]`."""
    return F.normalize(features.mean(dim=0), dim=-1)


def load_bank(path: Path) -> FeatureBank:
    """Reads and checks a whole feature bank. Nothing in the file is executed.

    Raises:
        UserError: If the file is missing or damaged, lacks a tensor, or holds one of the wrong shape, norm or
            range; the message says which and what would be right.
    """
    file = BankFile(path)
    features: dict[str, Any] = {f"{split}_features": file.features(split) for split in file.labels}
    return FeatureBank(**features, **_all_but_features(file))


def draw_bank(file: BankFile, selection: Selection) -> FeatureBank:
    """The few-shot task that the protocol selected from a bank: its rows of train and val, and the whole of test.

    Only those rows are read. Test features stay on disk until `FeatureBank.with_test`.

    Raises:
        UserError: If the rows cannot be read, are not finite or not of unit norm.
    """
    rows = {"train": selection.train, "val": selection.val}
    changes: dict[str, Any] = {}
    for split in rows.keys() & file.labels.keys():
        changes[f"{split}_features"] = file.rows(split, rows[split])
        changes[f"{split}_labels"] = file.labels[split][torch.tensor(rows[split], dtype=torch.long)]
    if "test" in file.labels:
        changes["read_test"] = partial(file.features, "test")
    return FeatureBank(**_all_but_features(file) | changes)


def _all_but_features(file: BankFile) -> dict[str, Any]:
    """The fields of a `FeatureBank` that an opened file has read already."""
    return {
        **{f"{split}_labels": labels for split, labels in file.labels.items()},
        "text_positive": file.text_positive,
        "text_negative": file.text_negative,
        "text_norms": file.text_norms,
        "classnames": file.classnames,
        "dataset": file.dataset,
        "backbone": file.backbone,
        "encoder": file.encoder,
        "logit_scale": file.logit_scale,
    }


def _some_rows(read: Callable[[], Tensor], rows: Tensor) -> Tensor:
    return read()[rows]
