"""The adapter on disk: what an interrupted training goes on from, and what a training leaves.

The files hold tensors and plain values only, and reading one runs nothing.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ..method.model import HeGraphModel
from ..utils.errors import UserError
from ..utils.files import atomic_path, write_tensors

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

    def load(self, model: HeGraphModel, optimizer: torch.optim.Optimizer) -> tuple[int, float] | None:
        """Loads model and optimizer in place, if there is a checkpoint.

        Returns:
            The epochs that are done and the seconds that they took; None if there is no checkpoint.

        Raises:
            UserError: If the file is damaged or belongs to another run.
        """
        if not self.path_to_resume.exists():
            return None
        epoch, seconds, tensors, momenta = _read_checkpoint(self.path_to_resume, self.run_id)
        model.load_state_dict(tensors)
        optimizer.load_state_dict(momenta)
        return epoch, seconds

    def save(self, model: HeGraphModel, optimizer: torch.optim.Optimizer, epoch: int, seconds: float) -> None:
        """Writes all that training needs to go on after `epoch` epochs and `seconds` of work, atomically."""
        state = {
            "run_id": self.run_id,
            "epoch": epoch,
            "seconds": seconds,
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
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
    about = {"variant": model.options.variant, "activation": model.options.activation, "split_hash": split_hash}
    metadata = {"adapter": json.dumps(about | {"classnames": list(classnames)}, ensure_ascii=False)}
    write_tensors(path, model.state_dict(), metadata)


def _read_checkpoint(path: Path, run_id: str) -> tuple[int, float, dict, dict]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        found, epoch, seconds, tensors, momenta = (
            state[k] for k in ("run_id", "epoch", "seconds", "model", "optimizer")
        )
        if state["checksum"] != _checksum(state):
            raise ValueError("its content has changed since it was written")
    except Exception as error:  # on a damaged file torch.load raises whatever its bytes lead to
        raise UserError(
            f"the checkpoint {path} is damaged ({type(error).__name__}); delete it to start anew"
        ) from error
    if found != run_id:
        raise UserError(
            f"the checkpoint {path} belongs to a run with other settings or data; delete it to start anew, or "
            "choose another --output-dir"
        )
    return epoch, seconds, tensors, momenta


def _checksum(state: dict) -> str:
    """SHA-256 over all of a checkpoint that changes what training computes, as 64 hex digits."""
    digest = hashlib.sha256()

    def add(value: object) -> None:
        if isinstance(value, dict):
            for key in value:
                digest.update(f"{key!r}:".encode())
                add(value[key])
        elif isinstance(value, (list, tuple)):
            for entry in value:
                add(entry)
        elif isinstance(value, torch.Tensor):
            digest.update(f"{value.dtype}{list(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
        else:
            digest.update(f"{value!r};".encode())

    add({key: state[key] for key in ("run_id", "epoch", "model", "optimizer")})
    return digest.hexdigest()
