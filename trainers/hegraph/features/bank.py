"""Feature banks: all features of a few-shot task, in memory and in a `.safetensors` file.

A bank on disk may exceed memory. Opening a bank reads and checks names, shapes, labels and text features. Features of
images are read and checked on access, so a few-shot run reads only its sampled training images.

With several labels per image, labels are indicators: 1 for the classes of an image, 0 for the others, `[N, K]`.
Groups of images (`datasets/groups.py`) are optional numbers, which have one meaning in all splits and classes.

Shapes: N training images, V augmented views of each, L validation and M test images, K classes, d feature width.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from pydantic import BeforeValidator, Json
from safetensors import safe_open
from torch import Tensor

from ..datasets.splits import SPLITS, FewShotSample, subsample_labels
from ..utils.errors import UserError
from ..utils.files import file_version, hash_content, hash_file, write_tensors
from ..utils.reading import LenientModel, Name, Positive, read_metadata, reading, validate
from .backbones.schema import BackboneConfig

logger = logging.getLogger(__name__)

SUFFIX = ".safetensors"
FORM = "a feature bank"
NO_ENCODER = BackboneConfig()
MAX_HASHED_BYTES = 2**30  # of larger files, only the features of a run are hashed
TENSOR_AXES = {
    "train_features": "VNd", "train_labels": "N", "text_positive": "Kd", "text_negative": "Kd",
    "val_features": "Ld", "val_labels": "L", "test_features": "Md", "test_labels": "M", "text_norms": "K",
    "train_groups": "N", "val_groups": "L", "test_groups": "M",
}  # fmt: skip
GROUPS = tuple(f"{split}_groups" for split in SPLITS)
TEXT = ("text_positive", "text_negative")  # a bank has both, or none
SHARED_FIELDS = (  # of all samples of a bank
    "text_positive", "text_negative", "text_norms", "classnames", "dataset", "backbone", "encoder", "logit_scale",
    "has_text",
)  # fmt: skip
# Allowed deviation of a norm from 1, which float16 features meet and means of unit vectors exceed
NORM_TOLERANCE = 0.02
FLOATS = ("F16", "BF16", "F32", "F64")
DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64, "I64": torch.int64}
DTYPES |= {"I32": torch.int32, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.uint8}  # of indicators
# Mean norm of 1,606 text features of OpenAI's ViT-B/32, with a standard deviation of 0.7
OPENAI_VIT_B32_NORM = 9.9
OPENAI_VIT_B32 = re.compile(r"ViT-B[-/]32(-quickgelu)?/openai", re.IGNORECASE)  # names in banks


class Metadata(LenientModel):
    """Metadata of the file of a bank."""

    classnames: Json[list[Name]]
    logit_scale: Annotated[Positive, BeforeValidator(float)]
    dataset: str = ""
    backbone: str = "unknown"
    encoder: Json[BackboneConfig] = NO_ENCODER


@dataclass(frozen=True)
class FeatureBank:
    """Features, labels and names of a task. All features are float32 with unit norm.

    Attributes:
        train_features, train_labels: Training images, shapes `[V, N, d]` and `[N]`. With several labels per image, the
            labels of all splits are booleans `[N, K]`.
        text_positive, text_negative: Text nodes, each `[K, d]`.
        classnames: The K class names in label order.
        dataset, backbone: Names for records.
        logit_scale: CLIP's `tau`, the factor of cosine similarities.
        val_features, val_labels: Validation images, shapes `[L, d]` and `[L]`, or None.
        test_features, test_labels: Test images, shapes `[M, d]` and `[M]`, or None.
        text_norms: Norms of the positive text features before normalisation, shape `[K]`; None if unknown.
        train_groups, val_groups, test_groups: Groups of the images, int64 of shapes `[N]`, `[L]` and `[M]`; all None
            without groups.
        encoder: Backbone that encoded the features, without title; empty if unknown.
        has_text: Whether the text nodes are encoded text. Otherwise they are mean features of the training images
            (`method/mean_text.py`), or 0 as `load_bank` reads the bank; its file has no text.

    Examples:
        >>> import torch
        >>> from hegraph import FeatureBank
        >>> text = torch.eye(2, 4)  # two classes, feature width 4
        >>> images, labels = torch.randn(10, 3, 4), torch.tensor([0, 1, 1])  # ten views of three images
        >>> images /= images.norm(dim=2, keepdim=True)
        >>> bank = FeatureBank(images, labels, text, -text, ["cat", "dog"], "Pets", "my encoder", logit_scale=100.0)
        >>> bank.cache_keys().shape
        torch.Size([3, 4])
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
    encoder: BackboneConfig = NO_ENCODER
    train_groups: Tensor | None = None
    val_groups: Tensor | None = None
    test_groups: Tensor | None = None
    has_text: bool = True

    def subsample(self, which: str) -> FeatureBank:
        """Return the bank of "all" classes, or of the "base" or "new" half with labels from 0."""
        if which == "all":
            return self
        labels = subsample_labels(set(self.train_labels.tolist()), which)
        return self.of_classes(torch.tensor(labels, dtype=torch.long))

    def of_classes(self, labels: Tensor) -> FeatureBank:
        """Return the bank of the classes with these labels, int64 in ascending order, with new labels from 0."""
        labels = labels.to(self.train_labels.device)
        changes: dict[str, Any] = {
            "classnames": [self.classnames[label] for label in labels.tolist()],
            "text_positive": self.text_positive[labels],
            "text_negative": self.text_negative[labels],
            "text_norms": None if self.text_norms is None else self.text_norms[labels],
        }
        for split in SPLITS:
            features = getattr(self, f"{split}_features")
            all_labels = getattr(self, f"{split}_labels")
            if features is not None:
                rows = torch.isin(all_labels, labels)
                changes[f"{split}_labels"] = torch.searchsorted(labels, all_labels[rows])
                changes[f"{split}_features"] = features[..., rows, :]
                groups = getattr(self, f"{split}_groups")
                changes[f"{split}_groups"] = None if groups is None else groups[rows]
        return replace(self, **changes)

    @property
    def multilabel(self) -> bool:
        """Whether images have several labels each."""
        return self.train_labels.dim() == 2

    @property
    def known_text(self) -> Tensor:
        """Positive text nodes, shape `[K, d]`; 0 if they are no encoded text."""
        return self.text_positive if self.has_text else torch.zeros_like(self.text_positive)

    @property
    def features_to_classify(self) -> Tensor:
        """Test features, shape `[M, d]`; ValueError if there are none."""
        if self.test_features is None:
            raise ValueError("the bank has no test images to classify")
        return self.test_features

    def without_test(self) -> FeatureBank:
        """Return the bank without test images, for the training of a method."""
        return replace(self, test_features=None, test_labels=None, test_groups=None)

    def to(self, device: str) -> FeatureBank:
        """Return the bank with all tensors on a device; the same object if they are there already."""
        moved: dict[str, Any] = {k: v.to(device) for k, v in self.__dict__.items() if isinstance(v, Tensor)}
        return self if all(moved[name] is getattr(self, name) for name in moved) else replace(self, **moved)

    def cache_keys(self) -> Tensor:
        """Return the normalised mean over the views of each training image, shape `[N, d]`."""
        return mean_over_views(self.train_features)

    def save(self, path: Path) -> None:
        """Write the bank atomically, without text nodes that are not encoded text; UserError if that fails."""
        names = [name for name in TENSOR_AXES if self.has_text or name not in TEXT]
        tensors = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        metadata = {"encoder": self.encoder.model_dump_json(exclude={"title"})} if self.encoder.model else {}
        metadata |= {
            "dataset": self.dataset,
            "backbone": self.backbone,
            "classnames": json.dumps(list(self.classnames), ensure_ascii=False),
            "logit_scale": repr(self.logit_scale),
        }
        write_tensors(path, tensors, metadata)


