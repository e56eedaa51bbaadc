"""The feature bank: every feature that one few-shot task needs, in one `.safetensors` file.

Shapes: N training images, V augmented views of each, M test images, K classes, d feature width.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..datasets.splits import Selection, subsample_labels
from ..utils.errors import UserError
from ..utils.files import read_tensors, write_tensors
from ..utils.reading import parse_json

REQUIRED = ("train_features", "train_labels", "text_positive", "text_negative")
LABELS = ("train_labels", "val_labels", "test_labels")
OPTIONAL = ("val_features", "val_labels", "test_features", "test_labels", "text_norms")
# How far a norm may be from 1: features that were kept in float16 are within it, means of unit vectors are not
NORM_TOLERANCE = 0.02
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


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

    def select(self, selection: Selection) -> FeatureBank:
        """The few-shot task that the protocol selected: its rows of train and val, and the whole of test."""
        train, val = torch.tensor(selection.train), torch.tensor(selection.val, dtype=torch.long)
        changes: dict[str, Any] = {
            "train_features": self.train_features[:, train],
            "train_labels": self.train_labels[train],
        }
        if self.val_features is not None and self.val_labels is not None:
            changes |= {"val_features": self.val_features[val], "val_labels": self.val_labels[val]}
        return replace(self, **changes)

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
        for split in ("train", "val", "test"):
            features, labels = getattr(self, f"{split}_features"), getattr(self, f"{split}_labels")
            if features is not None:
                rows = torch.isin(labels, kept)
                changes[f"{split}_features"] = features[..., rows, :]
                changes[f"{split}_labels"] = torch.searchsorted(kept, labels[rows])
        return replace(self, **changes)

    @property
    def features_to_classify(self) -> Tensor:
        """The test features, shape `[M, d]`.

        Raises:
            ValueError: If the bank has no test images.
        """
        if self.test_features is None:
            raise ValueError("the bank has no test images, so there is nothing to classify")
        return self.test_features

    def without_test(self) -> FeatureBank:
        """The bank without its test images, as a method sees it while it is trained."""
        return replace(self, test_features=None, test_labels=None)

    def to(self, device: str) -> FeatureBank:
        """The bank with all its tensors on a device."""
        moved: dict[str, Any] = {k: v.to(device) for k, v in self.__dict__.items() if isinstance(v, Tensor)}
        return replace(self, **moved)

    def cache_keys(self) -> Tensor:
        """One key per training image: the mean over its views, re-normalised, shape `[N, d]`."""
        return F.normalize(self.train_features.mean(dim=0), dim=-1)

    def save(self, path: Path) -> None:
        """Writes the bank, atomically.

        Raises:
            UserError: If the file cannot be written.
        """
        tensors = {name: getattr(self, name) for name in (*REQUIRED, *OPTIONAL)}
        metadata = {
            "dataset": self.dataset,
            "backbone": self.backbone,
            "classnames": json.dumps(list(self.classnames), ensure_ascii=False),
            "logit_scale": repr(self.logit_scale),
        }
        write_tensors(path, {name: tensor for name, tensor in tensors.items() if tensor is not None}, metadata)


def load_bank(path: Path) -> FeatureBank:
    """Reads and checks a feature bank. Nothing in the file is executed.

    Raises:
        UserError: If the file is missing or damaged, lacks a tensor, or holds one of the wrong shape, norm or
            range; the message says which and what would be right.
    """
    tensors, metadata = read_tensors(path, "the feature bank")
    missing = [name for name in REQUIRED if name not in tensors]
    for features, labels in (("val_features", "val_labels"), ("test_features", "test_labels")):
        if (features in tensors) != (labels in tensors):
            missing.append(labels if features in tensors else features)
    missing += [f"{key} (metadata)" for key in ("classnames", "logit_scale") if key not in metadata]
    if missing:
        raise UserError(f"the feature bank {path} lacks {', '.join(missing)}; it holds {', '.join(sorted(tensors))}")
    classnames, logit_scale = _read_metadata(path, metadata)

    width = (tensors["text_positive"].shape or (0,))[-1]
    for name, tensor in tensors.items():
        if name in LABELS:
            _check_labels(path, name, tensor, tensors[name.replace("labels", "features")], len(classnames))
        elif name == "text_norms":
            tensors[name] = _check_norms(path, tensor.float(), len(classnames))
        elif name in (*REQUIRED, *OPTIONAL):
            tensors[name] = _check_features(path, name, tensor, width)
    for name in ("text_positive", "text_negative"):
        if len(tensors[name]) != len(classnames):
            raise UserError(f"{path}: {name} has {len(tensors[name])} rows but there are {len(classnames)} class names")
    if tensors["train_features"].dim() == 2:
        tensors["train_features"] = tensors["train_features"].unsqueeze(0)
    named: dict[str, Any] = {name: tensors.get(name) for name in (*REQUIRED, *OPTIONAL)}
    return FeatureBank(
        **named,
        classnames=classnames,
        dataset=metadata.get("dataset", path.stem),
        backbone=metadata.get("backbone", "unknown"),
        logit_scale=logit_scale,
    )


def _read_metadata(path: Path, metadata: dict[str, str]) -> tuple[list[str], float]:
    """The class names and the logit scale."""
    try:
        classnames = parse_json(metadata["classnames"])
        logit_scale = float(metadata["logit_scale"])
    except ValueError as error:
        raise UserError(
            f"{path}: metadata must be a JSON list (classnames) and a number (logit_scale): {error}"
        ) from error
    if not isinstance(classnames, list) or not all(isinstance(name, str) for name in classnames):
        raise UserError(f"{path}: the metadata classnames must be a JSON list of strings, got {classnames!r:.80}")
    if len(set(classnames)) != len(classnames):
        twice = sorted({name for name in classnames if classnames.count(name) > 1})
        # A few may repeat: ImageNet has two classes called "crane"
        if len(twice) > len(classnames) // 10:
            raise UserError(f"{path}: class names repeat: {', '.join(twice[:5])}")
    if not 0 < logit_scale < float("inf"):
        raise UserError(f"{path}: logit_scale must be a positive number, got {logit_scale}")
    return classnames, logit_scale


def _check_features(path: Path, name: str, tensor: Tensor, width: int) -> Tensor:
    """The features, with rows of exactly unit norm."""
    if tensor.dtype not in FLOATS:
        kind = str(tensor.dtype).removeprefix("torch.")
        raise UserError(f"{path}: {name} must hold floats of 16, 32 or 64 bits, got {kind}")
    tensor = tensor.float()
    dims = (2, 3) if name == "train_features" else (2,)
    if tensor.dim() not in dims or tensor.shape[-1] != width:
        wanted = "[V, N, d] or [N, d]" if name == "train_features" else "[rows, d]"
        raise UserError(
            f"{path}: {name} must be {wanted} with d = {width} as in text_positive, got {list(tensor.shape)}"
        )
    if name in ("train_features", "test_features") and not tensor.numel():
        raise UserError(f"{path}: {name} is empty, of shape {list(tensor.shape)}")
    if not tensor.isfinite().all():
        row = (~tensor.isfinite()).nonzero()[0].tolist()
        raise UserError(f"{path}: {name} holds NaN or infinite values, first at {row}")
    norms = tensor.norm(dim=-1)
    if tensor.numel() and (norms - 1).abs().max() > NORM_TOLERANCE:
        raise UserError(
            f"{path}: {name} must have unit-norm rows, got norms from {norms.min():.3g} to {norms.max():.3g}; "
            "divide each row by its norm"
        )
    return F.normalize(tensor, dim=-1)


def _check_norms(path: Path, norms: Tensor, num_classes: int) -> Tensor:
    if norms.shape != (num_classes,) or not (norms.isfinite() & (norms > 0)).all():
        raise UserError(
            f"{path}: text_norms must be {num_classes} positive numbers, one per class name, got "
            f"{list(norms.shape)}{f' from {norms.min():.3g} to {norms.max():.3g}' if norms.numel() else ''}"
        )
    return norms


def _check_labels(path: Path, name: str, labels: Tensor, features: Tensor, num_classes: int) -> None:
    if labels.dtype != torch.int64 or labels.dim() != 1 or len(labels) != features.shape[-2]:
        raise UserError(
            f"{path}: {name} must be {features.shape[-2]} int64 labels, one per feature row, got "
            f"{list(labels.shape)} {str(labels.dtype).removeprefix('torch.')}"
        )
    if len(labels) and not (int(labels.min()) >= 0 and int(labels.max()) < num_classes):
        raise UserError(
            f"{path}: {name} must lie in 0 ... {num_classes - 1} ({num_classes} class names), got "
            f"{int(labels.min())} ... {int(labels.max())}"
        )
