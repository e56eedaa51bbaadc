"""Command lines: parser of arguments, exit codes and output.

A command prints results to standard output, and an input error as one line to stderr, with exit code 2. It is
`run_cli(lambda: work(parse_arguments(arguments)))`, with a `Parser`.
"""

import argparse
import logging
import math
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NoReturn

from .errors import UserError, first_line, user_message
from .logs import PACKAGE, show_messages
from .signals import INTERRUPTED, Interrupted, deferred_interrupts, is_interrupt, noted_interrupts
from .text import one_line

logger = logging.getLogger(__name__)

CONTINUES = "the same command continues from the last checkpoint, if there is one"


def command(arguments: str = "") -> str:
    """Return the command line "python -m trainers.hegraph ARGUMENTS", or "hegraph ARGUMENTS" once installed."""
    program = PACKAGE if PACKAGE == "hegraph" else f"python -m {PACKAGE}"
    return f"{program} {arguments}".rstrip()


def is_word(text: str) -> bool:
    """Whether an argument may be a command or a name: it begins with a letter, and is no flag or configuration key."""
    return text[:1].isalpha() and "." not in text and text != text.upper()


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


def announce(work: str, is_server: bool = False) -> None:
    """Show at once what a command waits for, such as slow imports: in a terminal, and in the log of a server."""
    if is_server or (sys.stderr is not None and sys.stderr.isatty()):
        logger.info("%s", work)


def refuse_several_processes() -> None:
    """Raise UserError in a process of `torchrun` that is one of several."""
    if (count := os.environ.get("WORLD_SIZE", "1")) != "1":
        advice = "start this with python: only `features extract` and --no-train share their work"
        raise UserError(f"expected one process, but torchrun started {count:.9}; {advice}")


def run_cli(command: Callable[[], int | None], several_processes: bool = False, continues: bool = False) -> int:
    """Run a command, show its log messages, and return its exit code.

    Args:
        command: Function that returns an exit code, or None for 0.
        several_processes: Whether several processes of `torchrun` may share the work.
        continues: Whether an interrupted command continues from a checkpoint, which the user then reads.

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
            with deferred_interrupts():  # a second Ctrl-C
                return _show_error(error, continues)


def _show_error(error: BaseException, continues: bool) -> int:
    """Write the line of an error or an interrupt, and return the exit code; arguments as in `run_cli`."""
    interrupted = is_interrupt(error)
    if interrupted:
        kept = str(error) if isinstance(error, Interrupted) else ""
        advice = kept or (CONTINUES if continues else "")
        line = f"\ninterrupted; {advice}\n" if advice else "\ninterrupted\n"
    else:
        line = f"error: {one_line(user_message(error))}\n"
    with suppress(OSError, ValueError, AttributeError):  # stderr may be closed
        sys.stderr.write(line)
        sys.stderr.flush()
    return INTERRUPTED if interrupted else 2


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
