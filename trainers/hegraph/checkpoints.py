"""The adapter on disk: what training resumes from, and what it leaves. Tensors and plain values only."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .errors import UserError
from .files import atomic_path
from .model import HeGraphAdapter


def save_checkpoint(
    path: Path, run_id: str, model: HeGraphAdapter, optimizer: torch.optim.Optimizer, epoch: int, seconds: float
) -> None:
    """Writes all that training needs to go on after `epoch` epochs and `seconds` of work, atomically."""
    state = {
        "run_id": run_id,
        "epoch": epoch,
        "seconds": seconds,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    with atomic_path(path) as temporary:
        torch.save(state, temporary)


def load_checkpoint(
    path: Path, run_id: str, model: HeGraphAdapter, optimizer: torch.optim.Optimizer
) -> tuple[int, float]:
    """Loads model and optimizer in place; returns the epochs done and the seconds spent.

    Raises:
        UserError: If the file is damaged or belongs to another run.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        found, epoch, seconds = state["run_id"], state["epoch"], state["seconds"]
    except Exception as error:  # on a damaged file torch.load raises whatever its bytes lead to
        raise UserError(
            f"the checkpoint {path} is damaged ({type(error).__name__}); delete it to start anew"
        ) from error
    if found != run_id:
        raise UserError(
            f"the checkpoint {path} belongs to a run with other settings or data; delete it to start anew, or "
            "choose another --output-dir"
        )
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return epoch, seconds


def save_adapter(path: Path, model: HeGraphAdapter, classnames: Sequence[str]) -> None:
    """Writes the trained parameters as safetensors, atomically."""
    metadata = {"variant": model.variant, "classnames": json.dumps(list(classnames), ensure_ascii=False)}
    with atomic_path(path) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, temporary, metadata)


def load_adapter(path: Path, model: HeGraphAdapter, classnames: Sequence[str]) -> None:
    """Loads trained parameters in place.

    Raises:
        UserError: If the file is missing or damaged, or was trained for another variant, other classes, another
            width or other layer settings.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot read the adapter {path}: {str(error).splitlines()[0]}") from error
    if metadata.get("variant") != model.variant:
        raise UserError(
            f"{path} holds variant {metadata.get('variant')!r} but the configuration asks for {model.variant!r}"
        )
    trained_for = json.loads(metadata.get("classnames", "[]"))
    if trained_for != list(classnames):
        differing = next((pair for pair in zip(trained_for, classnames) if pair[0] != pair[1]), None)
        detail = f"first difference: {differing[0]!r} and {differing[1]!r}" if differing else "one list is longer"
        raise UserError(
            f"{path} was trained for {len(trained_for)} classes and there are {len(classnames)} here; {detail}"
        )
    wanted = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: list(tensor.shape) for name, tensor in state.items()}
    if wanted != found:
        name = next(n for n in sorted(wanted | found) if wanted.get(n) != found.get(n))
        raise UserError(
            f"{path} does not fit this configuration: {name} has shape {found.get(name, 'none')} there and "
            f"{wanted.get(name, 'none')} here"
        )
    model.load_state_dict(state)
