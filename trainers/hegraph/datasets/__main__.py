"""python -m trainers.hegraph.datasets: looks whether data sets are whole, or fetches them.

    python -m trainers.hegraph.datasets check [DATASET ...] --root DATA
    python -m trainers.hegraph.datasets download DATASET ... --root DATA

DATASET is a name such as Caltech101, or the name of its file in configs/datasets, such as caltech101.
"""

from __future__ import annotations

import argparse
import sys

from ..utils.errors import report, show_messages, unknown
from .catalog import CATALOG
from .check import check_dataset
from .fetch.download import download

# Files of configs/datasets that are not named as their data set in small letters
FILE_NAMES = {
    "dtd": "DescribableTextures", "fgvc_aircraft": "FGVCAircraft", "oxford_flowers": "OxfordFlowers",
    "oxford_pets": "OxfordPets", "stanford_cars": "StanfordCars", "imagenet_a": "ImageNetA",
    "imagenet_r": "ImageNetR", "imagenet_sketch": "ImageNetSketch",
}  # fmt: skip


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m trainers.hegraph.datasets",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser("check", help="say what is ready and what is missing")
    check.add_argument("datasets", nargs="*", metavar="DATASET", help="default: all fifteen")
    fetch = commands.add_parser("download", help="fetch what is missing")
    fetch.add_argument("datasets", nargs="+", metavar="DATASET")
    for command in (check, fetch):
        command.add_argument("--root", required=True, metavar="DATA", help="folder that holds the data sets")
    return parser.parse_args(arguments)


def catalog_name(name: str) -> str:
    """The key of `CATALOG` that a user means.

    Raises:
        UserError: If there is none.
    """
    by_small_name = {key.lower(): key for key in CATALOG} | FILE_NAMES
    if name.lower() not in by_small_name:
        raise unknown("data set", name, (*CATALOG, *FILE_NAMES))
    return by_small_name[name.lower()]


def check_command(names: list[str], root: str) -> bool:
    """Prints the state of each data set; returns whether all are ready."""
    ready = True
    for name in names:
        state = check_dataset(name, root)
        first, *more = state.lines
        sys.stdout.write(f"{name:20} {'ready' if state.ready else 'not ready':10} {first}\n")
        sys.stdout.writelines(f"{'':31} {line}\n" for line in more)
        ready = ready and state.ready
    return ready


def main(arguments: list[str] | None = None) -> int:
    """Runs a command; returns the exit code: 1 if `check` finds something missing, 2 for a mistake of the user's."""
    show_messages()
    args = parse_arguments(arguments)
    ready = True

    def command() -> None:
        nonlocal ready
        names = [catalog_name(name) for name in args.datasets] or list(CATALOG)
        if args.command == "check":
            ready = check_command(names, args.root)
            return
        for name in names:
            download(name, args.root)
        check_command(names, args.root)

    return report(command) or int(not ready)


if __name__ == "__main__":
    sys.exit(main())
