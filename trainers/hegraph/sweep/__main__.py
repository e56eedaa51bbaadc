"""Does many runs with one command: a grid of data sets, configurations, methods, shots and seeds.

Every run leaves in its folder what it would leave alone. Runs that are finished are not done again.
"""

from __future__ import annotations

import argparse
import logging
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..utils.commands import Parser, command
from ..utils.errors import UserError, report, say
from .cluster import Demand, check_address, connected
from .grid import Run, read_grid
from .plan import do_runs, make_plan
from .workers import Result, run_here, run_in_workers

logger = logging.getLogger(__name__)

LISTS = ("datasets", "configs", "methods", "shots", "seeds")
# What a configuration key looks like
A_KEY = re.compile(r"OUTPUT_DIR|RESUME|SEED|USE_CUDA|VERSION|[A-Z][A-Z0-9_]*(\.[A-Z0-9_]+)+")


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the flags; what follows the values of a flag and looks like a configuration key begins the pairs."""
    parser = Parser(
        prog=command("sweep"),
        usage=f"{command('sweep')} [GRID.yaml] [FLAG ...] [KEY VALUE ...]",
        description=__doc__,
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
    add("--separate", action="store_true", help="each run in a process of its own, as its command line would do it")
    add("--ray", nargs="?", const="local", metavar="ADDRESS", help="do the runs on Ray: auto, HOST:PORT, local")
    add("--cpus-per-run", type=float, default=1.0, metavar="N", help="with --ray: CPUs of a run (default 1)")
    add("--gpus-per-run", type=float, default=0.0, metavar="N", help="with --ray: GPUs of a run (default 0), or 0.5")
    add("--retry-failed", action="store_true", help="run again what has failed before, which is skipped else")
    add("--dry-run", action="store_true", help="list what would be run, and how long it should take")
    add("--folders", action="store_true", help="list the output folders of the grid, without seeds, and run nothing")
    add("--verbose", action="store_true", help="show the messages of the runs, and not their warnings alone")
    args = parser.parse_intermixed_args(_with_address(sys.argv[1:] if arguments is None else arguments))
    for flag in LISTS:
        if getattr(args, flag) is not None:
            setattr(args, flag, _split(getattr(args, flag), args.words))
    args.vary = [[words[0], *_split(words[1:], args.words)] for words in args.vary]
    return args


def _with_address(arguments: Sequence[str]) -> list[str]:
    """The arguments with an address after `--ray` where none was given, so that it takes no other word for it."""
    found = list(arguments)
    for at, word in enumerate(found, 1):
        following = found[at] if at < len(found) else "--"
        if word == "--ray" and (following.endswith((".yaml", ".yml")) or A_KEY.fullmatch(following)):
            found.insert(at, "local")
            break
    return found


def _split(words: list[str], pairs: list[str]) -> list[str]:
    """The words before the first configuration key; it and those behind it are added to the pairs."""
    at = next((n for n, word in enumerate(words) if A_KEY.fullmatch(word)), len(words))
    pairs += words[at:]
    return words[:at]


def grid_of(args: argparse.Namespace) -> tuple[Path | None, dict]:
    """The file of the grid, and the fields of `Grid` that the flags give; UserError if a key has no value."""
    words = list(args.words)
    path = Path(words.pop(0)) if words and not A_KEY.fullmatch(words[0]) else None
    found = {name: said for name in (*LISTS, "root", "output", "suffix") if (said := getattr(args, name)) is not None}
    if args.case:
        found["cases"] = {name: _pairs(pairs) for name, *pairs in args.case}
    if args.separate:
        found["separate"] = True
    found["vary"] = {key: values for key, *values in args.vary}
    found["set"] = _pairs(words)
    return path, found


def _pairs(words: Sequence[str]) -> dict[str, str]:
    if len(words) % 2:
        raise UserError(f"options come as KEY VALUE pairs, but {' '.join(words)!r} has no value at its end")
    return dict(zip(words[0::2], words[1::2]))


def run_command(args: argparse.Namespace) -> int:
    """Does what the flags say; returns 1 if a run has failed."""
    if args.workers < 0:
        raise UserError(f"--workers must be at least 1, or left out, got {args.workers}")
    if args.ray is not None:
        if args.workers:
            raise UserError("--workers are of this machine, and --ray has its own; give one of them")
        check_address(args.ray)
    demand = Demand(args.cpus_per_run, args.gpus_per_run)
    grid = read_grid(*grid_of(args))
    runs = grid.runs()
    if args.folders:
        say("".join(f"{folder}\n" for folder in dict.fromkeys(run.folder.parent for run in runs)))
        return 0
    plan = make_plan(runs, args.retry_failed)
    if plan.finished:
        logger.info("%d of %d runs are finished: skipped", len(plan.finished), len(runs))
    if plan.failed:
        logger.info("%d runs failed before: skipped; --retry-failed runs them again", len(plan.failed))
    if args.dry_run:
        plan.show(grid.output)
        return 0
    with _place_of_runs(args, demand, bool(plan.to_do)) as start:
        progress = do_runs(plan.to_do, start)
    say(progress.summary(plan))
    return 1 if progress.failures or plan.failed else 0


@contextmanager
def _place_of_runs(
    args: argparse.Namespace, demand: Demand, is_needed: bool
) -> Iterator[Callable[[Sequence[Run]], Iterable[Result]]]:
    """Gives what does runs: this process, workers of it, or a Ray cluster, which is left at the end of the block."""
    if args.ray is not None and is_needed:
        with connected(args.ray, demand, args.verbose) as cluster:
            yield cluster.results
    elif args.workers:
        yield lambda runs: run_in_workers(runs, args.workers, args.verbose)
    else:
        yield lambda runs: run_here(runs, args.verbose)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code: 1 if a run has failed, 2 for a mistake of the user's."""
    return report(lambda: run_command(parse_arguments(arguments)))


if __name__ == "__main__":
    sys.exit(main())
