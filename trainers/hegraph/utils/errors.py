"""What a user's mistake looks like: one line, exit code 2, no traceback."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable
from difflib import get_close_matches

from .commands import PACKAGE

MAX_LISTED = 20  # longer lists of known names are shown only where none of them is near


class UserError(ValueError):
    """The input is wrong, not the program. The message says what came, what is allowed, how to mend it."""


def unknown(kind: str, name: str, allowed: Iterable[str]) -> UserError:
    """Builds the error for a name that is not known, with the nearest known one.

    Args:
        kind: What was named, such as "data set".
        name: The name that came.
        allowed: Every name that is known.
    """
    allowed = sorted(allowed)
    by_lower_case = {a.lower(): a for a in allowed}
    nearest = get_close_matches(name.lower(), by_lower_case, n=1, cutoff=0.5)
    hint = f"; did you mean {by_lower_case[nearest[0]]!r}?" if nearest else ""
    listed = f" (known: {', '.join(allowed)})" if not nearest or len(allowed) <= MAX_LISTED else ""
    return UserError(f"unknown {kind} {name!r}{hint}{listed}")


def show_messages() -> None:
    """Shows on stderr what this package has to say, and warnings of others, unless logging is set up already."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger(PACKAGE).setLevel(logging.INFO)


def report(command: Callable[[], None]) -> int:
    """Runs a command-line program; returns its exit code.

    That is 0, or 2 after one line on a user's mistake, or 130 after an interruption from the keyboard.
    """
    try:
        command()
    except KeyboardInterrupt:
        sys.stderr.write("\ninterrupted; the same command goes on from the last checkpoint\n")
        return 130
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0