def mean_count(counts: Iterable[int]) -> int:
    """Rounded mean of the numbers of images of the classes that have images; 0 if none has.

    It is the number of shots for values that depend on shots.
    """
    present = [count for count in counts if count]
    return round(sum(present) / len(present)) if present else 0


def mean_over_views(features: Tensor) -> Tensor:
    """Return the normalised mean over the views of each image: `[V, N, d]` -> `[N, d]`."""
    return F.normalize(features.mean(dim=0), dim=-1)


class BankFile:
    """An open feature bank. Nothing in the file is executed.

    Attributes:
        path: The file.
        multilabel: Whether images have several labels each.
        labels: Labels by split: "train", and "val" and "test" if they have images.
        groups: Groups by split, of the same splits; {} without groups.
        has_text: Whether the file has text features; otherwise `text_positive` and `text_negative` are 0.
        classnames, dataset, backbone, encoder, logit_scale, text_positive, text_negative, text_norms: As in
            `FeatureBank`.

    Raises:
        UserError: If the file is missing or damaged, or a tensor is missing or has a wrong type, shape or range.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with reading(path, FORM):
            self._file = safe_open(path, framework="pt")
            metadata = Metadata.model_validate(read_metadata(self._file))
            self.classnames = metadata.classnames
            self.dataset = metadata.dataset or path.stem
            self.backbone = metadata.backbone
            self.encoder = metadata.encoder
            self.logit_scale = metadata.logit_scale
            repeated = [name for name, count in Counter(self.classnames).items() if count > 1]
            if len(repeated) > len(self.classnames) // 10:  # ImageNet has two classes named "crane"
                raise ValueError(f"class names repeat: {', '.join(repeated[:5])}")
            names = set(self._file.keys())
            self.multilabel = "train_labels" in names and len(self._file.get_slice("train_labels").get_shape()) == 2
            self.has_text = not names.isdisjoint(TEXT)
            self._check_tensors(names)
            self._version = file_version(path)
            self._layout = _read_layout(path, names)
            self.labels = {split: self._labels(split) for split in SPLITS if f"{split}_labels" in names}
            self.groups = self._groups(names)
            self.text_positive, self.text_negative = map(self._text, TEXT)
            self.text_norms = self._read("text_norms").float() if "text_norms" in names else None
            if self.text_norms is not None and not ((self.text_norms > 0) & self.text_norms.isfinite()).all():
                raise ValueError("text_norms must be positive and finite")

    def check_dataset(self, name: str) -> None:
        """Raise UserError if the bank is of another data set than `name`; "" accepts all."""
        if name and self.dataset != name:
            raise UserError(f"{self.path}: expected a bank of DATASET.NAME {name!r}, got {self.dataset!r}")

    def features(self, split: str, rows: Sequence[int] | None = None) -> Tensor:
        """Read the features of a split, or of its images `rows`: `[V, N, d]` for "train", else `[N, d]`.

        Raises:
            UserError: If features cannot be read, are not finite or not of unit norm.
        """
        return self._unit(f"{split}_features", rows)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the file."""
        return hash_file(self.path)

    def digest_of(self, sample: Callable[[], FeatureBank]) -> str:
        """Return the hash of the file or, above `MAX_HASHED_BYTES`, of the part of the bank that `sample` returns."""
        if self.path.stat().st_size <= MAX_HASHED_BYTES:
            return self.digest
        bank = sample()
        metadata = [word for pair in sorted(read_metadata(self._file).items()) for word in pair]
        tensors = {name: getattr(bank, name) for name in TENSOR_AXES}
        without_groups = [name for name in GROUPS if tensors[name] is None]  # as for banks of earlier versions
        return hash_content([*metadata, *(tensors[name] for name in TENSOR_AXES if name not in without_groups)])

    def _check_tensors(self, names: set[str]) -> None:
        """Raise ValueError for a tensor that is missing, or has a type or shape other than in `TENSOR_AXES`."""
        sizes = {"K": len(self.classnames)}
        optional = ("text_norms", *GROUPS, *(() if self.has_text else TEXT))
        for name in (TEXT[0], *TENSOR_AXES):  # the first tensor defines the width
            split = name.partition("_")[0]
            axes = TENSOR_AXES[name]
            of_split = {f"{split}_{kind}" for kind in ("features", "labels", "groups")} & names
            if name not in names:
                if name in optional or (split in ("val", "test") and not of_split):
                    continue
                raise ValueError(f"it lacks {name}")
            stored = self._file.get_slice(name)
            types: tuple[str, ...] = ("I64",) if name.endswith(("_labels", "_groups")) else FLOATS
            dtype = stored.get_dtype()
            shape = list(stored.get_shape())
            axes = "Nd" if name == "train_features" and len(shape) == 2 else axes
            if self.multilabel and name.endswith("_labels"):
                axes = f"{axes}K"
                types = tuple(DTYPES)
            expected = [sizes.setdefault(axis, size) for axis, size in zip(axes, shape)]
            if dtype not in types or len(shape) != len(axes) or shape != expected or (0 in shape and split != "val"):
                raise ValueError(
                    f"{name} must be {' or '.join(types)} of shape {[sizes.get(axis, axis) for axis in axes]}, for "
                    f"{len(self.classnames)} class names and not empty, got {dtype} of shape {shape}"
                )

    def _text(self, name: str) -> Tensor:
        """Read text features, `[K, d]`; 0 if the file has no text."""
        if self.has_text:
            return self._unit(name)
        _, shape, _ = self._layout["train_features"]
        return torch.zeros(len(self.classnames), shape[-1])

    def _groups(self, names: Collection[str]) -> dict[str, Tensor]:
        """Read the groups of all splits; ValueError if only some splits have groups."""
        groups = {split: self._read(f"{split}_groups") for split in self.labels if f"{split}_groups" in names}
        if groups and len(groups) < len(self.labels):
            lacking = next(split for split in self.labels if split not in groups)
            raise ValueError(f"it has {next(iter(groups))}_groups but lacks {lacking}_groups; add or remove groups")
        return groups

    def _labels(self, split: str) -> Tensor:
        labels = self._read(f"{split}_labels")
        if self.multilabel:
            return as_indicators(labels, f"{split}_labels")
        if len(labels) and not (0 <= labels.min() and labels.max() < len(self.classnames)):
            raise ValueError(
                f"expected {split}_labels from 0 to {len(self.classnames) - 1}, one for each class name, got "
                f"{labels.min()} to {labels.max()}"
            )
        return labels

    def _read(self, name: str, rows: Sequence[int] | None = None) -> Tensor:
        """Read a tensor, or rows of a tensor of shape `[..., n, d]` in any order; UserError if the file has changed.

        Rows are not mapped into memory, since the system maps 16 pages around each row: a few rows of a large bank
        would take gigabytes.
        """
        begin, shape, dtype = self._layout[name]
        size = math.prod(shape) * dtype.itemsize
        offsets = [0]
        if rows is not None:
            *views, count, width = shape
            shape = [*views, len(rows), width]
            size = width * dtype.itemsize
            offsets = [(view * count + row) * size for view in range(math.prod(views)) for row in rows]
        tensor = torch.empty(shape, dtype=dtype)
        blocks = tensor.flatten().view(torch.uint8).reshape(len(offsets), size).numpy()
        with reading(self.path, FORM), self.path.open("rb") as file:
            if file_version(self.path) != self._version:
                raise UserError(f"{self.path} has changed since it was opened; start again", "bank.changed")
            for offset, block in zip(offsets, blocks):
                file.seek(begin + offset)
                file.readinto(block)
        return tensor

    def _unit(self, name: str, rows: Sequence[int] | None = None) -> Tensor:
        """Read features, or rows of them, as float32 with unit norm; "train_features" always with views."""
        tensor = self._read(name, rows).float()
        norms = tensor.norm(dim=-1)
        wrong = ~has_unit_norm(norms)
        if wrong.any():
            *view, row = first = wrong.nonzero()[0].tolist()
            place = [*view, row if rows is None else rows[row]]
            raise UserError(
                f"{self.path}: expected finite rows of unit norm in {name}, got the norm {norms[tuple(first)]:.3g} in "
                f"row {place}; divide each row by its norm"
            )
        F.normalize(tensor, dim=-1, out=tensor)  # in place, since a copy would double the memory
        return tensor.unsqueeze(0) if name == "train_features" and tensor.dim() == 2 else tensor


