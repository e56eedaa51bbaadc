"""Sharing the encoding of images between processes that `torchrun` starts.

    torchrun --nproc_per_node 4 -m trainers.hegraph ... --no-train

With a single process, `start`, `stop` and `wait` do nothing, `rank` is 0 and `world_size` is 1.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable
from typing import TypeVar, cast

import torch
import torch.distributed

T = TypeVar("T")
TIMEOUT = datetime.timedelta(days=1)  # the longest time that a process waits for a slower one


def start() -> None:
    """Joins the group of processes that `torchrun` started, if it started this one.

    Where there are GPUs, each process selects one by its local number.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo", timeout=TIMEOUT)
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())


def stop() -> None:
    """Leaves the group that `start` joined."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def rank() -> int:
    """The number of this process, from 0 to `world_size() - 1`."""
    return torch.distributed.get_rank() if _in_group() else 0


def world_size() -> int:
    """The number of processes in the group."""
    return torch.distributed.get_world_size() if _in_group() else 1


def wait() -> None:
    """Blocks until every process of the group has called it."""
    if _in_group():
        torch.distributed.barrier()


def of_first(ask: Callable[[], T]) -> T:
    """What `ask` returns in the first process, which alone calls it; the others are sent it."""
    if not _in_group():
        return ask()
    answer = [ask() if rank() == 0 else None]
    torch.distributed.broadcast_object_list(answer)
    return cast(T, answer[0])


def _in_group() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
