"""Estimate of the memory of a training, free memory and peak memory.

`docs/results/benchmarks.md` has the formula and compares it with measurements.

Shapes: K classes, N cached images (K times the shots), d feature width, V views, B batch.
"""

import logging
import os
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

import torch

from ...utils.errors import UserError
from ..head.closed_form import CHUNK_ROWS
from .batches import products_bytes

logger = logging.getLogger(__name__)

ROOT = Path("/")
FLOAT, DOUBLE = 4, 8  # bytes
WARNING_RATIO = 0.5  # an estimate above this fraction of the free memory is logged
_started = Counter(runs=0)  # runs and sweeps that this process has begun


def training_bytes(
    num_classes: int, num_images: int, width: int, views: int, batch: int, closed_form: bool = True
) -> dict[str, int]:
    """Memory in bytes of a training of the full variant, by purpose, without features and process.

    `closed_form` adds the closed-form head. Its discriminants are computed after the last step in double precision; "at
    the end" is the memory that this needs beyond a step.
    """
    nodes = num_classes * width  # entries of a feature per class
    cached = num_images * width  # and per image
    products = products_bytes(views, num_images)
    parts = {
        "keys": 2 * cached * FLOAT,  # cache keys, and the mean over views
        "graph": (10 * nodes + min(num_classes, 2 * width) * num_classes) * FLOAT,
        "parameters": 4 * (3 * width**2 + 6 * nodes) * FLOAT,  # with gradients and AdamW's two moments
        "step": (num_images * batch * (2 if products else 1) + 24 * nodes) * FLOAT,
        "products": products,
        "closed form": 0,
        "at the end": 0,
    }
    if closed_form:
        parts["closed form"] = (cached + 2 * nodes) * FLOAT + (width**2 + 3 * nodes) * DOUBLE
        block = min(num_images, CHUNK_ROWS) * width
        parts["at the end"] = max((3 * block + 3 * nodes + 5 * width**2) * DOUBLE - parts["step"], 0)
    return parts


def free_bytes(device: str = "cpu") -> int | None:
    """Free memory in bytes of "cpu", "cuda" or "cuda:N", without swapping; None if the system does not report it.

    On the CPU it is the least of the free memory of the machine, the rest of the limits of the control groups
    (containers, batch systems), and the rest of the limit of the address space (`ulimit -v`).
    """
    if device != "cpu":
        return torch.cuda.mem_get_info(device)[0]
    free = [*_free_of_machine(), *_free_of_groups(), *_free_of_address_space()]
    return max(min(free), 0) if free else None


def _free_of_machine() -> Iterator[int]:
    with suppress(OSError, KeyError):  # not on Linux
        yield 1024 * _numbers(ROOT / "proc/meminfo")["MemAvailable:"]


def _free_of_groups() -> Iterator[int]:
    """Iterate over the free memory of each control group of this process, of version 1 or 2.

    The page cache of files counts as free. A container may see its own group as the root, whatever path
    /proc/self/cgroup names, so the folders above that path are read as well.
    """
    table = ROOT / "proc/self/cgroup"
    for line in table.read_text().splitlines() if table.exists() else ():  # only Linux has it
        _, controllers, path = line.split(":", 2)
        if not controllers:
            base, most, now, total = "sys/fs/cgroup", "memory.max", "memory.current", ""
        elif "memory" in controllers.split(","):
            base, most, now, total = "sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"
        else:
            continue
        group = PurePosixPath(path.lstrip("/"))
        for folder in (ROOT / base / place for place in (group, *group.parents)):
            with suppress(OSError, ValueError):  # there is no such group, or its limit is "max"
                limit, used = (int((folder / name).read_text()) for name in (most, now))
                files = _numbers(folder / "memory.stat")
                yield limit - used + sum(files.get(f"{total}{kind}_file", 0) for kind in ("active", "inactive"))


def _free_of_address_space() -> Iterator[int]:
    with suppress(ImportError, OSError, ValueError):  # Windows lacks `resource`, and only Linux has /proc
        import resource

        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        if limit != resource.RLIM_INFINITY:
            pages = int((ROOT / "proc/self/statm").read_text().split()[0])
            yield limit - pages * os.sysconf("SC_PAGE_SIZE")


def _numbers(path: Path) -> dict[str, int]:
    """Read a file of the kernel whose lines begin with a name and a number."""
    return {name: int(number) for name, number, *_ in map(str.split, path.read_text().splitlines())}


def refuse_beyond_memory(takes: int, what: str, device: str) -> None:
    """Raise UserError if `what`, which needs `takes` bytes, exceeds the free memory."""
    free = free_bytes(device)
    if free is not None and takes > free:
        needed = f"{what} would take {takes / 1e9:.1f} GB of memory"
        raise UserError(f"{needed}, {free / 1e9:.1f} GB are free; give fewer images or classes")


def log_large(parts: dict[str, int], free: int | None) -> None:
    """Warn in one line if the memory `parts` of a training, in bytes, exceed `WARNING_RATIO` of the free memory."""
    total = sum(parts.values())
    if free is not None and total > WARNING_RATIO * free:
        largest = ", ".join(f"{name} {size / 1e9:.2f}" for name, size in parts.items() if size)
        logger.warning("training will take about %.2f GB (%s) of %.2f GB free", total / 1e9, largest, free / 1e9)


def note_work() -> None:
    """Note that this process begins a run, or works on the runs of a sweep."""
    _started["runs"] += 1


def peak_memory_mb() -> float | None:
    """Peak resident memory of this process in MB.

    Returns:
        None if the process has done more than one run, because the peak may belong to another one, and on Windows,
        which does not report it.
    """
    if sys.platform == "win32" or _started["runs"] > 1:
        return None
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux kilobytes
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6, 1)
