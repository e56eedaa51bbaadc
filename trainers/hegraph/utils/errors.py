"""Command lines: errors, output, log messages, signals and the parser of arguments.

A command prints results to standard output, and an input error as one line to stderr, with exit code 2. It is
`run_cli(lambda: work(parse_arguments(arguments)))`, with a `Parser`.
"""

import argparse
import logging
import math
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from pydantic import ValidationError

PACKAGE = __name__.rpartition(".utils.")[0]  # "trainers.hegraph" in a checkout, "hegraph" once installed
MAX_LIST_LENGTH = 180  # characters
MAX_MESSAGE = 280  # characters of a message, without the word "error" before it
OUT_OF_MEMORY = "out of memory; use smaller batches (DATALOADER.*.BATCH_SIZE, --batch-size), views or files"
INTERRUPTED = "interrupted; the same command continues from the last checkpoint, if there is one"
# Sent by `timeout`, scancel and `docker stop`, and by a closing terminal; Windows has no SIGHUP
ENDINGS = tuple(signal.Signals[name] for name in ("SIGTERM", "SIGHUP") if name in signal.Signals.__members__)
_noted: list[int] = []  # signals received in the block of `noted_interrupts`
_deferring: list[bool] = []  # one entry per active block of `deferred_interrupts`


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


def shortened(text: str, most: int) -> str:
    """Shorten a text to its start and its end, of at most `most` characters together."""
    end = (most - 5) // 3
    return text if len(text) <= most else f"{text[: most - 5 - end]} ... {text[len(text) - end :]}"


def one_line(message: str) -> str:
    """Format a message as one line of at most `MAX_MESSAGE` printable characters."""
    return shortened(printable(" ".join(message.split())), MAX_MESSAGE)


