"""Choice of the torch device."""

import re

import torch

from .errors import UserError, first_line

KINDS = re.compile(r"cpu|cuda(:\d+)?")


def available_device(use_cuda: bool = True) -> str:
    """Device "cuda" if `use_cuda` is set and torch finds a GPU, else "cpu"."""
    return "cuda" if use_cuda and torch.cuda.is_available() else "cpu"


def choose_device(name: str | torch.device | None, option: str) -> str:
    """Device with the name "cpu", "cuda" or "cuda:N"; None or "" chooses a GPU if there is one.

    Raises:
        UserError: For another name, or a device on which torch cannot compute; the message names the `option`.
    """
    if not name:
        return available_device()
    if not KINDS.fullmatch(str(name)):
        raise UserError(f"{option} must be cpu, cuda or cuda:N, got {name!r}")
    try:
        torch.zeros(1, device=name).item()
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch was built without CUDA
        raise UserError(f"cannot compute on {option} {name}: {first_line(error)}; leave it out, or use cpu") from error
    return str(name)


def wait_for(device: torch.device) -> None:
    """Wait until a GPU has finished its queued work, so that measured times include it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
