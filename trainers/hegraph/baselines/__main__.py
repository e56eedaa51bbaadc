"""Prints the names of all methods, one a line, HeGraphAdapter's last: what `--trainer` may say."""

from __future__ import annotations

import argparse
import sys

from ..utils.commands import PACKAGE
from . import METHODS, needs_backbone

OURS = "HeGraphAdapter"


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog=f"python -m {PACKAGE}.baselines", description=__doc__)
    parser.add_argument(
        "--from-bank", action="store_true", help="only those that run on a feature bank, without the backbone"
    )
    args = parser.parse_args(arguments)
    names = [name for name in METHODS if not (args.from_bank and needs_backbone(name))]
    sys.stdout.write("".join(f"{name}\n" for name in [*names, OURS]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
