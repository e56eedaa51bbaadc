"""What all command lines of this package share: how they are called, and how their flags are read.

A command line is `report(lambda: work(parse_arguments(arguments)))`, with `report` of `errors.py`.
"""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

from .errors import PACKAGE, UserError, say


def command(arguments: str = "") -> str:
    """How the user calls a command line: "python -m trainers.hegraph ARGUMENTS", or "hegraph ARGUMENTS"."""
    program = PACKAGE if PACKAGE == "hegraph" else f"python -m {PACKAGE}"
    return f"{program} {arguments}".rstrip()


class Parser(argparse.ArgumentParser):
    """Parses a command line, and shows its description as it is. A mistake in it is a `UserError`."""

    def __init__(self, formatter_class: Any = argparse.RawDescriptionHelpFormatter, **about: Any) -> None:
        super().__init__(formatter_class=formatter_class, **about)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (usage: {self.prog} --help)")

    def print_help(self, file: Any = None) -> None:
        say(self.format_help())
