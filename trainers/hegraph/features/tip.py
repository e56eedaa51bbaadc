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
from pydantic import TypeAdapter
from torch import Tensor

from ..datasets.layouts import list_names
from ..utils.errors import UserError
from ..utils.reading import Name, parse_json, read_text, read_torch, reading
from .bank import NORM_TOLERANCE, FeatureBank


def import_tip(
    folder: Path,
    classnames: Sequence[str],
    text: dict[str, Tensor] | None = None,
    shots: int | None = None,
    dataset: str = "",
    backbone: str = "unknown",
    logit_scale: float = 100.0,
) -> FeatureBank:
    """Reads a Tip-Adapter cache folder. Nothing in it is executed: tensors only.

    `text` holds the text nodes, as `encode_prompts` gives them; None reads them from the folder. `shots` is the S of
    `keys_<S>shots.pt`; None takes the only such file.

    Raises:
        UserError: On a missing or damaged file, or on keys, values and text nodes that do not fit together. What else
            has to fit is seen when the bank is saved and loaded.
    """
    if shots is None:
        found = [name for name in list_names(folder) if re.fullmatch(r"keys_[0-9]{1,9}shots\.pt", name)]
        if len(found) != 1:
            names = ", ".join(found) or "none"
            raise UserError(f"{folder} must hold one keys_<S>shots.pt (found: {names}); choose with --shots S")
        shots = int(found[0].removeprefix("keys_").removesuffix("shots.pt"))
    keys = _rows(folder / f"keys_{shots}shots.pt", columns=True)
    labels = _labels_of_values(folder / f"values_{shots}shots.pt", (len(keys), len(classnames)))
    if text is None:
        text = {name: _text_nodes(folder / f"text_{name}.pt", len(classnames)) for name in ("positive", "negative")}
    fields: dict[str, Any] = {}
    for split in ("val", "test"):
        features, numbers = folder / f"{split}_f.pt", folder / f"{split}_l.pt"
        if features.exists() or numbers.exists():
            given = _load(numbers)
            if not torch.equal(given.long().double(), given.double()):
                raise UserError(f"{numbers} must hold whole numbers, the labels; got {given.flatten()[:5].tolist()}")
            fields |= {f"{split}_features": _rows(features), f"{split}_labels": given.long()}
    return FeatureBank(
        train_features=keys.unsqueeze(0),
        train_labels=labels,
        text_positive=_unit(text["positive"]),
        text_negative=_unit(text["negative"]),
        classnames=list(classnames),
        dataset=dataset or folder.name,
        backbone=backbone,
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
    names = [line.strip() for line in text.splitlines() if line.strip()]
    if path.suffix == ".json" or text.lstrip().startswith("["):
        with reading(path, form):
            names = TypeAdapter(list[Name]).validate_python(parse_json(text), strict=True)
    if not names:
        raise UserError(f"{path} must hold {form}")
    return names


def _load(path: Path) -> Tensor:
    tensor = read_torch(path, "a tensor")
    if not isinstance(tensor, Tensor):
        raise UserError(f"{path} must hold one tensor, got a {type(tensor).__name__}")
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


def _labels_of_values(path: Path, shape: tuple[int, int]) -> Tensor:
    """The labels `[N]` that Tip-Adapter's one-hot values `[N, K]` say."""
    values = _load(path).double()
    if values.shape != shape or not torch.equal(values, F.one_hot(labels := values.argmax(dim=1), shape[1]).double()):
        raise UserError(
            f"{path} must be one-hot and [N, K], with N = {shape[0]} columns of the keys and K = {shape[1]} class "
            f"names; its shape is {list(values.shape)}"
        )
    return labels


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
    return bool(((rows.float().norm(dim=1) - 1).abs() < NORM_TOLERANCE).all())


def _unit(features: Tensor) -> Tensor:
    return F.normalize(features.float(), dim=-1)
