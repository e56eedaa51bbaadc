"""A Tip-Adapter cache folder -> a feature bank.

Tip-Adapter (Zhang et al., ECCV 2022) leaves in its cache folder `keys_<S>shots.pt` (`[d, N]`, the mean over augmented
views), `values_<S>shots.pt` (one-hot, `[N, K]`), and the features and labels `val_f.pt`, `val_l.pt`, `test_f.pt` and
`test_l.pt`. It keeps no text features. They are read from `text_positive.pt` and `text_negative.pt` (`[K, d]` or
`[d, K]`), which the user puts into the folder, or are encoded from the class names with a backbone.

Shapes: N training images, K classes, d feature width, S shots.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..utils.errors import UserError
from .bank import FeatureBank

SPLITS = ("val", "test")


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
    keys, values = _load_cache(folder, _find_shots(folder) if shots is None else shots, len(classnames))
    if text is None:
        text = {name: _text_nodes(folder / f"text_{name}.pt", len(classnames)) for name in ("positive", "negative")}
    return FeatureBank(
        train_features=_unit(keys.t()).unsqueeze(0),
        train_labels=values.argmax(dim=1),
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

    Raises:
        UserError: If the file cannot be read or holds no names.
    """
    try:
        text = path.read_text(encoding="utf-8")
        names = (
            json.loads(text) if path.suffix == ".json" else [line.strip() for line in text.splitlines() if line.strip()]
        )
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read class names from {path}: {error}") from error
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise UserError(f"{path} must hold the class names in label order, as a JSON list or one a line")
    return names


def _find_shots(folder: Path) -> int:
    found = sorted(f for f in folder.glob("keys_*shots.pt") if f.name[5:-8].isdecimal())
    if len(found) != 1:
        names = ", ".join(f.name for f in found) or "none"
        raise UserError(f"{folder} must hold one keys_<S>shots.pt (found: {names}); choose with --shots S")
    return int(found[0].name.removeprefix("keys_").removesuffix("shots.pt"))


def _load_cache(folder: Path, shots: int, num_classes: int) -> tuple[Tensor, Tensor]:
    """Tip-Adapter's keys `[d, N]` and values `[N, K]`."""
    keys = _load(folder / f"keys_{shots}shots.pt")
    values = _load(folder / f"values_{shots}shots.pt")
    matrices = keys.dim() == values.dim() == 2
    if not matrices or keys.shape[1] != len(values) or values.shape[1] > num_classes:
        raise UserError(
            f"{folder}: keys_{shots}shots.pt is {list(keys.shape)}, values_{shots}shots.pt is "
            f"{list(values.shape)}, and there are {num_classes} class names; wanted keys [d, N], values [N, K]"
        )
    return keys, values


def _load_splits(folder: Path) -> dict[str, Any]:
    """Features and labels of val and test, by their names in a bank, as far as the folder has them."""
    parts: dict[str, Any] = {}
    for split in SPLITS:
        if (folder / f"{split}_f.pt").exists():
            parts[f"{split}_features"] = _unit(_load(folder / f"{split}_f.pt"))
            parts[f"{split}_labels"] = _load(folder / f"{split}_l.pt").long()
    return parts


def _load(path: Path) -> Tensor:
    try:
        tensor = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing") from error
    except Exception as error:  # on a damaged file torch.load raises whatever its bytes lead to
        raise UserError(f"{path} is damaged or holds something else than a tensor ({type(error).__name__})") from error
    if not isinstance(tensor, Tensor):
        raise UserError(f"{path} must hold one tensor, got a {type(tensor).__name__}")
    return tensor


def _text_nodes(path: Path, num_classes: int) -> Tensor:
    if not path.exists():
        raise UserError(f"{path} is missing: put text features there ([K, d]), or encode them with --config-file")
    nodes = _load(path)
    if nodes.dim() != 2 or num_classes not in nodes.shape:
        raise UserError(f"{path} must be [K, d] or [d, K] with K = {num_classes}, got {list(nodes.shape)}")
    return nodes if nodes.shape[0] == num_classes else nodes.t()


def _unit(features: Tensor) -> Tensor:
    return F.normalize(features.float(), dim=-1)
