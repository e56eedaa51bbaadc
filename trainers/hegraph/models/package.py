"""Copies of this package and its requirements, for Spaces and inference endpoints, which need no release on PyPI.

An inference endpoint runs `handler.py` of a model folder. This package does not run it when it loads a model.
"""

import re
import shutil
import sys
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

from ..utils.errors import UserError

PACKAGE = Path(__file__).parents[1]
DISTRIBUTION = "hegraph-adapter"  # name in pyproject.toml
EXTRA = re.compile(r"""extra == ["']([\w-]+)["']""")  # marker of a requirement of an extra
HANDLER = '''\
"""Handler of a Hugging Face inference endpoint, which runs this file."""

from hegraph.models.endpoint import EndpointHandler

__all__ = ["EndpointHandler"]
'''


def write_endpoint(folder: Path, backbone: str) -> None:
    """Write the files of an endpoint into the folder of a model.

    Args:
        folder: Model folder.
        backbone: Name of the backbone, as in `load_backbone`; "" if unknown.

    Raises:
        UserError: If this package is not installed, or it is unknown what the backbone needs (`extras_of`).
    """
    lines = requirements(backbone)
    copy_package(folder / "hegraph")
    (folder / "handler.py").write_text(HANDLER, encoding="utf-8")
    (folder / "requirements.txt").write_text("\n".join([*lines, ""]), encoding="utf-8")


def copy_package(target: Path) -> None:
    """Copy this package to a new folder."""
    shutil.copytree(PACKAGE, target, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))


def requirements(backbone: str = "") -> list[str]:
    """Requirements of this package and of a backbone, from the metadata of the installed distribution.

    Args:
        backbone: Name of the backbone, as in `load_backbone`; "" for this package alone.

    Raises:
        UserError: If this package is not installed, or it is unknown what the backbone needs (`extras_of`).
    """
    from ..features.backbones.loading import extras_of  # slow to import

    try:
        declared = requires(DISTRIBUTION) or []
    except PackageNotFoundError as error:
        run = f"run: {sys.executable} -m pip install {PACKAGE.parents[1]}"
        raise UserError(f"expected the installed package, whose requirements are copied, found none; {run}") from error
    extras = extras_of(backbone) if backbone else ()
    lines = []
    for line in declared:
        extra = EXTRA.search(line)
        if extra is None:
            lines.append(line)
        elif extra[1] in extras:
            lines.append(line.partition(";")[0].strip())
    return lines
