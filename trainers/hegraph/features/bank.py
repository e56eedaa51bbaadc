"""The feature bank: every feature that one few-shot task needs, in memory and in one `.safetensors` file.

A bank on disk may be larger than memory. Opening it reads and checks names, shapes, labels and text features; features
of images are read, and their values checked, when they are asked for. A few-shot run reads the training images that it
draws.

Shapes: N training images, V augmented views of each, L validation and M test images, K classes, d feature width.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import BeforeValidator, Json
from safetensors import safe_open
from torch import Tensor

from ..datasets.splits import SPLITS, FewShotSample, subsample_labels
from ..utils.errors import UserError
from ..utils.files import file_version, hash_content, hash_file, write_tensors
from ..utils.reading import Name, OpenPart, Part, Positive, check, reading

logger = logging.getLogger(__name__)

SUFFIX = ".safetensors"  # of its file
WHAT = "a feature bank"
HASHED_WHOLE = 2**30  # bytes of a file
FORMS = {  # the tensors, and their axes
    "train_features": "VNd", "train_labels": "N", "text_positive": "Kd", "text_negative": "Kd",
    "val_features": "Ld", "val_labels": "L", "test_features": "Md", "test_labels": "M", "text_norms": "K",
}  # fmt: skip
BESIDE_IMAGES = (
    "text_positive", "text_negative", "text_norms", "classnames", "dataset", "backbone", "encoder", "logit_scale",
)  # fmt: skip
# How far a norm may be from 1: features that were kept in float16 are within it, means of unit vectors are not
NORM_TOLERANCE = 0.02
FLOATS = ("F16", "BF16", "F32", "F64")
DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64, "I64": torch.int64}
# The mean norm of 1,606 text features of OpenAI's ViT-B/32; their standard deviation is 0.7
OPENAI_VIT_B32_NORM = 9.9
OPENAI_VIT_B32 = re.compile(r"ViT-B[-/]32(-quickgelu)?/openai", re.IGNORECASE)  # how such backbones are called in banks


class Encoder(Part):
    """The frozen CLIP that made the features, by which a model that is trained on them finds it again.

    Attributes:
        model, pretrained, precision: As `load_backbone` takes them.
        fingerprint: Plain values that change whenever the features would.
    """

    model: Name
    pretrained: str
    precision: Literal["fp32", "bf16", "fp16", "amp"]
    fingerprint: dict[str, str]


class Metadata(OpenPart):
    """The texts beside the tensors of a bank."""

    classnames: Json[list[Name]]
    logit_scale: Annotated[Positive, BeforeValidator(float)]
    dataset: str = ""
    backbone: str = "unknown"
    encoder: Json[Encoder] | None = None


@dataclass(frozen=True)
class FeatureBank:
    """Features, labels and names of one task; all features are unit-norm float32.

    Attributes:
        train_features, train_labels: Training images, shapes `[V, N, d]` and `[N]`.
        text_positive, text_negative: Text nodes, each `[K, d]`.
        classnames: The K class names in label order.
        dataset, backbone: Their names, for records.
        logit_scale: CLIP's `tau`, by which cosines are multiplied.
        val_features, val_labels: Validation images, shapes `[L, d]` and `[L]`, or None.
        test_features, test_labels: Test images, shapes `[M, d]` and `[M]`, or None.
        text_norms: Norms of the positive text nodes before they were normalised, shape `[K]`; None if not known.
        encoder: How the backbone is loaded; None if not known.
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

    def subsample(self, which: str) -> FeatureBank:
        """The bank of "all" classes, or of the "base" or "new" half of them, with labels from 0."""
        if which == "all":
            return self
        kept = subsample_labels(set(self.train_labels.tolist()), which)
        return self.of_classes(torch.tensor(kept, dtype=torch.long))

    def of_classes(self, kept: Tensor) -> FeatureBank:
        """The bank of the classes with the labels `kept`, int64 in ascending order; labels begin at 0 again."""
        kept = kept.to(self.train_labels.device)
        changes: dict[str, Any] = {
            "classnames": [self.classnames[label] for label in kept.tolist()],
            "text_positive": self.text_positive[kept],
            "text_negative": self.text_negative[kept],
            "text_norms": None if self.text_norms is None else self.text_norms[kept],
        }
        for split in SPLITS:
            features, all_labels = getattr(self, f"{split}_features"), getattr(self, f"{split}_labels")
            if features is not None:
                rows = torch.isin(all_labels, kept)
                changes[f"{split}_labels"] = torch.searchsorted(kept, all_labels[rows])
                changes[f"{split}_features"] = features[..., rows, :]
        return replace(self, **changes)

    @property
    def features_to_classify(self) -> Tensor:
        """The test features, shape `[M, d]`; ValueError if there are none."""
        if self.test_features is None:
            raise ValueError("the bank has no test images, so there is nothing to classify")
        return self.test_features

    def without_test(self) -> FeatureBank:
        """The bank without its test images, as a method sees it while it is trained."""
        return replace(self, test_features=None, test_labels=None)

    def to(self, device: str) -> FeatureBank:
        """The bank with all its tensors on a device; the bank itself if they are there."""
        moved: dict[str, Any] = {k: v.to(device) for k, v in self.__dict__.items() if isinstance(v, Tensor)}
        return self if all(moved[name] is getattr(self, name) for name in moved) else replace(self, **moved)

    def cache_keys(self) -> Tensor:
        """One key per training image: the mean over its views, re-normalised, `[N, d]`."""
        return mean_over_views(self.train_features)

    def save(self, path: Path) -> None:
        """Writes the bank, atomically; raises UserError if it cannot be written."""
        tensors = {name: tensor for name in FORMS if (tensor := getattr(self, name)) is not None}
        metadata = {} if self.encoder is None else {"encoder": self.encoder.model_dump_json()}
        metadata |= {
            "dataset": self.dataset,
            "backbone": self.backbone,
            "classnames": json.dumps(list(self.classnames), ensure_ascii=False),
            "logit_scale": repr(self.logit_scale),
        }
        write_tensors(path, tensors, metadata)


