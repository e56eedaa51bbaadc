"""The command `sweep`, which runs a grid of data sets, methods, shots and seeds."""

import argparse
from collections.abc import Sequence
from typing import Any

from ..utils.command_line import Parser, command, run_cli

LISTS = ("datasets", "configs", "methods", "shots", "seeds")


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the arguments; a configuration key among the values of a flag begins the KEY VALUE pairs."""
    usage = f"{command('sweep')} [GRID.yaml] [OPTION ...] [KEY VALUE ...]"
    parser = Parser("sweep", "Run a grid of data sets, methods, shots and seeds; skip finished runs.", usage=usage)
    parser.examples = ("--datasets digits --configs mini --shots 1 4 --methods GDA APE", "grid.yaml --dry-run")
    parser.failure = "a run failed"
    add = parser.add_argument
    many: dict[str, Any] = {"nargs": "+", "metavar": "NAME"}
    add("words", nargs="*", metavar="GRID.yaml | KEY VALUE", help="grid file, and configuration keys of all runs")
    add("--datasets", **many, help="feature banks, YAML files of data sets, or names such as digits")
    add("--configs", **many, help="YAML files of the method, or names such as vit_b32")
    add("--methods", **many, help="methods, values of --trainer, or all (default: HeGraphAdapter)")
    add("--shots", nargs="+", metavar="N", help="training images per class (default: 16)")
    add("--seeds", nargs="+", metavar="N", help="random seeds (default: 1 2 3)")
    suffix = "end of the folder names, after CONFIG_Nshots; {BETA} stands for the value of a varied key TRAINER.X.BETA"
    more: dict[str, Any] = {"nargs": "+", "action": "append", "default": []}
    add("--vary", **more, metavar=("KEY", "VALUE"), help="configuration key and its values, one run for each value")
    add(
        "--case",
        **more,
        metavar=("NAME", "KEY VALUE"),
        help="name of a case to compare, and the keys that it changes; repeatable",
    )
    add("--root", metavar="DIR", help="folder of the data sets (default: their DATASET.ROOT, or data)")
    add("--output", metavar="DIR", help="folder of DATASET/METHOD/CONFIG_Nshots/seedN (default: output)")
    add("--suffix", metavar="TEXT", help=suffix)
    add("--workers", type=int, default=0, metavar="N", help="number of worker processes (default: none)")
    add("--separate", action="store_true", default=None, help="start a new process for each run")
    add("--ray", nargs="?", const="local", metavar="ADDRESS", help="run on Ray: auto, HOST:PORT or local")
    add("--cpus-per-run", type=float, default=1.0, metavar="N", help="CPUs of a run on Ray")
    add("--gpus-per-run", type=float, default=0.0, metavar="N", help="GPUs of a run on Ray, such as 0.5 (default: 0)")
    add("--retry-failed", action="store_true", help="run again the runs that failed before")
    add("--dry-run", action="store_true", help="list the runs and their expected time without running them")
    add("--folders", action="store_true", help="list the output folders, without seeds, and run nothing")
    add("--verbose", action="store_true", help="also show the messages of the runs that are not warnings")
    args = parser.parse_intermixed_args(arguments)
    from ..config import split_at_key  # slow to import

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
    """Run the command and return its exit code, 1 if a run failed."""

    def sweep() -> int:
        args = parse_arguments(arguments)
        from ..experiments.sweep.plan import run_command  # torch takes seconds to import

        return run_command(args)

    return run_cli(sweep, continues=True)