def printable(text: str) -> str:
    r"""Escape control characters and lone surrogates of a text, as `\n`, `\x1b`, `\udcff` and so on."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


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


def shown(value: object) -> str:
    """Format a value as one line of about 80 characters, also an integer too long for Python to format."""
    try:
        return printable(f"{value!r:.80}")
    except (RecursionError, ValueError):
        return f"a {type(value).__name__} that is too long to show"


@contextmanager
def noted_interrupts() -> Iterator[None]:
    """Context in which Ctrl-C and the signals `ENDINGS` raise KeyboardInterrupt, and `was_interrupted` notes them.

    Handlers of other programs stay, and so do ignored signals, such as SIGHUP with nohup.
    """

    def note(number: int, frame: FrameType | None) -> None:
        _noted.append(number)
        if not _deferring:
            raise KeyboardInterrupt

    usual = (signal.SIG_DFL, signal.default_int_handler)
    may_set = threading.current_thread() is threading.main_thread()
    numbers = [n for n in (signal.SIGINT, *ENDINGS) if may_set and signal.getsignal(n) in usual]
    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield
    finally:
        _noted.clear()
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def deferred_interrupts() -> Iterator[None]:
    """Context in which signals are noted without an exception, so that a second Ctrl-C cannot stop a clean-up."""
    _deferring.append(True)
    try:
        yield
    finally:
        _deferring.pop()


def was_interrupted() -> bool:
    """Whether a signal was received, even if an import converted its KeyboardInterrupt to another exception."""
    return bool(_noted)


def stop_if_interrupted() -> None:
    """Raise KeyboardInterrupt if a signal was received.

    Loops call this between steps and runs, because Python drops exceptions in callbacks, such as of weak references.
    """
    if was_interrupted():
        raise KeyboardInterrupt


class _OneLine(logging.Formatter):
    """Formats log messages by `one_line`, because names of files and classes may contain any character."""

    def format(self, record: logging.LogRecord) -> str:
        return one_line(super().format(record))


def show_messages() -> None:
    """Log messages of this package and warnings of others to stderr, one per line, except Pillow's about images.

    Handlers of the calling program stay. A closed stderr is replaced, because progress bars and warnings write to it.
    """
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115  (open until the program ends)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_OneLine())
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    warnings.filterwarnings("ignore", module="PIL")
    logging.raiseExceptions = False  # no traceback for an unwritable stderr
    logging.getLogger(PACKAGE).setLevel(logging.INFO)


def command(arguments: str = "") -> str:
    """Return the command line "python -m trainers.hegraph ARGUMENTS", or "hegraph ARGUMENTS" once installed."""
    program = PACKAGE if PACKAGE == "hegraph" else f"python -m {PACKAGE}"
    return f"{program} {arguments}".rstrip()


def number(kind: Callable[[str], float], least: float, most: float = math.inf) -> Callable[[str], float]:
    """Create an argument type for numbers from `least` to `most`."""

    def parse(text: str) -> float:
        value = kind(text)
        if not least <= value <= most:
            allowed = f"at least {least}" if most == math.inf else f"from {least} to {most}"
            raise argparse.ArgumentTypeError(f"must be {allowed}, got {text!r:.80}")
        return value

    parse.__name__ = kind.__name__  # for argparse's message
    return parse


whole = number(int, 1, 2**31 - 1)  # argument type: an integer of at least 1


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Help of an argument: its meaning, the configuration key that it sets in brackets, and its default."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        if action.dest.isupper():
            text += f" [{action.dest}]"
        has_default = action.option_strings and action.default and action.default != argparse.SUPPRESS
        return f"{text} (default: %(default)s)" if has_default and "(default" not in text else text


class Parser(argparse.ArgumentParser):
    """Command line parser whose help is a summary, the arguments, examples and exit codes. Mistakes are `UserError`s.

    Args:
        name: Name of the command; "" for a training.
        description: Summary of the command.
        settings: Further arguments of `ArgumentParser`.

    Attributes:
        examples: Arguments of example calls, such as "model photo.jpg".
        failure: Meaning of exit code 1, if the command has it.
    """

    examples: Sequence[str] = ()
    failure = ""

    def __init__(self, name: str = "", description: str = "", **settings: Any) -> None:
        defaults: dict[str, Any] = {"prog": command(name), "formatter_class": _HelpFormatter}
        super().__init__(description=description, **defaults | settings)
        self.commands: Any = None  # argparse's action that holds the parsers of the commands

    def add_command(self, name: str, summary: str, **settings: Any) -> "Parser":
        """Add a command; the parsed arguments have its name as `command`. One command is required."""
        if self.commands is None:
            self.commands = self.add_subparsers(dest="command", title="commands", metavar="COMMAND")
        description = f"{summary[0].upper()}{summary[1:]}."
        return self.commands.add_parser(name, help=summary.replace("%", "%%"), description=description, **settings)

    def format_help(self) -> str:
        kinds = "success", self.failure, "wrong input, or no permission, disk space or memory", "interrupted"
        codes = [f"  {code:<5}{meaning}" for code, meaning in zip((0, 1, 2, 130), kinds) if meaning]
        calls = [f"  {self.prog} {example}".rstrip() for example in self.examples]
        return "\n".join([super().format_help(), "examples:", *calls, "", "exit codes:", *codes, ""])

    def parse_args(self, *arguments: Any) -> Any:  # type: ignore[override]
        parsed = super().parse_args(*arguments)
        if self.commands is not None and parsed.command is None:
            self.error(f"a command is missing: {', '.join(self.commands.choices)}")
        return parsed

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        return self._checked(super().parse_known_args(args, namespace))

    def parse_known_intermixed_args(self, args: Any = None, namespace: Any = None) -> Any:
        return self._checked(super().parse_known_intermixed_args(args, namespace))

    def _checked(self, parsed: tuple[argparse.Namespace, list[str]]) -> tuple[argparse.Namespace, list[str]]:
        """Return parsed arguments; UserError if an output, whose type has a method `check`, is another argument too."""
        values = vars(parsed[0])
        for action in self._actions:
            if values.get(action.dest) is not None and (check := getattr(action.type, "check", None)):
                check(values[action.dest], {name: value for name, value in values.items() if name != action.dest})
        return parsed

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (usage: {self.prog} --help)")

    def print_help(self, file: Any = None) -> None:
        echo(self.format_help())


def refuse_several_processes() -> None:
    """Raise UserError in a process of `torchrun` that is one of several."""
    if (count := os.environ.get("WORLD_SIZE", "1")) != "1":
        advice = "start this with python: only `features extract` and --no-train share their work"
        raise UserError(f"expected one process, but torchrun started {count:.9}; {advice}")


def run_cli(command: Callable[[], int | None], several_processes: bool = False) -> int:
    """Run a command, show its log messages, and return its exit code.

    Args:
        command: Function that returns an exit code, or None for 0.
        several_processes: Whether several processes of `torchrun` may share the work.

    Returns:
        Exit code of the command; 0 if the reader closed standard output; 2, after one line on stderr, for
        `UserError` and for missing permission, disk space or memory; 130 if it was interrupted or terminated. Other
        exceptions are raised.
    """
    show_messages()
    with noted_interrupts():
        try:
            if not several_processes:
                refuse_several_processes()
            return command() or 0
        except BrokenPipeError:
            _discard_output()
            return 0
        except (KeyboardInterrupt, Exception) as error:
            interrupted = was_interrupted() or isinstance(error, KeyboardInterrupt)
            line = f"\n{INTERRUPTED}\n" if interrupted else f"error: {one_line(user_message(error))}\n"
    with suppress(OSError, ValueError, AttributeError):  # stderr may be closed
        sys.stderr.write(line)
        sys.stderr.flush()
    return 130 if interrupted else 2


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


def echo(text: str) -> None:
    r"""Write text to standard output and flush it; unsupported characters become `\xe9`, `\u2014` and so on.

    Raises:
        UserError: If standard output cannot be written, such as a file on a full disk.
        BrokenPipeError: If the reader has closed it, as `head` does; `run_cli` ends with exit code 0.
    """
    stream = sys.stdout
    if stream is None:
        raise UserError("standard output is closed; redirect it, such as > FILE")
    encoding = getattr(stream, "encoding", None) or "utf-8"  # Dassl's Logger, which replaces it, has no encoding
    try:
        stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        stream.flush()
    except BrokenPipeError:
        raise
    except (OSError, ValueError) as error:  # ValueError: closed by this program
        _discard_output()
        raise UserError(f"cannot write to standard output: {first_line(error)}") from error


def _discard_output() -> None:
    """Discard the buffer of standard output, which Python would otherwise fail to write at exit."""
    with suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
