"""A step of building the wheel: the wheel carries the commit it was built from, which records of runs then name."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

MARK = ".hegraph-installed"  # as scripts/hegraph/install.sh calls it


class CommitHook(BuildHookInterface):
    """Adds the file that `experiments/provenance.py` reads the commit from, as copies into CoOp have it."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable":  # the checkout itself is used, and git knows its commit
            return
        self.folder = tempfile.TemporaryDirectory()
        mark = Path(self.folder.name) / MARK
        mark.write_text(f"{self.commit()}\n", encoding="utf-8")
        build_data["force_include"][str(mark)] = f"hegraph/{MARK}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        if version != "editable":
            self.folder.cleanup()

    def commit(self) -> str:
        """The commit of the checkout, with "-dirty" if tracked files differ; "unknown" outside a git checkout."""
        command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
        try:
            described = subprocess.run(command, cwd=self.root, capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return "unknown"
        return described.stdout.strip()
