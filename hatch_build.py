"""A step of building the source distribution and the wheel: what they carry beside the files of the checkout.

Both carry the commit that they were built from, which the records of runs name. The wheel also carries the folder
`configs`, which goes into the package. An editable install has neither, since it uses the checkout itself.
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

MARK = ".hegraph-installed"  # copies that scripts/hegraph/install.sh makes have such a file too
PACKAGE = "trainers/hegraph"


class CommitHook(BuildHookInterface):
    """Adds the configurations, and the file that `utils/commit.py` reads the commit from."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called by hatchling before it builds; `version` is the kind of wheel, "standard" or "editable"."""
        self.folder = tempfile.TemporaryDirectory()
        if version == "editable":
            return
        root, is_wheel = Path(self.root), self.target_name == "wheel"
        if is_wheel:
            build_data["force_include"][str(root / "configs")] = "hegraph/configs"
        if not (root / PACKAGE / MARK).exists():  # a source distribution has the file
            mark = Path(self.folder.name) / MARK
            mark.write_text(f"{self.commit()}\n", encoding="utf-8")
            build_data["force_include"][str(mark)] = f"{'hegraph' if is_wheel else PACKAGE}/{MARK}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Called by hatchling after it has built the files."""
        self.folder.cleanup()

    def commit(self) -> str:
        """The commit of the checkout, with "-dirty" if tracked files differ; "unknown" outside a git checkout."""
        command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
        try:
            described = subprocess.run(command, cwd=self.root, capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return "unknown"
        return described.stdout.strip()
