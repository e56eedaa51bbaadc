"""What all command lines of this package share: how they are called, and how their flags are read.

A command line is `report(lambda: work(parse_arguments(arguments)))`, with `report` of `errors.py`: it turns mistakes of
the user's into one line, interrupts into exit code 130, and what the work returns into the exit code.
"""

from __future__ import annotations

import argparse
import re
from difflib import get_close_matches
from typing import Any, NoReturn

from .errors import PACKAGE, UserError, say

_CHOICE = re.compile(r"invalid choice: '(.*?)'")


def command(arguments: str = "") -> str:
    """How the user calls a command line with these arguments, the first of which may be a sub-command.

    "--shots 1" is "python -m trainers.hegraph --shots 1" in a checkout, and "hegraph --shots 1" once installed.
    """
    program = PACKAGE if PACKAGE == "hegraph" else f"python -m {PACKAGE}"
    return f"{program} {arguments}".rstrip()


class Parser(argparse.ArgumentParser):
    """Parses a command line, and shows its description as it is. A mistake in it is a `UserError`, which names what was
    meant.
    """

    def __init__(self, formatter_class: Any = argparse.RawDescriptionHelpFormatter, **about: Any) -> None:
        super().__init__(formatter_class=formatter_class, **about)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}{self._hint(message)} (usage: {self.prog} --help)")

    def print_help(self, file: Any = None) -> None:
        say(self.format_help())

    def _hint(self, message: str) -> str:
        word, known = "", []
        if (wrong := _CHOICE.search(message)) is not None:
            word, known = wrong[1], re.findall(r"'([^']*)'", message[wrong.end() :])
        elif message.startswith("unrecognized arguments: -"):
            word, known = message.split()[2].partition("=")[0], list(self._option_string_actions)
        nearest = get_close_matches(word, known, n=1)
        return f"; did you mean {nearest[0]!r}?" if nearest else ""
