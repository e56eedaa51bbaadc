"""Copies of this package and its requirements, for Spaces and inference endpoints, which need no release on PyPI.

An inference endpoint runs `handler.py` of a model folder. This package does not run it when it loads a model.
"""

import shutil
import sys
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

from ..utils.errors import UserError

PACKAGE = Path(__file__).parents[1]
DISTRIBUTION = "hegraph-adapter"  # name in pyproject.toml
HANDLER = '''\
"""Handler of a Hugging Face inference endpoint, which runs this file."""

from hegraph.models.endpoint import EndpointHandler

__all__ = ["EndpointHandler"]
'''


def write_endpoint(folder: Path) -> None:
    """Write the files of an endpoint into a model folder; UserError if this package is not installed."""
    lines = requirements()
    copy_package(folder / "hegraph")
    (folder / "handler.py").write_text(HANDLER, encoding="utf-8")
    (folder / "requirements.txt").write_text("\n".join([*lines, ""]), encoding="utf-8")


def copy_package(target: Path) -> None:
    """Copy this package to a new folder."""
    shutil.copytree(PACKAGE, target, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))


def requirements() -> list[str]:
    """Requirements of this package without extras, from the metadata of the installed distribution."""
    try:
        return [line for line in requires(DISTRIBUTION) or [] if "extra ==" not in line]
    except PackageNotFoundError as error:
        run = f"run: {sys.executable} -m pip install {PACKAGE.parents[1]}"
        raise UserError(f"expected the installed package, whose requirements are copied, found none; {run}") from error
