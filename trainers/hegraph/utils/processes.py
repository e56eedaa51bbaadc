"""Share the encoding of images between processes that `torchrun` starts.

    torchrun --nproc_per_node 4 -m trainers.hegraph ... --no-train

Everything but `--no-train` and `features extract` refuses more than one process (`refuse_several_processes`). With a
single process, `process_group` and `wait` do nothing, `rank` is 0 and `world_size` is 1.
"""

import datetime
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar, cast

import torch
import torch.distributed

from .errors import UserError, first_line
from .reading import validate

T = TypeVar("T")
TIMEOUT = datetime.timedelta(days=1)  # the longest time that a process waits for a slower one


@contextmanager
def process_group() -> Iterator[None]:
    """Context of the process group of `torchrun`, if there is one, in which each process has its own GPU.

    Raises:
        UserError: If the environment variables of `torchrun` are missing or invalid.
    """
    try:
        size = validate(int, os.environ.get("WORLD_SIZE", "1"), "WORLD_SIZE", convert=True)
        if size > 1 and not torch.distributed.is_initialized():
            number = validate(int, os.environ["RANK"], "RANK", convert=True)
            if not 0 <= number < size:  # torch would wait for `TIMEOUT`
                raise ValueError(f"RANK must be from 0 to {size - 1}, since WORLD_SIZE is {size}, got {number}")
            torch.distributed.init_process_group("gloo", timeout=TIMEOUT)
            if torch.cuda.is_available():
                torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    except (KeyError, ValueError) as error:
        raise UserError(f"cannot join the processes of torchrun: {first_line(error)}") from error
    try:
        yield
    finally:
        if _in_group():
            torch.distributed.destroy_process_group()


def rank() -> int:
    """Number of this process, from 0 to `world_size() - 1`."""
    return torch.distributed.get_rank() if _in_group() else 0


def world_size() -> int:
    """Number of processes in the group."""
    return torch.distributed.get_world_size() if _in_group() else 1


def wait() -> None:
    """Wait for all processes of the group; UserError if one has ended."""
    if _in_group():
        with _all_alive():
            torch.distributed.barrier()


def broadcast_from_rank0(function: Callable[[], T]) -> T:
    """Call a function in the first process only, and return its result in all processes; UserError as `wait`."""
    if not _in_group():
        return function()
    results = [function() if rank() == 0 else None]
    with _all_alive():
        torch.distributed.broadcast_object_list(results)
    return cast(T, results[0])


@contextmanager
def _all_alive() -> Iterator[None]:
    """Context of a collective operation, which converts its RuntimeError to a UserError that a process has ended."""
    try:
        yield
    except RuntimeError as error:  # gloo's, when a connection is closed
        raise UserError("another process of torchrun has ended; see its error message") from error


def _in_group() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
