"""The adapter on disk: what an interrupted training goes on from, and what a training leaves.

The files hold tensors and plain values only, and reading one runs nothing.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW

from ..method.model import HeGraphModel
from ..utils.errors import UserError
from ..utils.files import atomic_path, hash_content, write_tensors
from ..utils.reading import read_torch, reading

CHECKPOINT = "checkpoint.pt"
ADAPTER = "adapter.safetensors"


@dataclass(frozen=True)
class Checkpoints:
    """Where the state of one training is kept.

    Attributes:
        folder: The output folder of the run.
        resume_from: The folder whose checkpoint training goes on from; mostly the same.
        run_id: Hash of everything that shapes the run. The checkpoint of another run is refused.
        classnames, split_hash: The K class names and the hash of the selected images, kept with an adapter.
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

    def read(self) -> dict[str, Any] | None:
        """What the checkpoint holds; None if there is none. Raises UserError if it is damaged or another run's."""
        path = self.path_to_resume
        if not path.exists():
            return None
        try:
            state = read_torch(path, "a checkpoint")
            with reading(path, "a checkpoint"):
                if state["checksum"] != _checksum(state):
                    raise ValueError("its content has changed since it was written")
        except UserError as error:
            raise UserError(f"{error}; delete it to start anew") from error
        if state["run_id"] != self.run_id:
            raise UserError(
                f"the checkpoint {path} belongs to a run with other settings or data; delete it to start anew, or "
                "choose another --output-dir"
            )
        return state

    def load(self, model: HeGraphModel, optimizer: AdamW) -> tuple[int, float] | None:
        """Loads model and optimizer in place. Returns the epochs that are done and the seconds that they took; None if
        there is no checkpoint. Raises UserError as `read`, and if another version wrote it, whose tensors are others.
        """
        if (state := self.read()) is None:
            return None
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        wanted = {n: {"step": torch.tensor(0.0), "exp_avg": p, "exp_avg_sq": p} for n, p in enumerate(parameters)}
        # Torch itself takes moments of any shape, and reads beyond their end in the next step
        fit = all(_forms(moments) == _forms(wanted.get(n, {})) for n, moments in state["moments"].items())
        if not fit or _forms(state["model"]) != _forms(model.state_dict()):
            raise UserError(f"the tensors of {self.path_to_resume} are others than here; delete it to start anew")
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
        content = io.BytesIO()  # torch.save itself raises RuntimeError on a full disk, whatever the cause
        torch.save(state | {"checksum": _checksum(state)}, content)
        with atomic_path(self.folder / CHECKPOINT) as temporary:
            temporary.write_bytes(content.getvalue())

    def save_adapter(self, model: HeGraphModel) -> None:
        """Writes the trained parameters, to look at. What predicts is the model folder beside them."""
        about = {"variant": model.options.variant, "split_hash": self.split_hash, "classnames": list(self.classnames)}
        write_tensors(self.folder / ADAPTER, model.state_dict(), {"adapter": json.dumps(about, ensure_ascii=False)})

    def remove(self) -> None:
        """Removes the checkpoint of a training that has ended."""
        (self.folder / CHECKPOINT).unlink(missing_ok=True)


def _checksum(state: Mapping[str, Any]) -> str:
    """The hash of all of a checkpoint but its own."""
    return hash_content({key: value for key, value in state.items() if key != "checksum"})


def _forms(tensors: Mapping[str, Tensor]) -> dict[str, tuple]:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}
