"""What a command says: results on standard output; a mistake of the user's in one line on stderr, with exit code 2.

Standard output may be closed by its reader, full, or a terminal that has not every character.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from difflib import get_close_matches

import yaml
from pydantic import ValidationError

from .signals import noted_interrupts

PACKAGE = __name__.rpartition(".utils.")[0]  # "trainers.hegraph" in a checkout, "hegraph" once installed
MAX_LIST_LENGTH = 180  # characters
MAX_MESSAGE = 280  # characters of a message, without the word "error" before it
OUT_OF_MEMORY = "out of memory; smaller batches (DATALOADER.*.BATCH_SIZE), views (FEATURES.VIEWS) or files need less"


class UserError(ValueError):
    """The input is wrong, and not the program. The message says what came, what is allowed and how to mend it."""


class ReaderGone(Exception):
    """Whoever read standard output has closed it, as `head` does once it has its lines."""


def unknown(kind: str, name: str, allowed: Iterable[str]) -> UserError:
    """Builds the error for a name that is not known; its message suggests the nearest known one.

    Args:
        kind: What the name stands for, such as "data set".
        name: The name that came.
        allowed: Every name that is known; a long list is not shown.
    """
    names = sorted(allowed)
    by_lower_case = {known.lower(): known for known in names}
    near = [by_lower_case[word] for word in get_close_matches(name.lower(), by_lower_case, n=1, cutoff=0.5)]
    hint = f"; did you mean {near[0]!r}?" if near else ""
    listed = f" (known: {', '.join(names)})" if names else ""
    if len(listed) > MAX_LIST_LENGTH:
        listed = "" if near else f" ({len(names)} are known)"
    return UserError(f"unknown {kind} {shortened(name, 80)!r}{hint}{listed}")


def shortened(text: str, most: int) -> str:
    """A text of at most so many characters; of a longer one, the start and the end are kept."""
    if len(text) <= most:
        return text
    end = (most - 5) // 3
    return f"{text[: most - 5 - end]} ... {text[len(text) - end :]}"


def one_line(message: str) -> str:
    r"""A message as it is shown: one line below `MAX_MESSAGE`, without control characters and halves of characters."""
    return shortened(printable(" ".join(message.split())), MAX_MESSAGE)


def printable(text: str) -> str:
    r"""A text whose control characters and halves of characters are written as `\n`, `\x1b`, `\udcff` and so on."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def report_mistake(message: str) -> int:
    """Shows a mistake of the user's in one line on stderr; returns the exit code, 2."""
    with suppress(OSError, ValueError, AttributeError):  # nobody may be there to read it
        sys.stderr.write(f"error: {one_line(message)}\n")
        sys.stderr.flush()
    return 2


def first_line(error: BaseException) -> str:
    """What a library said when it raised an exception, in one line. Every message that quotes a library asks this."""
    if isinstance(error, ValidationError):
        return first_problem(error)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"line {error.problem_mark.line + 1}: {error.problem}"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, MemoryError):
        return "there is no memory for what it says that it holds"
    if isinstance(error, KeyError) and error.args:
        return f"it lacks {error.args[0]!r:.60}"
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def first_problem(error: ValidationError) -> str:
    """The first thing that is wrong with a value of a schema, in one line: where, what came, what is allowed."""
    found = error.errors(include_url=False)[0]
    where = repr(".".join(map(str, found["loc"])))[1:-1] or "the file"  # a key may hold a line break
    silent = found["type"] in ("missing", "extra_forbidden", "value_error")  # or the message says what came
    came = "" if silent else f", got {_shown(found['input'])}"
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return f"{where}: {found['msg']}{came}{more}"


def _shown(value: object) -> str:
    try:
        return f"{value!r:.60}"
    except (RecursionError, ValueError):  # nested too deeply, or a number of thousands of digits
        return f"a {type(value).__name__}"


class _OneLine(logging.Formatter):
    """Log messages as `one_line` shows them, since they name files and classes, which may be called anything."""

    def format(self, record: logging.LogRecord) -> str:
        return one_line(super().format(record))


def show_messages() -> None:
    """Shows this package's log messages and the warnings of other packages on stderr, each in one line.

    Where the calling program has set up logging itself, its handlers stay as they are. A standard error that was closed
    before the program began is replaced by one that nobody reads, since progress bars and warnings write to it.
    """
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115  (it stays open as long as the program runs)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_OneLine())
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.raiseExceptions = False  # a stderr that cannot be written is no reason for a traceback
    logging.getLogger(PACKAGE).setLevel(logging.INFO)


def report(command: Callable[[], int | None]) -> int:
    """Runs a command line, shows what it logs, and turns what it returns or raises into an exit code.

    Args:
        command: Parses the flags and does the work. It returns its exit code; None is 0.

    Returns:
        The command's exit code; 0 if whoever read its output has seen enough; 2 if it raised `UserError`, or the
        machine refused something (no permission, no space, no memory, a name that is too long), which is told in one
        line; 130 if it was interrupted from the keyboard or terminated. Any other exception passes through, with its
        traceback.
    """
    show_messages()
    with noted_interrupts() as interrupts:
        try:
            return command() or 0
        except KeyboardInterrupt:
            return _say_interrupted()
        except Exception as error:
            # A module that is interrupted while it is imported may raise anything afterwards
            return _say_interrupted() if interrupts else _code_of(error)


def _code_of(error: Exception) -> int:
    """Tells what a command raised, and returns its exit code; raises it again if it is a mistake of the program."""
    if isinstance(error, (ReaderGone, BrokenPipeError)):
        output_error(error)
        return 0
    if isinstance(error, UserError):
        return report_mistake(str(error))
    if isinstance(error, OSError):
        named = f": {os.fsdecode(error.filename)}" if isinstance(error.filename, (str, bytes)) else ""
        return report_mistake(f"{error.strerror or first_line(error)}{named}")
    no_memory = "allocate memory" in str(error) or "out of memory" in str(error)  # as torch says it
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and no_memory):
        return report_mistake(OUT_OF_MEMORY)
    raise error


def _say_interrupted() -> int:
    with suppress(OSError, ValueError, AttributeError):
        sys.stderr.write("\ninterrupted; the same command goes on from the last checkpoint\n")
    return 130


def say(text: str) -> None:
    r"""Writes text to standard output at once; a character that it cannot take becomes `\xe9`, `\u2014` and so on.

    Raises:
        UserError: If standard output cannot be written, such as a file on a full disk.
        ReaderGone: If standard output was closed by its reader.
    """
    stream = sys.stdout
    if stream is None:
        raise UserError("standard output is closed; give it a place, such as > FILE")
    encoding = getattr(stream, "encoding", None) or "utf-8"  # Dassl's Logger, which takes its place, has none
    try:
        stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        stream.flush()
    except (OSError, ValueError) as error:  # ValueError: closed by this program
        raise output_error(error) from error


def output_error(error: Exception) -> Exception:
    """What is raised where standard output cannot be written; nothing more is then written to it.

    Args:
        error: What was raised by writing.
    """
    # What is still in the buffer goes nowhere; else Python would fail again to write it as it ends
    with suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if isinstance(error, BrokenPipeError):
        return ReaderGone()
    return UserError(f"cannot write to standard output: {getattr(error, 'strerror', None) or error}")
