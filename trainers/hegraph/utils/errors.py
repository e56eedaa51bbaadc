"""Errors for the user, each one line with the expected input, the actual input and a remedy."""

import os
from collections.abc import Iterable
from difflib import get_close_matches
from typing import TYPE_CHECKING

from .text import shortened, shown

if TYPE_CHECKING:
    from pydantic import ValidationError

MAX_LIST_LENGTH = 180  # characters
OTHER_RUN = "run.other"  # code of the error for an output folder of another run
NUL_IN_PATH = "its name contains a NUL character"
OUT_OF_MEMORY = "out of memory; use smaller batches (DATALOADER.*.BATCH_SIZE, --batch-size), views or files"


class UserError(ValueError):
    """Invalid input.

    Args:
        message: One line with the expected input, the actual input and a remedy.
        code: Short name of the error for tests, such as "bank.shape".

    Examples:
        >>> from hegraph import UserError, load_cfg
        >>> try:
        ...     load_cfg("digits", "mini", opts=["SEEDS", 2])
        ... except UserError as error:
        ...     print(error)
        unknown configuration key 'SEEDS'; did you mean 'SEED'?
    """

    def __init__(self, message: str, code: str = "") -> None:
        super().__init__(message)
        self.code = code


def unknown(kind: str, name: str, allowed: Iterable[str]) -> UserError:
    """Create the error for an unknown name of a kind such as "data set", with the nearest known name."""
    by_lower_case = {known.lower(): known for known in sorted(allowed)}
    near = get_close_matches(name.lower(), by_lower_case, n=1, cutoff=0.5)
    hint = f"; did you mean {by_lower_case[near[0]]!r}?" if near else ""
    listed = ", ".join(by_lower_case.values())
    all_known = f" (known: {listed})" if 0 < len(listed) < MAX_LIST_LENGTH else ""
    return UserError(f"unknown {kind} {shortened(name, 80)!r}{hint}{all_known}", "unknown")


def first_line(error: BaseException) -> str:
    """Return the message of a library's exception in one line, for use in our own messages."""
    import yaml  # slow imports
    from pydantic import ValidationError

    if isinstance(error, ValidationError):
        return _first_problem(error)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"line {error.problem_mark.line + 1}: {error.problem}"
    if isinstance(error, ValueError) and "embedded null" in str(error):  # the words depend on the version of Python
        return NUL_IN_PATH
    if isinstance(error, KeyError) and error.args:
        return f"it lacks {error.args[0]!r:.60}"
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _first_problem(error: "ValidationError") -> str:
    """Describe the first problem of a validation: place, expected value and actual value."""
    problem = error.errors(include_url=False)[0]
    place = repr(".".join(map(str, problem["loc"])))[1:-1]  # a key may contain a line break
    complete = problem["type"] in ("missing", "extra_forbidden", "value_error")  # no value, or the message has it
    actual = "" if complete else f", got {shown(problem['input'])}"
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return f"{place}{': ' if place else ''}{problem['msg']}{actual}{more}"


def user_message(error: BaseException) -> str:
    """Return the message of an exception for the user; raise it again if it is an error of the program."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError):
        path = f": {os.fsdecode(error.filename)}" if isinstance(error.filename, (str, bytes)) else ""
        return first_line(error) + path
    no_memory = "allocate memory" in str(error) or "out of memory" in str(error)  # torch's messages
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and no_memory):
        return OUT_OF_MEMORY
    raise error
