"""A feature bank on disk, of which a few-shot run reads only the rows that it draws.

Opening a bank reads its header, labels and text features, and checks them and all shapes. Features of images are read
when they are asked for. Their values are checked then, and those of the other rows are not.

Shapes: N training images, V augmented views of each, K classes, d feature width.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..datasets.splits import SPLITS
from ..utils.errors import UserError
from ..utils.reading import parse_json
from ..utils.schema import Name, Part, check
from ..utils.tensor_bytes import StoredTensor
from ..utils.tensor_file import DTYPES, TensorFile
from .bank_identity import BANK, BankIdentity

REQUIRED = ("train_features", "train_labels", "text_positive", "text_negative")
OPTIONAL = ("val_features", "val_labels", "test_features", "test_labels", "text_norms")
# How far a norm may be from 1: features that were kept in float16 are within it, means of unit vectors are not
NORM_TOLERANCE = 0.02
FLOATS = ("F16", "BF16", "F32", "F64")


class Encoder(Part):
    """The frozen CLIP that made the features, by which a model that is trained on them finds it again.

    Attributes:
        model, pretrained, precision: As `load_backbone` takes them.
        fingerprint: Plain values that change whenever the features would.
    """

    model: Name
    pretrained: str
    precision: Literal["fp32", "fp16", "amp"]
    fingerprint: dict[str, str]


class BankFile:
    """A feature bank that has been opened. Nothing in the file is executed.

    Args:
        path: The `.safetensors` file.

    Attributes:
        path: The file.
        identity: What tells it from another bank.
        classnames: The K class names in label order.
        dataset, backbone: Their names, for records.
        encoder: How the backbone is loaded; None where the bank does not say it.
        logit_scale: CLIP's `tau`, by which cosines are multiplied.
        text_positive, text_negative: The text nodes, of unit norm and shape `[K, d]`.
        text_norms: Norms of the positive text nodes before they were normalised, shape `[K]`; None if not known.
        labels: "train", and "val" and "test" if there are such images -> their labels.

    Raises:
        UserError: If the file is missing or damaged, lacks a tensor, or holds one of the wrong shape, labels out of
            range or damaged text features; the message says which and what would be right.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = TensorFile(path, BANK)
        self.identity = BankIdentity(self._file)
        self._check_names()
        metadata = self._file.metadata
        self.classnames, self.logit_scale = _read_metadata(path, metadata)
        self.dataset = metadata.get("dataset", path.stem)
        self.backbone = metadata.get("backbone", "unknown")
        self.encoder = _read_encoder(path, metadata)
        self.labels: dict[str, Tensor] = {}
        self._check_shapes()
        self.text_positive, self.text_negative = (self._text(name) for name in ("text_positive", "text_negative"))
        self.text_norms = self._norms()
        self._read_before: dict[str, Tensor] = {}

    def check_dataset(self, name: str) -> None:
        """Raises UserError if the bank is of another data set than `name`; "" stands for any."""
        if name and self.dataset != name:
            raise UserError(f"{self.path} holds {self.dataset!r} but DATASET.NAME is {name!r}")

    def features(self, split: str) -> Tensor:
        """All features of a split, of unit norm; they are read once.

        Args:
            split: One that `labels` has.

        Returns:
            Shape `[V, N, d]` for "train", else `[rows, d]`.

        Raises:
            UserError: If they cannot be read, are not finite or not of unit norm.
        """
        if split not in self._read_before:
            self._read_before[split] = self._unit(f"{split}_features", self._file.read(f"{split}_features"))
        return self._read_before[split]

    def rows(self, split: str, rows: Sequence[int]) -> Tensor:
        """The features of some images of a split, in the order of `rows`; otherwise as `features`."""
        name = f"{split}_features"
        return self._unit(name, self._file.read_rows(name, rows), rows)

    def _check_names(self) -> None:
        tensors, metadata = self._file.tensors, self._file.metadata
        missing = [name for name in REQUIRED if name not in tensors]
        for features, labels in (("val_features", "val_labels"), ("test_features", "test_labels")):
            if (features in tensors) != (labels in tensors):
                missing.append(labels if features in tensors else features)
        missing += [f"{key} (metadata)" for key in ("classnames", "logit_scale") if key not in metadata]
        if missing:
            held = ", ".join(sorted(tensors))
            raise UserError(f"the feature bank {self.path} lacks {', '.join(missing)}; it holds {held}")

    def _check_shapes(self) -> None:
        """Checks the shapes of all features, and reads and checks the labels."""
        tensors = self._file.tensors
        width = (tensors["text_positive"].shape or (0,))[-1]
        for name in (f"{split}_features" for split in SPLITS):
            if name in tensors:
                _check_stored(self.path, name, tensors[name], width)
        for split in SPLITS:
            if f"{split}_labels" in tensors:
                rows = tensors[f"{split}_features"].shape[-2]
                labels = self._file.read(f"{split}_labels")
                _check_labels(self.path, f"{split}_labels", labels, rows, len(self.classnames))
                self.labels[split] = labels
        for name in ("text_positive", "text_negative"):
            _check_stored(self.path, name, tensors[name], width)
            shape = tensors[name].shape
            if shape[0] != len(self.classnames):
                raise UserError(
                    f"{self.path}: {name} has {shape[0]} rows but there are {len(self.classnames)} class names"
                )

    def _text(self, name: str) -> Tensor:
        return self._unit(name, self._file.read(name))

    def _norms(self) -> Tensor | None:
        if "text_norms" not in self._file.tensors:
            return None
        return _check_norms(self.path, self._file.read("text_norms").float(), len(self.classnames))

    def _unit(self, name: str, tensor: Tensor, rows: Sequence[int] | None = None) -> Tensor:
        """The features as float32, with rows of exactly unit norm.

        Args:
            name: Of the tensor, for messages.
            tensor: All its rows, or some; of "train_features" with or without a dimension of views.
            rows: Their positions in the file, for messages; None if they are all.
        """
        tensor = tensor.float()
        if not tensor.isfinite().all():
            *leading, row, column = (~tensor.isfinite()).nonzero()[0].tolist()
            place = [*leading, row if rows is None else rows[row], column]
            raise UserError(f"{self.path}: {name} holds NaN or infinite values, first at {place}")
        norms = tensor.norm(dim=-1)
        if tensor.numel() and (norms - 1).abs().max() > NORM_TOLERANCE:
            raise UserError(
                f"{self.path}: {name} must have unit-norm rows, got norms from {norms.min():.3g} to {norms.max():.3g}; "
                "divide each row by its norm"
            )
        tensor = F.normalize(tensor, dim=-1)
        return tensor.unsqueeze(0) if name == "train_features" and tensor.dim() == 2 else tensor


