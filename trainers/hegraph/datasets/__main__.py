"""Says whether data sets are whole, or downloads them.

DATASET is a name such as Caltech101, the name of its file in configs/datasets, such as dtd, or a common short name,
such as pets. Case, `_` and `-` are ignored. `check folder` reads your own images, which --root then names as for
training.
"""

from __future__ import annotations

import argparse
import sys

from ..utils.commands import Parser, command
from ..utils.errors import UserError, report, say
from .check import check_dataset, check_own_images
from .download import download
from .own import NAME as OWN
from .registry import resolve_name, stored_datasets


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = Parser(prog=command("datasets"), description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser("check", help="say what is ready and what is missing")
    check.add_argument("datasets", nargs="*", metavar="DATASET", help="default: all fifteen; folder: your own images")
    fetch = commands.add_parser("download", help="fetch what is missing")
    fetch.add_argument("datasets", nargs="+", metavar="DATASET")
    for subparser in (check, fetch):
        subparser.add_argument(
            "--root", required=True, metavar="DATA", help="folder that holds the data sets; of folder, your images"
        )
    return parser.parse_args(arguments)


def check_command(names: list[str], root: str) -> bool:
    """Writes the state of each data set to stdout; returns whether all are ready."""
    ready = True
    for name in names:
        state = check_own_images(root) if name == OWN else check_dataset(name, root)
        first, *more = state.lines
        say(f"{name:20} {'ready' if state.ready else 'not ready':10} {first}\n")
        say("".join(f"{'':31} {line}\n" for line in more))
        ready = ready and state.ready
    return ready


def main(arguments: list[str] | None = None) -> int:
    """Runs a command.

    Returns:
        The exit code: 0, or 1 if something is missing, also after a download, or 2 for a mistake of the user's.
    """

    def run() -> int:
        args = parse_arguments(arguments)
        known = stored_datasets()
        names = [resolve_name(name, among=[*known, OWN]) for name in args.datasets] or list(known)
        if OWN in names and (args.command == "download" or len(names) > 1):
            raise UserError(
                f"{OWN} is your own images: they are not downloaded, and are checked without other data sets"
            )
        if args.command == "download":
            for name in names:
                download(name, args.root)
        return int(not check_command(names, args.root))

    return report(run)


if __name__ == "__main__":
    sys.exit(main())
