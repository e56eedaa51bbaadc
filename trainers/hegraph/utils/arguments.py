"""The parser of every command line: a mistake is one line, and names what was meant."""

from __future__ import annotations

import argparse
import re
import sys
from difflib import get_close_matches
from typing import Any, NoReturn

from .errors import ReaderGone, UserError, report_mistake, say

_CHOICE = re.compile(r"invalid choice: '(.*?)'")


class Parser(argparse.ArgumentParser):
    """Parses a command line. Its help may go to a pipe whose reader leaves, or to a full disk."""

    def error(self, message: str) -> NoReturn:
        """Ends the program with exit code 2 after one line."""
        raise SystemExit(report_mistake(f"{message}{self._hint(message)} (usage: {self.prog} --help)"))

    def print_help(self, file: Any = None) -> None:
        if file not in (None, sys.stdout):
            super().print_help(file)
            return
        try:
            say(self.format_help())
        except ReaderGone:
            raise SystemExit(0) from None
        except UserError as error:
            raise SystemExit(report_mistake(str(error))) from None

    def _hint(self, message: str) -> str:
        if (wrong := _CHOICE.search(message)) is not None:
            return _did_you_mean(wrong[1], re.findall(r"'([^']*)'", message[wrong.end() :]))
        if message.startswith("unrecognized arguments: -"):
            return _did_you_mean(message.split()[2].partition("=")[0], list(self._option_string_actions))
        return ""


def _did_you_mean(word: str, known: list[str]) -> str:
    nearest = get_close_matches(word, known, n=1)
    return f"; did you mean {nearest[0]!r}?" if nearest else ""