def as_indicators(labels: Tensor, name: str) -> Tensor:
    """Convert label indicators `[N, K]` to booleans; ValueError for a value other than 0 and 1, such as NaN."""
    if (wrong := (labels != 0) & (labels != 1)).any():
        row, column = wrong.nonzero()[0].tolist()
        raise ValueError(f"expected 0 or 1 in {name}, got {labels[row, column].item()} in row {row}, column {column}")
    return labels.bool()


def count_labels(labels: Tensor, num_classes: int) -> list[int]:
    """Return the number of images of each class, for labels `[N]` or indicators `[N, K]`."""
    return (labels.sum(dim=0) if labels.dim() == 2 else labels.bincount(minlength=num_classes)).tolist()


def label_list(labels: Tensor) -> list:
    """Return the label of each image, or for indicators `[N, K]` the tuple of its labels, as in `Item`."""
    if labels.dim() == 1:
        return labels.tolist()
    columns = labels.nonzero()[:, 1].split(labels.sum(dim=1).tolist())
    return [tuple(row.tolist()) for row in columns]


def has_unit_norm(norms: Tensor) -> Tensor:
    """Compare norms of feature rows with 1, by element; False for NaN."""
    return (norms - 1).abs() <= NORM_TOLERANCE


def _read_layout(path: Path, names: Collection[str]) -> dict[str, tuple[int, list[int], torch.dtype]]:
    """Read the position in bytes, the shape and the type of each tensor of a valid safetensors file."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    begin = 8 + length
    known = [(name, header[name]) for name in names if header[name]["dtype"] in DTYPES]
    return {name: (begin + e["data_offsets"][0], e["shape"], DTYPES[e["dtype"]]) for name, e in known}


def load_bank(path: str | Path) -> FeatureBank:
    """Read a feature bank from a file, and check it.

    Raises:
        UserError: If the file cannot be read, or is not a feature bank of finite, unit-norm features.

    Examples:
        >>> import torch
        >>> from pathlib import Path
        >>> from hegraph import FeatureBank, load_bank
        >>> text = torch.eye(2, 4)  # two classes, feature width 4
        >>> images, labels = torch.randn(10, 3, 4), torch.tensor([0, 1, 1])  # ten views of three images
        >>> images /= images.norm(dim=2, keepdim=True)
        >>> bank = FeatureBank(images, labels, text, -text, ["cat", "dog"], "Pets", "my encoder", logit_scale=100.0)
        >>> bank.save(Path("pets.safetensors"))
        >>> load_bank("pets.safetensors").classnames
        ['cat', 'dog']
    """
    return sample_bank(BankFile(validate(Path, path, "path", convert=True)))


def sample_bank(file: BankFile, sample: FewShotSample | None = None) -> FeatureBank:
    """Read the few-shot task of a sample, with all test images, or the whole bank; errors as `BankFile.features`."""
    fields: dict[str, Any] = {name: getattr(file, name) for name in SHARED_FIELDS}
    for split, labels in file.labels.items():
        rows = None if sample is None or split == "test" else getattr(sample, split)
        fields[f"{split}_features"] = file.features(split, rows)
        fields[f"{split}_labels"] = labels if rows is None else labels[torch.tensor(rows, dtype=torch.long)]
        if split in file.groups:
            groups = file.groups[split]
            fields[f"{split}_groups"] = groups if rows is None else groups[torch.tensor(rows, dtype=torch.long)]
    return FeatureBank(**fields)


def text_with_norm(bank: FeatureBank) -> Tensor:
    """Return the positive text features with their norms before normalisation, shape `[K, d]`.

    Originals of methods that train text features or their residuals (TaskRes, GraphAdapter, CLAP) do not normalise
    them, and the norm determines the rotation in each step. Unknown norms are set, with a log message, to 9.9 for
    OpenAI's ViT-B/32 and to 1 for other backbones.
    """
    if bank.text_norms is not None:
        return bank.text_norms[:, None] * bank.text_positive
    known = OPENAI_VIT_B32.fullmatch(bank.backbone)
    norm = OPENAI_VIT_B32_NORM if known else 1.0
    reason = "the mean for OpenAI's ViT-B/32" if known else f"since the norm for {bank.backbone!r} is unknown"
    logger.info("the bank of %s lacks norms of text features: using %s for all, %s", bank.dataset, norm, reason)
    return norm * bank.text_positive
