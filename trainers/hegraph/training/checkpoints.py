"""The adapter on disk: what an interrupted training goes on from, and what a training leaves.

The files hold tensors and plain values only, and reading one runs nothing.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor
from torch.optim import AdamW

from ..method.model import HeGraphModel
from ..utils.errors import UserError
from ..utils.files import atomic_path, hash_content, write_tensors
from ..utils.reading import DamagedFile, read_torch
from ..utils.schema import NotNegative, Part, check

CHECKPOINT = "checkpoint.pt"
ADAPTER = "adapter.safetensors"


@dataclass(frozen=True)
class Checkpoints:
    """Where the state of one training is kept.

    Attributes:
        folder: The output folder of the run.
        resume_from: The folder whose checkpoint training goes on from; mostly the same.
        run_id: Hash of everything that shapes the run. The checkpoint of another run is refused.
        classnames: The K class names in label order, kept with an adapter.
        split_hash: Hash of the images that were selected, kept with an adapter.
    """

    folder: Path
    resume_from: Path
    run_id: str
    classnames: Sequence[str] = ()
    split_hash: str = ""

    @property
    def path_to_resume(self) -> Path:
        """The checkpoint that training goes on from, if it is there."""
        return self.resume_from / CHECKPOINT

    def check(self) -> None:
        """Raises UserError if there is a checkpoint that `load` would refuse."""
        if self.path_to_resume.exists():
            _read_checkpoint(self.path_to_resume, self.run_id)

    def load(self, model: HeGraphModel, optimizer: AdamW) -> tuple[int, float] | None:
        """Loads model and optimizer in place, if there is a checkpoint.

        Returns:
            The epochs that are done and the seconds that they took; None if there is no checkpoint.

        Raises:
            UserError: If the file is damaged or belongs to another run.
        """
        if not self.path_to_resume.exists():
            return None
        state = _read_checkpoint(self.path_to_resume, self.run_id)
        try:
            _check_fit(state, model, optimizer)
        except ValueError as error:
            raise UserError(
                f"the checkpoint {self.path_to_resume} is damaged ({error}); delete it to start anew"
            ) from error
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(optimizer.state_dict() | {"state": state["moments"]})
        return state["epoch"], state["seconds"]

    def save(self, model: HeGraphModel, optimizer: AdamW, epoch: int, seconds: float) -> None:
        """Writes all that training needs to go on after `epoch` epochs and `seconds` of work, atomically."""
        state = {
            "run_id": self.run_id,
            "epoch": epoch,
            "seconds": seconds,
            "model": model.state_dict(),
            "moments": optimizer.state_dict()["state"],
        }
        state["checksum"] = _checksum(state)
        content = io.BytesIO()  # torch.save itself raises RuntimeError on a full disk, whatever the cause
        torch.save(state, content)
        with atomic_path(self.folder / CHECKPOINT) as temporary:
            temporary.write_bytes(content.getvalue())

    def save_adapter(self, model: HeGraphModel) -> None:
        """Writes the trained parameters, to look at. What predicts is the model folder beside them."""
        save_adapter(self.folder / ADAPTER, model, self.classnames, self.split_hash)

    def remove(self) -> None:
        """Removes the checkpoint of a training that has ended."""
        (self.folder / CHECKPOINT).unlink(missing_ok=True)


def save_adapter(path: Path, model: HeGraphModel, classnames: Sequence[str], split_hash: str = "") -> None:
    """Writes the trained parameters as safetensors, atomically, with what they fit."""
    about = {"variant": model.options.variant, "split_hash": split_hash}
    metadata = {"adapter": json.dumps(about | {"classnames": list(classnames)}, ensure_ascii=False)}
    write_tensors(path, model.state_dict(), metadata)


class _State(Part):
    """What a checkpoint holds. The tensors are then checked against the model that they are loaded into.

    `moments` are those of AdamW, by the number of the parameter. Its rates follow from the epoch.
    """

    run_id: str
    epoch: Annotated[int, Field(ge=0, lt=2**31)]
    seconds: NotNegative
    model: dict[str, Any]
    moments: dict[int, dict[str, Any]]
    checksum: str


def _read_checkpoint(path: Path, run_id: str) -> dict[str, Any]:
    try:
        state = read_torch(path, "a checkpoint")
        check(_State, state, f"the checkpoint {path} is damaged")
        if state["checksum"] != _checksum(state):
            raise DamagedFile(f"the checkpoint {path} is damaged (its content has changed since it was written)")
    except UserError as error:
        raise UserError(f"{error}; delete it to start anew") from error
    if state["run_id"] != run_id:
        raise UserError(
            f"the checkpoint {path} belongs to a run with other settings or data; delete it to start anew, or "
            "choose another --output-dir"
        )
    return state


def _checksum(state: dict) -> str:
    """The hash of all of a checkpoint that changes what training computes."""
    return hash_content({key: state[key] for key in ("run_id", "epoch", "model", "moments")})


def _check_fit(state: dict, model: HeGraphModel, optimizer: AdamW) -> None:
    """Checks the tensors of a checkpoint against what they are loaded into.

    Torch itself takes moments of any shape, and reads beyond their end in the next step.

    Raises:
        ValueError: If something has another name, shape or type; the message says what.
    """
    _check_tensors(state["model"], model.state_dict(), "the model")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number, moments in state["moments"].items():
        if number not in range(len(parameters)):
            raise ValueError(f"it has moments of a parameter {number}")
        wanted = {"step": torch.tensor(0.0), "exp_avg": parameters[number], "exp_avg_sq": parameters[number]}
        _check_tensors(moments, wanted, f"the moments of parameter {number}")


def _check_tensors(found: dict[str, Any], wanted: dict[str, Tensor], what: str) -> None:
    if found.keys() != wanted.keys():
        raise ValueError(f"{what} has other tensors than here")
    for name, tensor in wanted.items():
        other = found[name]
        if not isinstance(other, Tensor):
            raise ValueError(f"{name} of {what} is no tensor")
        if (other.shape, other.dtype) != (tensor.shape, tensor.dtype):
            raise ValueError(f"{name} of {what} is {list(other.shape)}, and {list(tensor.shape)} here")
        if not other.isfinite().all():
            raise ValueError(f"{name} of {what} holds NaN or infinite values")
