"""Seeds of the global random generators."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def set_random_seed(seed: int) -> None:
    """Seed Python, numpy and torch, as Dassl does."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)  # seeds GPUs as well


@contextmanager
def preserved_generators() -> Iterator[None]:
    """Restore the global random generators of Python, numpy and torch at the end of the block."""
    python = random.getstate()
    numpy = np.random.get_state()
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
