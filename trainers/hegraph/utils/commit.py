"""Commit of this package and versions of its dependencies, for records and `--version`."""

import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

INSTALLED = Path(__file__).parents[1] / ".hegraph-installed"


@cache
def git_commit() -> str | None:
    """Return the commit of this package, with "-dirty" if tracked files differ; None if it is unknown.

    A copy that `install.sh` made in a CoOp checkout has its commit in a file, as git would return the one of CoOp.
    """
    if INSTALLED.is_file():
        return INSTALLED.read_text(encoding="utf-8").strip()
    try:
        git = ["git", "-C", str(Path(__file__).parent)]
        described = [*git, "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
        return subprocess.check_output(described, stderr=subprocess.DEVNULL, text=True).strip()
    except (OSError, subprocess.CalledProcessError):
        return None


@cache  # imported packages stay the same, even if other versions are installed meanwhile
def versions() -> dict[str, str]:
    """Versions of Python and of the packages that compute the results; "none" for a package that is not installed."""
    import torch  # slow to import, and `--version` does not need it

    packages = {"python": platform.python_version(), "torch": torch.__version__}  # with the build, such as +cpu
    for package in ("open_clip_torch", "torch_geometric", "numpy", "scikit-learn"):
        try:
            packages[package] = version(package)
        except PackageNotFoundError:  # only the reference layer needs PyTorch Geometric
            packages[package] = "none"
    return packages
