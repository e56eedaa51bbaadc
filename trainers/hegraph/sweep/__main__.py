"""Does many runs with one command: a grid of data sets, configurations, methods, shots and seeds.

Every run leaves in its folder what it would leave alone. Runs that are finished are not done again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from ..utils.errors import Parser, command, run_cli

LISTS = ("datasets", "configs", "methods", "shots", "seeds")


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the flags; what follows the values of a flag and looks like a configuration key begins the pairs."""
    parser = Parser(
        prog=command("sweep"), usage=f"{command('sweep')} [GRID.yaml] [FLAG ...] [KEY VALUE ...]", description=__doc__
    )
    add = parser.add_argument
    add("words", nargs="*", metavar="GRID.yaml | KEY VALUE", help="a file of the grid; keys that all runs have")
    add("--datasets", nargs="+", help="feature banks, or configurations of data sets: paths, or names such as digits")
    add("--configs", nargs="+", help="configurations of the method: paths, or names such as vit_b32")
    add("--methods", nargs="+", help="as --trainer says them; all: every one (default HeGraphAdapter)")
    add("--shots", nargs="+", help="training images per class (default 16)")
    add("--seeds", nargs="+", help="from 0 (default 1 2 3)")
    again: dict[str, Any] = {"nargs": "+", "action": "append", "default": []}
    add("--vary", **again, metavar="KEY VALUE ...", help="run each value of a key")
    add("--case", **again, metavar="NAME [KEY VALUE ...]", help="run with these keys, too")
    add("--root", help="folder of the data sets (default: their DATASET.ROOT, or data)")
    add("--output", help="where the folders DATASET/METHOD/CONFIG_Nshots/seedN go (default output)")
    add("--suffix", help="put behind the folder of shots; {NAME} is the value of the varied key that ends in NAME")
    add("--workers", type=int, default=0, help="worker processes (default: none, all in this process)")
    add("--separate", action="store_true", default=None, help="each run in a process of its own, by its command line")
    add("--ray", nargs="?", const="local", metavar="ADDRESS", help="do the runs on Ray: auto, HOST:PORT, local")
    add("--cpus-per-run", type=float, default=1.0, metavar="N", help="with --ray: CPUs of a run (default 1)")
    add("--gpus-per-run", type=float, default=0.0, metavar="N", help="with --ray: GPUs of a run (default 0), or 0.5")
    add("--retry-failed", action="store_true", help="run again what has failed before, which is skipped else")
    add("--dry-run", action="store_true", help="list what would be run, and how long it should take")
    add("--folders", action="store_true", help="list the output folders of the grid, without seeds, and run nothing")
    add("--verbose", action="store_true", help="show the messages of the runs, and not their warnings alone")
    args = parser.parse_intermixed_args(arguments)
    from ..config import split_at_key  # --help needs no configuration

    for flag in LISTS:
        if (words := getattr(args, flag)) is not None:
            values, pairs = split_at_key(words)
            setattr(args, flag, values)
            args.words += pairs
    for words in args.vary:
        words[1:], pairs = split_at_key(words[1:])
        args.words += pairs
    return args


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code: 1 if a run has failed, 2 for a mistake of the user's."""

    def sweep() -> int:
        args = parse_arguments(arguments)
        from .plan import run_command  # torch takes seconds to import

        return run_command(args)

    return run_cli(sweep)


if __name__ == "__main__":
    sys.exit(main())
