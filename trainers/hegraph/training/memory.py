"""An estimate of the memory that a training takes.

`docs/benchmarks.md` has the formula, and how it compares with measurements.

Shapes: K classes, N cached images (K times the shots), d feature width, V views, B batch.
"""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from ..method.closed_form import CHUNK_ROWS
from ..utils.errors import UserError
from .batches import products_bytes

logger = logging.getLogger(__name__)

FLOAT, DOUBLE = 4, 8  # bytes
SHARE = 0.5  # an estimate above this share of the free memory is logged


def training_bytes(
    num_classes: int, num_images: int, width: int, views: int, batch: int, messages: bool = True
) -> dict[str, int]:
    """Bytes that a training of the full variant takes, by what takes them, without the features and the process.

    `messages` says whether there are messages in closed form. Those to text nodes are worked out after the last step,
    in double precision; "at the end" is how much more that takes than a step.
    """
    nodes, cached = num_classes * width, num_images * width  # one feature or parameter per class; one feature per image
    products = products_bytes(views, num_images)
    parts = {
        "keys": 2 * cached * FLOAT,  # the keys, and the mean over views that they are made from
        "graph": (10 * nodes + min(num_classes, 2 * width) * num_classes) * FLOAT,
        "parameters": 4 * (3 * width**2 + 6 * nodes) * FLOAT,  # with gradients and AdamW's two moments
        "step": (num_images * batch * (2 if products else 1) + 24 * nodes) * FLOAT,
        "products": products,
        "messages": 0,
        "at the end": 0,
    }
    if messages:
        parts["messages"] = (cached + 2 * nodes) * FLOAT + (width**2 + 3 * nodes) * DOUBLE
        block = min(num_images, CHUNK_ROWS) * width
        parts["at the end"] = max((3 * block + 3 * nodes + 5 * width**2) * DOUBLE - parts["step"], 0)
    return parts


def free_bytes(device: str = "cpu") -> int | None:
    """Memory of "cpu", "cuda" or "cuda:N" that is free without swapping; None where the system does not say."""
    if device != "cpu":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):  # no Linux
        return None


def refuse_beyond_memory(takes: int, what: str, device: str) -> None:
    """Raises UserError if `what`, which takes so many bytes, would take more than is free."""
    free = free_bytes(device)
    if free is not None and takes > free:
        raise UserError(f"{what} would take {takes / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB are free; give fewer")


def log_large(parts: dict[str, int], free: int | None) -> None:
    """Logs the estimate in one line if it is more than `SHARE` of the free memory."""
    total = sum(parts.values())
    if free is not None and total > SHARE * free:
        largest = ", ".join(f"{name} {size / 1e9:.2f}" for name, size in parts.items() if size)
        logger.warning("training will take about %.2f GB (%s) of %.2f GB free", total / 1e9, largest, free / 1e9)
