"""A Tip-Adapter cache folder -> a feature bank.

Tip-Adapter (Zhang et al., ECCV 2022) leaves in its cache folder `keys_<S>shots.pt` (`[d, N]`, the mean over augmented
views), `values_<S>shots.pt` (one-hot, `[N, K]`), and the features and labels `val_f.pt`, `val_l.pt`, `test_f.pt` and
`test_l.pt`. It keeps no text features. They are read from `text_positive.pt` and `text_negative.pt` (`[K, d]` or
`[d, K]`), which the user puts into the folder, or are encoded from the class names with a backbone.

Shapes: N training images, M test images, K classes, d feature width, S shots.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..datasets.layouts import listing
from ..utils.errors import UserError
from ..utils.reading import parse_json, read_text, read_torch, reading
from ..utils.schema import Name, check
from .bank import NORM_TOLERANCE, FeatureBank


def import_tip(
    folder: Path,
    classnames: Sequence[str],
    text: dict[str, Tensor] | None = None,
    shots: int | None = None,
    dataset: str = "",
    backbone: str = "",
    logit_scale: float = 100.0,
) -> FeatureBank:
    """Reads a Tip-Adapter cache folder. Nothing in it is executed: tensors only.

    `text` holds the text nodes, as `encode_prompts` gives them; None reads them from the folder. `shots` is the S of
    `keys_<S>shots.pt`; None takes the only such file.

    Raises:
        UserError: On a missing or damaged file, or on keys, values and text nodes that do not fit together. What else
            has to fit is seen when the bank is saved and loaded.
    """
    num_classes = len(classnames)
    shots = _find_shots(folder) if shots is None else shots
    keys = _rows(folder / f"keys_{shots}shots.pt", columns=True)
    labels = _labels_of_values(folder / f"values_{shots}shots.pt", len(keys), num_classes)
    if text is None:
        text = {name: _text_nodes(folder / f"text_{name}.pt", num_classes) for name in ("positive", "negative")}
    fields: dict[str, Any] = {}
    for split in ("val", "test"):
        features, numbers = folder / f"{split}_f.pt", folder / f"{split}_l.pt"
        if features.exists() or numbers.exists():
            fields |= {f"{split}_features": _rows(features), f"{split}_labels": _whole_numbers(numbers)}
    return FeatureBank(
        train_features=keys.unsqueeze(0),
        train_labels=labels,
        text_positive=_unit(text["positive"]),
        text_negative=_unit(text["negative"]),
        classnames=list(classnames),
        dataset=dataset or folder.name,
        backbone=backbone or "unknown",
        logit_scale=logit_scale,
        text_norms=text.get("norms"),
        **fields,
    )


def read_classnames(path: Path) -> list[str]:
    """Class names in label order, from a JSON list or a text file with one name a line. UserError if there are none.

    A file whose first character is "[" holds JSON, whatever it is called, and so does any file called `.json`.
    """
    form = "a JSON list of class names in label order, or a text with one a line"
    text = read_text(path)
    if path.suffix == ".json" or text.lstrip().startswith("["):
        with reading(path, form):
            value = parse_json(text)
        names = check(list[Name], value, f"{path} must hold {form}")
    else:
        names = [line.strip() for line in text.splitlines() if line.strip()]
    if not names:
        raise UserError(f"{path} must hold {form}")
    return names


def _find_shots(folder: Path) -> int:
    found = [name for name in listing(folder) if re.fullmatch(r"keys_[0-9]{1,9}shots\.pt", name)]
    if len(found) != 1:
        names = ", ".join(found) or "none"
        raise UserError(f"{folder} must hold one keys_<S>shots.pt (found: {names}); choose with --shots S")
    return int(found[0].removeprefix("keys_").removesuffix("shots.pt"))


def _load(path: Path) -> Tensor:
    """The tensor in a file, which is not empty and finite."""
    tensor = read_torch(path, "a tensor")
    if not isinstance(tensor, Tensor):
        raise UserError(f"{path} must hold one tensor, got a {type(tensor).__name__}")
    if not tensor.numel() or not tensor.isfinite().all():
        raise UserError(f"{path} is empty or holds NaN or infinite values, of shape {list(tensor.shape)}")
    return tensor.detach()


def _rows(path: Path, columns: bool = False) -> Tensor:
    """The vectors in a file of shape `[n, d]` or, as its columns, `[d, n]`: unit norm, shape `[n, d]`.

    A matrix that lies the other way is told by its norms, which a square one would hide.
    """
    form, matrix = "[d, n]" if columns else "[n, d]", _load(path)
    if matrix.dim() != 2:
        raise UserError(f"{path} must be {form}, got {list(matrix.shape)}")
    rows = matrix.t() if columns else matrix
    if _are_unit(rows.t()) and not _are_unit(rows):
        raise UserError(f"{path} must be {form}, and its vectors of unit norm say that it is not: transpose it")
    return _unit(rows)


def _labels_of_values(path: Path, num_images: int, num_classes: int) -> Tensor:
    """The labels `[N]` that Tip-Adapter's one-hot values say."""
    values = _load(path).double()
    labels = values.argmax(dim=-1)
    if values.shape != (num_images, num_classes) or not torch.equal(values, F.one_hot(labels, num_classes).double()):
        raise UserError(
            f"{path} must be one-hot and [N, K], with N = {num_images} columns of the keys and K = {num_classes} class "
            f"names; its shape is {list(values.shape)}"
        )
    return labels


def _whole_numbers(path: Path) -> Tensor:
    numbers = _load(path)
    if numbers.dtype == torch.bool or not torch.equal(numbers.long().double(), numbers.double()):
        raise UserError(f"{path} must hold whole numbers, the labels; got {numbers.flatten()[:5].tolist()}")
    return numbers.long()


def _text_nodes(path: Path, num_classes: int) -> Tensor:
    """The text nodes in a file of shape `[K, d]` or `[d, K]`; which of them a square one is, its norms tell."""
    if not path.exists():
        raise UserError(f"{path} is missing: put text features there ([K, d]), or encode them with --config-file")
    nodes = _load(path)
    if nodes.dim() != 2 or num_classes not in nodes.shape:
        raise UserError(f"{path} must be [K, d] or [d, K] with K = {num_classes}, got {list(nodes.shape)}")
    turned = nodes.shape[0] == nodes.shape[1] and _are_unit(nodes.t()) and not _are_unit(nodes)
    return nodes.t() if turned or nodes.shape[0] != num_classes else nodes


def _are_unit(rows: Tensor) -> bool:
    return bool((rows.float().norm(dim=1) - 1).abs().max() < NORM_TOLERANCE)


def _unit(features: Tensor) -> Tensor:
    return F.normalize(features.float(), dim=-1)
