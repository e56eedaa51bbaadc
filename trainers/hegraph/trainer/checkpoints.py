"""Dassl's checkpoints `FOLDER/hegraph/model.pth.tar-N`, and the identity of their run beside them.

Files are read as tensors and plain values: no code in them is run.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..utils.errors import OTHER_RUN, UserError
from ..utils.files import write_json
from ..utils.reading import read_json, read_torch

NAME = "hegraph"  # under which the model is registered
STATE = "model.pth.tar-"
RUN = "run.json"  # beside the checkpoints: the identity of their run
KIND = "a checkpoint of Dassl"


def epochs_in(folder: Path) -> dict[int, Path]:
    """Return the checkpoints in the output folder of a run, by epoch."""
    files = (folder / NAME).glob(f"{STATE}*")
    by_suffix = {file.name.removeprefix(STATE): file for file in files}
    return {int(suffix): file for suffix, file in sorted(by_suffix.items()) if suffix.isdigit()}


def latest(folder: Path) -> tuple[int, Path] | None:
    """Return the epoch and the file of the last complete checkpoint; None without one.

    Dassl writes the name of a checkpoint into the file `checkpoint` once the checkpoint is written.
    """
    pointer = folder / NAME / "checkpoint"
    name = pointer.read_text().strip() if pointer.is_file() else ""
    complete = {file.name: (epoch, file) for epoch, file in epochs_in(folder).items()}
    return complete.get(name)


def write_run(folder: Path, run_id: str) -> None:
    """Write the identity of the run whose checkpoints follow."""
    write_json(folder / NAME / RUN, {"run_id": run_id})


def check_run(folder: Path, run_id: str) -> None:
    """Raise UserError if the checkpoints in a folder are known to be of another run."""
    file = folder / NAME / RUN
    if file.is_file() and read_json(file) != {"run_id": run_id}:
        problem = f"{folder / NAME} has checkpoints of a run with other settings or data"
        raise UserError(f"{problem}; choose another --output-dir, or delete it", OTHER_RUN)


def read_state(path: Path) -> dict[str, Any]:
    """Read a checkpoint; UserError if it is damaged or no checkpoint of Dassl."""
    state = read_torch(path, KIND)
    if not isinstance(state, dict) or not {"state_dict", "optimizer", "scheduler", "epoch"} <= state.keys():
        raise UserError(f"{path} is not {KIND}: expected state_dict, optimizer, scheduler and epoch")
    return state


def fits(state: Mapping[str, Tensor], model: nn.Module) -> bool:
    """Whether a state has the names and shapes of a model's."""
    own = model.state_dict()
    return {name: value.shape for name, value in state.items()} == {name: value.shape for name, value in own.items()}
