"""Conversion of a Tip-Adapter cache folder to a feature bank.

A cache folder of Tip-Adapter (Zhang et al., ECCV 2022) contains `keys_<S>shots.pt` (`[d, N]`, means over augmented
views), `values_<S>shots.pt` (one-hot, `[N, K]`), and the features and labels `val_f.pt`, `val_l.pt`, `test_f.pt` and
`test_l.pt`, but no text features. Text features are read from `text_positive.pt` and `text_negative.pt` (`[K, d]` or
`[d, K]`), which the user adds to the folder, or are encoded from the class names with a backbone.

Shapes: N training images, M test images, K classes, d feature width, S shots.
"""

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
from .bank import FeatureBank, has_unit_norm


def import_tip(
    folder: Path,
    classnames: Sequence[str],
    text: dict[str, Tensor] | None = None,
    shots: int | None = None,
    dataset: str = "",
    backbone: str = "unknown",
    logit_scale: float = 100.0,
) -> FeatureBank:
    """Read a Tip-Adapter cache folder, without executing anything in its files.

    Args:
        folder: Cache folder.
        classnames: Class names in label order.
        text: Text features of `encode_prompts` (default: read from the folder).
        shots: S of `keys_<S>shots.pt` (default: the only such file).
        dataset: Name of the data set (default: name of the folder).
        backbone: Name of the backbone.
        logit_scale: CLIP's `tau`.

    Raises:
        UserError: On a missing or damaged file, or if keys, values and text features do not match. `load_bank` checks
            everything else.
    """
    if shots is None:
        names = [name for name in list_names(folder) if re.fullmatch(r"keys_[0-9]{1,9}shots\.pt", name)]
        if len(names) != 1:
            raise UserError(f"{folder}: expected one keys_<S>shots.pt, got {', '.join(names) or 'none'}; add --shots S")
        shots = int(names[0].removeprefix("keys_").removesuffix("shots.pt"))
    keys = _rows(folder / f"keys_{shots}shots.pt", columns=True)
    labels = _labels_of_values(folder / f"values_{shots}shots.pt", (len(keys), len(classnames)))
    if text is None:
        text = {name: _text_features(folder / f"text_{name}.pt", len(classnames)) for name in ("positive", "negative")}
    fields: dict[str, Any] = {}
    for split in ("val", "test"):
        features_file = folder / f"{split}_f.pt"
        labels_file = folder / f"{split}_l.pt"
        if features_file.exists() or labels_file.exists():
            numbers = _load(labels_file)
            if not torch.equal(numbers.long().double(), numbers.double()):
                raise UserError(f"{labels_file}: expected integer labels, got {numbers.flatten()[:5].tolist()}")
            fields |= {f"{split}_features": _rows(features_file), f"{split}_labels": numbers.long()}
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
    """Read class names in label order, from a JSON list or a text file with one name per line.

    A file is JSON if its suffix is `.json` or its text begins with "[".

    Raises:
        UserError: If the file is damaged or has no names.
    """
    form = "a JSON list of class names in label order, or a text file with one name per line"
    text = read_text(path)
    names = [line.strip() for line in text.splitlines() if line.strip()]
    if path.suffix == ".json" or text.lstrip().startswith("["):
        with reading(path, form):
            names = TypeAdapter(list[Name]).validate_python(parse_json(text), strict=True)
    if not names:
        raise UserError(f"{path}: expected {form}")
    return names


def _load(path: Path) -> Tensor:
    tensor = read_torch(path, "a tensor")
    if not isinstance(tensor, Tensor):
        raise UserError(f"{path}: expected one tensor, got a {type(tensor).__name__}")
    return tensor.detach()


def _rows(path: Path, columns: bool = False) -> Tensor:
    """Read normalised vectors, shape `[n, d]`, from the rows or the `columns` of a matrix.

    A transposed matrix, also a square one, is recognised by the norms of its vectors.
    """
    form = "[d, n]" if columns else "[n, d]"
    matrix = _load(path)
    if matrix.dim() != 2:
        raise UserError(f"{path}: expected the shape {form}, got {list(matrix.shape)}")
    rows = matrix.t() if columns else matrix
    if _are_unit(rows.t()) and not _are_unit(rows):
        problem = f"{path}: expected the shape {form}, but vectors along the other axis have unit norm"
        raise UserError(f"{problem}: transpose it")
    return _unit(rows)


def _labels_of_values(path: Path, shape: tuple[int, int]) -> Tensor:
    """Read labels `[N]` from Tip-Adapter's one-hot values `[N, K]`."""
    values = _load(path).double()
    labels = values.argmax(dim=1) if values.shape == shape else None
    if labels is None or not torch.equal(values, F.one_hot(labels, shape[1]).double()):
        raise UserError(
            f"{path}: expected one-hot rows [N, K], with N = {shape[0]} columns of the keys and K = {shape[1]} class "
            f"names; got the shape {list(values.shape)}"
        )
    return labels


def _text_features(path: Path, num_classes: int) -> Tensor:
    """Read text features of shape `[K, d]` or `[d, K]`; norms decide about a square matrix."""
    if not path.exists():
        raise UserError(f"{path} is missing: add text features [K, d], or encode them with --config-file")
    features = _load(path)
    if features.dim() != 2 or num_classes not in features.shape:
        raise UserError(f"{path}: expected [K, d] or [d, K] with K = {num_classes}, got {list(features.shape)}")
    transposed = features.shape[0] == features.shape[1] and _are_unit(features.t()) and not _are_unit(features)
    return features.t() if transposed or features.shape[0] != num_classes else features


def _are_unit(rows: Tensor) -> bool:
    return bool(has_unit_norm(rows.float().norm(dim=1)).all())


def _unit(features: Tensor) -> Tensor:
    return F.normalize(features.float(), dim=-1)
