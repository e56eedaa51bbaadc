"""Several processes that encode one set of images, as `torchrun` starts them. One process alone needs none of this.

torchrun --nproc_per_node 4 -m trainers.hegraph ... --no-train
"""

from __future__ import annotations

import datetime
import os

import torch
import torch.distributed

TIMEOUT = datetime.timedelta(days=1)  # how long a process waits for a slower one


def start() -> None:
    """Joins the processes that `torchrun` started, if it started this one. Each takes its own GPU, if there are any."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo", timeout=TIMEOUT)
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())


def stop() -> None:
    """Leaves the processes that `start` joined."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def rank() -> int:
    """The number of this process, from 0."""
    return torch.distributed.get_rank() if _together() else 0


def world_size() -> int:
    """How many processes there are."""
    return torch.distributed.get_world_size() if _together() else 1


def wait() -> None:
    """Returns when all processes have come here."""
    if _together():
        torch.distributed.barrier()


def _together() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
