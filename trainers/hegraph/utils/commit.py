"""The commit of this package, which records and `--version` name."""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path

INSTALLED = Path(__file__).parents[1] / ".hegraph-installed"


@cache
def git_commit() -> str | None:
    """The commit of this package, with "-dirty" if tracked files differ; None if it is not known. A copy that
    `install.sh` put into a CoOp checkout keeps its commit in a file, since git would name CoOp's.
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