def mean_over_views(features: Tensor) -> Tensor:
    """The re-normalised mean of the views of each image: `[V, N, d]` becomes `[N, d]`."""
    return F.normalize(features.mean(dim=0), dim=-1)


class BankFile:
    """A feature bank that has been opened. Nothing in the file is executed.

    Attributes:
        labels: "train", and "val" and "test" if there are such images -> their labels.
        path, classnames, dataset, backbone, encoder, logit_scale, text_positive, text_negative, text_norms: The file,
            and what it holds; as of `FeatureBank`.

    Raises:
        UserError: If the file is missing or damaged, lacks a tensor, or holds one of the wrong type, shape or range.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with reading(path, WHAT):
            self._file = safe_open(path, framework="pt")
            about = Metadata.model_validate(self._file.metadata() or {})
            self.classnames, self.logit_scale, self.encoder = about.classnames, about.logit_scale, about.encoder
            self.dataset, self.backbone = about.dataset or path.stem, about.backbone
            twice = [name for name, count in Counter(self.classnames).items() if count > 1]
            if len(twice) > len(self.classnames) // 10:  # a few may repeat: ImageNet has two classes called "crane"
                raise ValueError(f"class names repeat: {', '.join(twice[:5])}")
            names = set(self._file.keys())
            self._check_forms(names)
            self._version, self._places = file_version(path), _places_in(path, names)
            self.labels = {split: self._labels(split) for split in SPLITS if f"{split}_labels" in names}
            self.text_positive, self.text_negative = self._unit("text_positive"), self._unit("text_negative")
            self.text_norms = self._read("text_norms").float() if "text_norms" in names else None
            if self.text_norms is not None and not ((self.text_norms > 0) & self.text_norms.isfinite()).all():
                raise ValueError("text_norms must be positive and finite")

    def check_dataset(self, name: str) -> None:
        """Raises UserError if the bank is of another data set than `name`; "" stands for any."""
        if name and self.dataset != name:
            raise UserError(f"{self.path} holds {self.dataset!r} but DATASET.NAME is {name!r}")

    def features(self, split: str, rows: Sequence[int] | None = None) -> Tensor:
        """Features of a split that `labels` has, or of the images `rows` in it: `[V, N, d]` for "train", else `[N, d]`.

        Raises:
            UserError: If they cannot be read, are not finite or not of unit norm.
        """
        return self._unit(f"{split}_features", rows)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the file."""
        return hash_file(self.path)

    def digest_of(self, take: Callable[[], FeatureBank]) -> str:
        """By what a run knows what it takes of the bank: the SHA-256 of the file or, above `HASHED_WHOLE`, of that."""
        if self.path.stat().st_size <= HASHED_WHOLE:
            return self.digest
        taken = take()
        metadata = [word for pair in sorted(self._file.metadata().items()) for word in pair]
        return hash_content([*metadata, *(getattr(taken, name) for name in FORMS)])

    def _check_forms(self, names: set[str]) -> None:
        """Raises ValueError for a tensor that is missing, or of another type or shape than `FORMS` says."""
        sizes = {"K": len(self.classnames)}
        for name in ("text_positive", *FORMS):  # whose width the others must have
            split, axes = name.partition("_")[0], FORMS[name]
            of_split = {f"{split}_features", f"{split}_labels"} & names
            if name not in names:
                if name == "text_norms" or (split in ("val", "test") and not of_split):
                    continue
                raise ValueError(f"it holds no {name}")
            stored, types = self._file.get_slice(name), ("I64",) if name.endswith("_labels") else FLOATS
            dtype, shape = stored.get_dtype(), list(stored.get_shape())
            axes = "Nd" if name == "train_features" and len(shape) == 2 else axes
            wanted = [sizes.setdefault(axis, size) for axis, size in zip(axes, shape)]
            if dtype not in types or len(shape) != len(axes) or shape != wanted or (0 in shape and split != "val"):
                raise ValueError(
                    f"{name} must be {' or '.join(types)} of shape {[sizes.get(axis, axis) for axis in axes]}, for "
                    f"{len(self.classnames)} class names and not empty, got {dtype} of shape {shape}"
                )

    def _labels(self, split: str) -> Tensor:
        labels = self._read(f"{split}_labels")
        if len(labels) and not (0 <= labels.min() and labels.max() < len(self.classnames)):
            raise ValueError(
                f"{split}_labels must lie in 0 ... {len(self.classnames) - 1}, one for each class name, got "
                f"{labels.min()} ... {labels.max()}"
            )
        return labels

    def _read(self, name: str, rows: Sequence[int] | None = None) -> Tensor:
        """A tensor, or some rows of one of shape `[..., n, d]`, in any order.

        The rows are read, and not mapped into memory: the system maps 16 pages around each one, so that a few rows of
        a large bank would take gigabytes. UserError if the file was changed since it was opened.
        """
        begin, shape, dtype = self._places[name]
        size, places = math.prod(shape) * dtype.itemsize, [0]
        if rows is not None:
            *views, count, width = shape
            shape, size = [*views, len(rows), width], width * dtype.itemsize
            places = [(view * count + row) * size for view in range(math.prod(views)) for row in rows]
        found = torch.empty(shape, dtype=dtype)
        blocks = found.flatten().view(torch.uint8).reshape(len(places), size).numpy()
        with reading(self.path, WHAT), self.path.open("rb") as file:
            if file_version(self.path) != self._version:
                raise UserError(f"{self.path} has changed since it was opened; start again")
            for place, block in zip(places, blocks):
                file.seek(begin + place)
                file.readinto(block)
        return found

    def _unit(self, name: str, rows: Sequence[int] | None = None) -> Tensor:
        """Features, or some rows of them, as float32 with rows of exactly unit norm; "train_features" with views."""
        tensor = self._read(name, rows).float()
        norms = tensor.norm(dim=-1)
        wrong = ~has_unit_norm(norms)
        if wrong.any():
            *view, row = first = wrong.nonzero()[0].tolist()
            place = [*view, row if rows is None else rows[row]]
            raise UserError(
                f"{self.path}: the rows of {name} must be finite and of unit norm, but that of row {place} is "
                f"{norms[tuple(first)]:.3g}; divide each row by its norm"
            )
        F.normalize(tensor, dim=-1, out=tensor)  # of a large bank, a copy would take as much memory again
        return tensor.unsqueeze(0) if name == "train_features" and tensor.dim() == 2 else tensor