def bank_metadata(
    dataset: str, backbone: str, classnames: Sequence[str], logit_scale: float, encoder: Encoder | None
) -> dict[str, str]:
    """What the header of a bank holds beside its tensors; see `BankFile`."""
    said = {} if encoder is None else {"encoder": encoder.model_dump_json()}
    return said | {
        "dataset": dataset,
        "backbone": backbone,
        "classnames": json.dumps(list(classnames), ensure_ascii=False),
        "logit_scale": repr(logit_scale),
    }


def _read_metadata(path: Path, metadata: dict[str, str]) -> tuple[list[str], float]:
    """The class names and the logit scale."""
    try:
        names = parse_json(metadata["classnames"])
        logit_scale = float(metadata["logit_scale"])
    except ValueError as error:
        raise UserError(
            f"{path}: metadata must be a JSON list (classnames) and a number (logit_scale): {error}"
        ) from error
    classnames = check(list[Name], names, f"{path}: the metadata classnames must be a JSON list of names")
    if len(set(classnames)) != len(classnames):
        twice = sorted({name for name in classnames if classnames.count(name) > 1})
        # A few may repeat: ImageNet has two classes called "crane"
        if len(twice) > len(classnames) // 10:
            raise UserError(f"{path}: class names repeat: {', '.join(twice[:5])}")
    if not 0 < logit_scale < float("inf"):
        raise UserError(f"{path}: logit_scale must be a positive number, got {logit_scale}")
    return classnames, logit_scale


def _read_encoder(path: Path, metadata: dict[str, str]) -> Encoder | None:
    if "encoder" not in metadata:
        return None
    where = f"{path}: the metadata encoder must say how the backbone is loaded"
    try:
        said = parse_json(metadata["encoder"])
    except ValueError as error:
        raise UserError(f"{where}: {error}") from error
    return check(Encoder, said, where)


def _check_stored(path: Path, name: str, stored: StoredTensor, width: int) -> None:
    """Checks type and shape of features."""
    shape = stored.shape
    if stored.dtype not in FLOATS:
        kind = str(DTYPES.get(stored.dtype, stored.dtype)).removeprefix("torch.")
        raise UserError(f"{path}: {name} must hold floats of 16, 32 or 64 bits, got {kind}")
    dims = (2, 3) if name == "train_features" else (2,)
    if len(shape) not in dims or shape[-1] != width:
        wanted = "[V, N, d] or [N, d]" if name == "train_features" else "[rows, d]"
        raise UserError(f"{path}: {name} must be {wanted} with d = {width} as in text_positive, got {list(shape)}")
    if name in ("train_features", "test_features") and 0 in shape:
        raise UserError(f"{path}: {name} is empty, of shape {list(shape)}")


def _check_norms(path: Path, norms: Tensor, num_classes: int) -> Tensor:
    if norms.shape != (num_classes,) or not (norms.isfinite() & (norms > 0)).all():
        raise UserError(
            f"{path}: text_norms must be {num_classes} positive numbers, one per class name, got "
            f"{list(norms.shape)}{f' from {norms.min():.3g} to {norms.max():.3g}' if norms.numel() else ''}"
        )
    return norms


def _check_labels(path: Path, name: str, labels: Tensor, rows: int, num_classes: int) -> None:
    if labels.dtype != torch.int64 or labels.dim() != 1 or len(labels) != rows:
        raise UserError(
            f"{path}: {name} must be {rows} int64 labels, one per feature row, got "
            f"{list(labels.shape)} {str(labels.dtype).removeprefix('torch.')}"
        )
    if len(labels) and not (int(labels.min()) >= 0 and int(labels.max()) < num_classes):
        raise UserError(
            f"{path}: {name} must lie in 0 ... {num_classes - 1} ({num_classes} class names), got "
            f"{int(labels.min())} ... {int(labels.max())}"
        )
