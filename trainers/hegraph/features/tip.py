"""A Tip-Adapter cache folder -> a feature bank.

Tip-Adapter (Zhang et al., ECCV 2022) leaves in its cache folder `keys_<S>shots.pt` (`[d, N]`, the mean over augmented
views), `values_<S>shots.pt` (one-hot, `[N, K]`), and the features and labels `val_f.pt`, `val_l.pt`, `test_f.pt` and
`test_l.pt`. It keeps no text features. They are read from `text_positive.pt` and `text_negative.pt` (`[K, d]` or
`[d, K]`), which the user puts into the folder, or are encoded from the class names with a backbone.

Shapes: N training images, K classes, d feature width, S shots.
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
from ..utils.errors import UserError, first_line
from ..utils.reading import parse_json, read_text, read_torch
from ..utils.schema import Name, check
from .bank import FeatureBank
from .bank_file import NORM_TOLERANCE


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

    Args:
        folder: Holds the files named above.
        classnames: The K class names in label order.
        text: "positive" and "negative" text nodes, each `[K, d]`, and maybe "norms", as `encode_prompts` gives them;
            None reads the nodes from the folder.
        shots: The S of `keys_<S>shots.pt`; None takes the only such file.
        dataset, backbone: Their names, for records; "" takes the folder's name and "unknown".
        logit_scale: CLIP's `tau`, by which cosines are multiplied.

    Raises:
        UserError: On a missing or damaged file, or shapes that do not fit together.
    """
    keys, labels = _load_cache(folder, _find_shots(folder) if shots is None else shots, len(classnames))
    if text is None:
        text = {name: _text_nodes(folder / f"text_{name}.pt", len(classnames)) for name in ("positive", "negative")}
    return FeatureBank(
        train_features=_unit(keys.t()).unsqueeze(0),
        train_labels=labels,
        text_positive=_unit(text["positive"]),
        text_negative=_unit(text["negative"]),
        classnames=list(classnames),
        dataset=dataset or folder.name,
        backbone=backbone or "unknown",
        logit_scale=logit_scale,
        text_norms=text.get("norms"),
        **_load_splits(folder),
    )


def read_classnames(path: Path) -> list[str]:
    """Class names in label order, from a JSON list or a text file with one name a line.

    A file whose first character is "[" holds JSON, whatever it is called, and so does any file called `.json`.

    Raises:
        UserError: If the file cannot be read or holds no names.
    """
    form = f"{path} must hold the class names in label order, as a JSON list or one a line"
    text = read_text(path)
    if path.suffix == ".json" or text.lstrip().startswith("["):
        try:
            value = parse_json(text)
        except ValueError as error:
            raise UserError(f"cannot read {path} as JSON: {first_line(error)}") from error
        names = check(list[Name], value, form)
    else:
        names = [line.strip() for line in text.splitlines() if line.strip()]
    if not names:
        raise UserError(form)
    return names


def _find_shots(folder: Path) -> int:
    found = [name for name in listing(folder) if re.fullmatch(r"keys_[0-9]{1,9}shots\.pt", name)]
    if len(found) != 1:
        names = ", ".join(found) or "none"
        raise UserError(f"{folder} must hold one keys_<S>shots.pt (found: {names}); choose with --shots S")
    return int(found[0].removeprefix("keys_").removesuffix("shots.pt"))


def _load_cache(folder: Path, shots: int, num_classes: int) -> tuple[Tensor, Tensor]:
    """Tip-Adapter's keys `[d, N]`, and the labels `[N]` that its one-hot values say."""
    key_file, value_file = folder / f"keys_{shots}shots.pt", folder / f"values_{shots}shots.pt"
    keys, values = _load(key_file), _load(value_file).double()
    matrices = keys.dim() == values.dim() == 2
    if not matrices or keys.shape[1] != len(values) or values.shape[1] != num_classes:
        raise UserError(
            f"{folder}: {key_file.name} is {list(keys.shape)}, {value_file.name} is {list(values.shape)}, and there "
            f"are {num_classes} class names; wanted keys [d, N], values [N, K]"
        )
    _check_unit(key_file, keys, dim=0, form="[d, N]")
    labels = values.argmax(dim=1)
    if not torch.equal(values, F.one_hot(labels, num_classes).double()):
        raise UserError(f"{value_file} must be one-hot: in every row one 1 and else 0")
    return keys, labels


def _check_unit(path: Path, matrix: Tensor, dim: int, form: str) -> None:
    """Refuses a matrix whose vectors of unit norm lie along the other dimension, which a square one hides."""
    if matrix.dim() == 2 and _are_unit(matrix, 1 - dim) and not _are_unit(matrix, dim):
        raise UserError(f"{path} must be {form}, and its vectors of unit norm say that it is not: transpose it")


def _are_unit(matrix: Tensor, dim: int) -> bool:
    return bool((matrix.float().norm(dim=dim) - 1).abs().max() < NORM_TOLERANCE)


def _load_splits(folder: Path) -> dict[str, Any]:
    """Features and labels of val and test, by their names in a bank, as far as the folder has them."""
    parts: dict[str, Any] = {}
    for split in ("val", "test"):
        features, labels = folder / f"{split}_f.pt", folder / f"{split}_l.pt"
        if features.exists() or labels.exists():
            found, numbers = _load(features), _load(labels)
            _check_unit(features, found, dim=1, form="[M, d]")
            whole = numbers.long()
            if numbers.dtype == torch.bool or not torch.equal(whole.double(), numbers.double()):
                raise UserError(f"{labels} must hold whole numbers, the labels; got {numbers.flatten()[:5].tolist()}")
            parts |= {f"{split}_features": _unit(found), f"{split}_labels": whole}
    return parts


def _load(path: Path) -> Tensor:
    """The tensor in a file, which is not empty and finite."""
    tensor = read_torch(path, "the tensor")
    if not isinstance(tensor, Tensor):
        raise UserError(f"{path} must hold one tensor, got a {type(tensor).__name__}")
    if not tensor.numel() or not tensor.isfinite().all():
        raise UserError(f"{path} is empty or holds NaN or infinite values, of shape {list(tensor.shape)}")
    return tensor.detach()


def _text_nodes(path: Path, num_classes: int) -> Tensor:
    if not path.exists():
        raise UserError(f"{path} is missing: put text features there ([K, d]), or encode them with --config-file")
    nodes = _load(path)
    if nodes.dim() != 2 or num_classes not in nodes.shape:
        raise UserError(f"{path} must be [K, d] or [d, K] with K = {num_classes}, got {list(nodes.shape)}")
    if nodes.shape[0] == nodes.shape[1] and _are_unit(nodes, dim=0) and not _are_unit(nodes, dim=1):
        return nodes.t()
    return nodes if nodes.shape[0] == num_classes else nodes.t()


def _unit(features: Tensor) -> Tensor:
    return F.normalize(features.float(), dim=-1)