def has_unit_norm(norms: Tensor) -> Tensor:
    """Where the norms of feature rows are close enough to 1, element by element; not where they are NaN."""
    return (norms - 1).abs() <= NORM_TOLERANCE


def _places_in(path: Path, names: Collection[str]) -> dict[str, tuple[int, list[int], torch.dtype]]:
    """Where each tensor of a safetensors file that was checked begins, in bytes; its shape; its type."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    begin = 8 + length
    known = [(name, header[name]) for name in names if header[name]["dtype"] in DTYPES]
    return {name: (begin + e["data_offsets"][0], e["shape"], DTYPES[e["dtype"]]) for name, e in known}


def load_bank(path: Path) -> FeatureBank:
    """Reads and checks a whole feature bank; errors as of `BankFile` and its `features`."""
    return sample_bank(BankFile(check(Path, path, "path", convert=True)))


def sample_bank(file: BankFile, selection: FewShotSample | None = None) -> FeatureBank:
    """The few-shot task that the protocol selected from a bank: its rows of train and val, and the whole of test; None
    takes all. Only those rows are read. Errors as `BankFile.features`.
    """
    fields: dict[str, Any] = {name: getattr(file, name) for name in BESIDE_IMAGES}
    for split, labels in file.labels.items():
        rows = None if selection is None or split == "test" else getattr(selection, split)
        fields[f"{split}_features"] = file.features(split, rows)
        fields[f"{split}_labels"] = labels if rows is None else labels[torch.tensor(rows, dtype=torch.long)]
    return FeatureBank(**fields)


# Training or validation images that are test images as well: what is learned or chosen on them says nothing


def refuse_test_rows(bank: FeatureBank) -> None:
    """Raises UserError if a row of train, in any view, or of val is a row of test, bit for bit."""
    if bank.test_features is None:
        return
    tested = set(row_hashes(bank.test_features))
    splits = {"train": bank.train_features} | ({} if bank.val_features is None else {"val": bank.val_features[None]})
    for name, views in splits.items():
        found = [not tested.isdisjoint(of_image) for of_image in zip(*map(row_hashes, views))]
        if count := sum(found):
            raise UserError(
                f"{count} of {len(found)} {name} images of {bank.dataset} are test images as well, so the test would "
                f"say nothing about new images; take them out of {name} or out of test"
            )


def row_hashes(rows: Tensor) -> list[int]:
    """A hash of each row of `[n, d]`."""
    return [hash(row.tobytes()) for row in rows.detach().cpu().contiguous().numpy()]


# TaskRes, GraphAdapter and CLAP train what they add to a text feature, or the text feature itself. How far a step turns
# it depends on its norm, and their authors take the text tower's output as it is


def text_with_norm(bank: FeatureBank) -> Tensor:
    """The positive text features of the bank, each with the norm that it had before it was normalised, `[K, d]`. Where
    the bank does not know it, 9.9 is taken if the backbone is OpenAI's ViT-B/32, and otherwise 1; that is logged.
    """
    if bank.text_norms is not None:
        return bank.text_norms[:, None] * bank.text_positive
    known = OPENAI_VIT_B32.fullmatch(bank.backbone)
    norm = OPENAI_VIT_B32_NORM if known else 1.0
    why = "the mean of OpenAI's ViT-B/32" if known else f"since that of {bank.backbone!r} is not known"
    logger.info("the bank of %s holds no norms of its text features: %s is taken for all, %s", bank.dataset, norm, why)
    return norm * bank.text_positive
