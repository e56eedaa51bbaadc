"""Where torch computes, as a user names it."""

from __future__ import annotations

import re

import torch

from .errors import UserError, first_line

KINDS = re.compile(r"cpu|cuda(:\d+)?")


def available_device(use_cuda: bool = True) -> str:
    """The device "cuda" where a GPU is wanted (USE_CUDA) and torch finds one, else "cpu"."""
    return "cuda" if use_cuda and torch.cuda.is_available() else "cpu"


def choose_device(given: str | None, called: str) -> str:
    """The device that a user names, "cpu", "cuda" or "cuda:N"; with None or "" a GPU if there is one. UserError, with
    what the user calls the choice, if it is another kind of device, or torch cannot compute there.
    """
    if not given:
        return available_device()
    if not KINDS.fullmatch(str(given)):
        raise UserError(f"{called} must be cpu, cuda or cuda:N, got {given!r}")
    try:
        torch.zeros(1, device=given).item()
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch was built without CUDA
        raise UserError(f"cannot compute on {called} {given}: {first_line(error)}; leave it out, or use cpu") from error
    return given


def wait_for(device: torch.device) -> None:
    """Waits until a GPU has done what it was asked for, which it does meanwhile: else a time would leave that out."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
