"""Where a result comes from: versions, commit, memory. Also the one place that seeds the generators."""

from __future__ import annotations

import platform
import random
import subprocess
import sys
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch

INSTALLED = Path(__file__).parents[1] / ".hegraph-installed"

try:
    import resource
except ImportError:  # Windows has no such module
    resource = None  # type: ignore[assignment]  # mypy knows the module of this platform only


def set_random_seed(seed: int) -> None:
    """Seeds Python, numpy and torch, as Dassl does."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.cuda.manual_seed_all(seed)


@cache
def versions() -> dict[str, str]:
    """Versions of Python and of the packages that compute the numbers.

    They are asked for once in a process, as the commit is: what it has imported stays, whatever is installed meanwhile.
    """
    found = {"python": platform.python_version(), "torch": torch.__version__}  # with the build, such as +cpu
    for package in ("open_clip_torch", "torch_geometric", "numpy", "scikit-learn"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # no run needs PyTorch Geometric, only the reference layer does
            found[package] = "none"
    return found


@cache
def git_commit() -> str | None:
    """The commit of this package, with "-dirty" if tracked files differ; None if it is not known.

    It is asked for once in a process: what the process has imported stays as it was, whatever becomes of the files.

    A copy that `scripts/hegraph/install.sh` put into a CoOp checkout keeps its commit in a file, since git would name
    CoOp's.
    """
    if INSTALLED.is_file():
        return INSTALLED.read_text(encoding="utf-8").strip()
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            cwd=Path(__file__).parent, capture_output=True, text=True, check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return None
    return described.stdout.strip()


def peak_memory_mb() -> float | None:
    """Peak resident memory of this process, in MB; None on Windows, which does not say."""
    if resource is None:
        return None
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux kilobytes
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6, 1)


def reset_peak_memory() -> None:
    """Has `peak_memory_mb` count from here on; only Linux can, elsewhere the peak stays that of the process."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
