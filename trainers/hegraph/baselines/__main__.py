"""Prints the names of all methods, one a line, HeGraphAdapter's last: what `--trainer` may say."""

from __future__ import annotations

from ..utils import interrupts  # noqa: F401  (it acts while what follows is imported)

# isort: split

import sys

from ..utils.arguments import Parser
from ..utils.commands import PACKAGE
from ..utils.errors import report, say
from . import METHODS, needs_backbone

OURS = "HeGraphAdapter"


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = Parser(prog=f"python -m {PACKAGE}.baselines", description=__doc__)
    parser.add_argument(
        "--from-bank", action="store_true", help="only those that run on a feature bank, without the backbone"
    )
    args = parser.parse_args(arguments)
    names = [name for name in METHODS if not (args.from_bank and needs_backbone(name))]
    return report(lambda: say("".join(f"{name}\n" for name in [*names, OURS])))


if __name__ == "__main__":
    sys.exit(main())
