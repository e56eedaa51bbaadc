"""A feature bank on disk, of which a few-shot run reads only the rows that it draws.

Opening a bank reads its header, labels and text features, and checks them and all shapes. Features of images are read
when they are asked for. Their values are checked then, and those of the other rows are not.

Shapes: N training images, V augmented views of each, K classes, d feature width.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

import torch.nn.functional as F
from pydantic import BeforeValidator, Json
from torch import Tensor

from ..datasets.splits import SPLITS
from ..utils.errors import UserError
from ..utils.files import hash_file, hash_json
from ..utils.schema import Name, OpenPart, Part, Positive, check
from .tensor_file import TensorFile, raw_bytes

REQUIRED = ("train_features", "train_labels", "text_positive", "text_negative")
OPTIONAL = ("val_features", "val_labels", "test_features", "test_labels", "text_norms")
# How far a norm may be from 1: features that were kept in float16 are within it, means of unit vectors are not
NORM_TOLERANCE = 0.02
FLOATS = ("F16", "BF16", "F32", "F64")
HASHED_WHOLE = 2**30  # bytes: a larger bank is known by what a run takes from it, as hashing it takes seconds
TAKEN_WHOLE = (
    "train_labels", "val_labels", "test_labels", "text_positive", "text_negative", "text_norms", "test_features",
)  # fmt: skip


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


class Metadata(OpenPart):
    """The texts beside the tensors of a bank; attributes as of `BankFile`."""

    classnames: Json[list[Name]]
    logit_scale: Annotated[Positive, BeforeValidator(float)]
    dataset: str = ""
    backbone: str = "unknown"
    encoder: Json[Encoder] | None = None


class BankFile:
    """A feature bank that has been opened. Nothing in the file is executed.

    Args:
        path: The `.safetensors` file.

    Attributes:
        path: The file.
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
        self._file = TensorFile(path, "the feature bank")
        metadata = check(Metadata, self._file.metadata, f"the metadata of the feature bank {path}")
        self.classnames, self.logit_scale = metadata.classnames, metadata.logit_scale
        self.dataset, self.backbone = metadata.dataset or path.stem, metadata.backbone
        self.encoder = metadata.encoder
        twice = [name for name, count in Counter(self.classnames).items() if count > 1]
        if len(twice) > len(self.classnames) // 10:  # a few may repeat: ImageNet has two classes called "crane"
            raise UserError(f"{path}: class names repeat: {', '.join(twice[:5])}")
        self._check_forms()
        self.labels = {split: self._labels(split) for split in SPLITS if f"{split}_labels" in self._file.tensors}
        self.text_positive, self.text_negative = (
            self._unit(name, self._file.read(name)) for name in ("text_positive", "text_negative")
        )
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
            name = f"{split}_features"
            self._read_before[split] = self._unit(name, self._file.read(name))
        return self._read_before[split]

    def rows(self, split: str, rows: Sequence[int]) -> Tensor:
        """The features of some images of a split, in the order of `rows`; otherwise as `features`."""
        name = f"{split}_features"
        return self._unit(name, self._file.rows(name, rows), rows)

    @cached_property
    def is_large(self) -> bool:
        """Whether the file has more than `HASHED_WHOLE` bytes."""
        return self.path.stat().st_size > HASHED_WHOLE

    def identity(self, train: Sequence[int], val: Sequence[int]) -> str:
        """A hash that changes whenever something does that a run takes from the bank.

        A bank of at most `HASHED_WHOLE` bytes is hashed whole. Of a larger one, everything is hashed that the run
        reads: what the header says, all labels, text features, the rows that it draws, and all test features.

        Args:
            train: Rows of training images that the run draws.
            val: The same of validation images.

        Raises:
            UserError: If the file cannot be read.
        """
        if not self.is_large:
            return self._hash_of_file
        digest = self._hash_of_common.copy()
        for name, rows in (("train_features", train), ("val_features", val)):
            if len(rows):
                digest.update(raw_bytes(self._file.rows(name, rows)))
        return digest.hexdigest()

    @cached_property
    def _hash_of_file(self) -> str:
        return hash_file(self.path)

    @cached_property
    def _hash_of_common(self) -> hashlib._Hash:
        """The hash of what all runs take from a large bank."""
        stored = {name: [tensor.dtype, list(tensor.shape)] for name, tensor in self._file.tensors.items()}
        digest = hashlib.sha256(hash_json([self._file.metadata, stored]).encode())
        for name in TAKEN_WHOLE:
            for block in self._file.blocks(name) if name in self._file.tensors else ():
                digest.update(raw_bytes(block))
        return digest

    def _check_forms(self) -> None:
        """Checks that all tensors are there, and their types and shapes."""
        tensors = self._file.tensors
        lacking = [name for name in REQUIRED if name not in tensors]
        for features, labels in (("val_features", "val_labels"), ("test_features", "test_labels")):
            lacking += [
                name for name in (features, labels) if name not in tensors and {features, labels} & set(tensors)
            ]
        if lacking:
            held = ", ".join(sorted(tensors))
            raise UserError(f"the feature bank {self.path} lacks {', '.join(lacking)}; it holds {held}")
        num_classes, width = len(self.classnames), (tensors["text_positive"].shape or (0,))[-1]
        for name in ("text_positive", "text_negative"):
            self._check_form(name, FLOATS, (num_classes, width))
        if "text_norms" in tensors:
            self._check_form("text_norms", FLOATS, (num_classes,))
        for split in SPLITS:
            if f"{split}_features" in tensors:
                *views, count = tensors[f"{split}_features"].shape[:-1] or (0,)
                self._check_form(f"{split}_features", FLOATS, (*(views[:1] if split == "train" else ()), count, width))
                self._check_form(f"{split}_labels", ("I64",), (count,))

    def _check_form(self, name: str, types: Sequence[str], shape: tuple[int, ...]) -> None:
        stored = self._file.tensors[name]
        may_be_empty = name.startswith("val_")
        if stored.dtype not in types or stored.shape != shape or (0 in shape and not may_be_empty):
            raise UserError(
                f"{self.path}: {name} must be {' or '.join(types)} of shape {list(shape)}, for its "
                f"{len(self.classnames)} class names and not empty, got {stored.dtype} of shape {list(stored.shape)}"
            )

    def _labels(self, split: str) -> Tensor:
        labels, num_classes = self._file.read(f"{split}_labels"), len(self.classnames)
        if len(labels) and not (int(labels.min()) >= 0 and int(labels.max()) < num_classes):
            raise UserError(
                f"{self.path}: {split}_labels must lie in 0 ... {num_classes - 1} ({num_classes} class names), got "
                f"{int(labels.min())} ... {int(labels.max())}"
            )
        return labels

    def _norms(self) -> Tensor | None:
        if "text_norms" not in self._file.tensors:
            return None
        norms = self._file.read("text_norms").float()
        if not (norms.isfinite() & (norms > 0)).all():
            raise UserError(f"{self.path}: text_norms must be positive, got {norms.min():.3g} to {norms.max():.3g}")
        return norms

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
