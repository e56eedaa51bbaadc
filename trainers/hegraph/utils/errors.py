"""How a mistake of the user's is reported: one line on stderr, exit code 2, no traceback."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable
from difflib import get_close_matches

from .commands import PACKAGE

MAX_LISTED = 20  # a longer list of known names is shown only if none of them resembles the one that came


class UserError(ValueError):
    """The input is wrong, and not the program. The message says what came, what is allowed and how to mend it."""


def unknown(kind: str, name: str, allowed: Iterable[str]) -> UserError:
    """Builds the error for a name that is not known; its message suggests the nearest known name.

    Args:
        kind: What the name stands for, such as "data set".
        name: The name that came.
        allowed: Every name that is known.
    """
    allowed = sorted(allowed)
    by_lower_case = {a.lower(): a for a in allowed}
    nearest = get_close_matches(name.lower(), by_lower_case, n=1, cutoff=0.5)
    hint = f"; did you mean {by_lower_case[nearest[0]]!r}?" if nearest else ""
    listed = f" (known: {', '.join(allowed)})" if not nearest or len(allowed) <= MAX_LISTED else ""
    return UserError(f"unknown {kind} {name!r}{hint}{listed}")


def first_line(error: Exception) -> str:
    """The first line of an exception's text, or its type if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def show_messages() -> None:
    """Shows this package's log messages and the warnings of other packages on stderr.

    Where the calling program has set up logging itself, its handlers stay as they are.
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger(PACKAGE).setLevel(logging.INFO)


def report(command: Callable[[], None]) -> int:
    """Runs a command-line program and turns what it raises into an exit code.

    Returns:
        0 if the program ended well, 2 if it raised `UserError` (its message is printed), 130 if it was interrupted
        from the keyboard. Any other exception passes through, with its traceback.
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
