"""Exit codes, error lines, signals, standard output and log messages of commands."""

import errno
import io
import logging
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

from trainers.hegraph.method.training.batches import BankBatches
from trainers.hegraph.utils import command_line, errors, logs, signals, text
from trainers.hegraph.utils.threads import in_batches

ROOT = Path(__file__).parents[2]


def raising(error: BaseException):
    return Mock(side_effect=error)


@pytest.fixture(autouse=True)
def usual_signals() -> Iterator[None]:
    """Handlers of a new process: Ray, which other tests start, ends the program by another one."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_exit_code_and_errors_of_the_program(capsys):
    assert [command_line.run_cli(lambda: None), command_line.run_cli(lambda: 0), command_line.run_cli(lambda: 1)] == [
        0,
        0,
        1,
    ]
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("error", [ValueError("a bug"), RuntimeError("a bug")])
def test_bugs_are_raised(error):
    with pytest.raises(type(error), match="a bug"):
        command_line.run_cli(raising(error))


@pytest.mark.parametrize(("raised", "line"), [
    (OSError(errno.EACCES, "Permission denied", "/closed/x"), "error: Permission denied: /closed/x\n"),
    (OSError(errno.ENOSPC, "No space left on device"), "error: No space left on device\n"),
    (errors.UserError("first\n  second\tthird\x1b[31m\udcff"), "error: first second third\\x1b[31m\\udcff\n"),
    (MemoryError(), "error: out of memory"),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes"), "error: out of memory"),
])  # fmt: skip
def test_user_and_system_errors_are_one_line(capsys, raised, line):
    assert command_line.run_cli(raising(raised)) == 2
    out, error = capsys.readouterr()
    assert out == "" and error.startswith(line) and error.count("\n") == 1


def test_interrupt_restores_signals_without_a_traceback(capsys):
    def half_an_import():
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise RecursionError("half an import") from None

    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    for work in (raising(KeyboardInterrupt()), half_an_import, lambda: signal.raise_signal(signal.SIGTERM)):
        assert (command_line.run_cli(work), capsys.readouterr().err) == (130, "\ninterrupted\n")
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as SIGHUP is with nohup
    try:
        assert command_line.run_cli(lambda: signal.raise_signal(signal.SIGTERM)) == 0
    finally:
        signal.signal(signal.SIGTERM, before[1])


def interrupt_in_a_callback() -> None:
    target = threading.Thread()
    callback = weakref.ref(target, lambda _: signal.raise_signal(signal.SIGINT))
    del target  # Python drops the KeyboardInterrupt of a callback
    assert callback() is None


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("steps", [
    lambda: BankBatches(torch.zeros(1, 4, 2), torch.zeros(4), batch_size=2, seed=1).epoch(0),
    lambda: in_batches(str, range(4), 2, threads=1),
], ids=["batches of a bank", "batches of images"])  # fmt: skip
def test_interrupt_lost_in_a_callback_is_noticed(steps, capsys):
    done = []

    def work() -> None:
        for step in steps():
            done.append(step)
            interrupt_in_a_callback()

    assert (command_line.run_cli(work), len(done)) == (130, 1)


def test_second_interrupt_does_not_stop_clean_up(capsys):
    cleaned = []

    def work() -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        finally:
            with signals.deferred_interrupts():
                signal.raise_signal(signal.SIGINT)
                cleaned.append(True)

    assert (command_line.run_cli(work), cleaned) == (130, [True])
    assert command_line.run_cli(lambda: signal.raise_signal(signal.SIGINT)) == 130


def test_second_interrupt_does_not_stop_the_message(capsys):
    class InterruptedAgain(signals.Interrupted):
        def __str__(self) -> str:
            signal.raise_signal(signal.SIGINT)
            return "4 images are encoded"

    assert command_line.run_cli(raising(InterruptedAgain())) == 130
    assert capsys.readouterr().err == "\ninterrupted; 4 images are encoded\n"


@pytest.mark.slow
def test_second_interrupt_at_the_exit_prints_nothing():
    program = (
        "import atexit, signal, sys\n"
        "from trainers.hegraph import __main__\n"
        "from trainers.hegraph.commands import baselines\n"
        "interrupt = lambda *text: signal.raise_signal(signal.SIGINT)\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "atexit.register(interrupt)\n"
        "baselines.echo = interrupt\n"
        "sys.argv[1:] = ['baselines']\n"
        "raise SystemExit(__main__.main())\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "\ninterrupted\n")


@pytest.mark.slow
@pytest.mark.parametrize(("module", "last_line"), [("trainers.hegraph.datasets", []), ("app", ["KeyboardInterrupt"])])
def test_ctrl_c_during_imports_of_a_command_has_no_traceback(module, last_line):
    program = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    program += f"sys.argv, sys.orig_argv = ['-m'], ['python', '-m', {module!r}]\n"
    program += "import trainers.hegraph; signal.raise_signal(signal.SIGINT)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr.splitlines()[-1:]) == (-signal.SIGINT, last_line)


@pytest.mark.parametrize(("error", "code", "line"), [
    (BrokenPipeError(), 0, ""),
    (OSError(errno.ENOSPC, "No space left"), 2, "error: cannot write to standard output: No space left\n"),
    (ValueError("I/O operation on closed file."), 2, "error: cannot write to standard output: I/O operation"),
])  # fmt: skip
def test_unwritable_standard_output(monkeypatch, capsys, error, code, line):
    monkeypatch.setattr(sys, "stdout", Mock(encoding="utf-8", write=raising(error), fileno=raising(OSError())))
    for work in (lambda: command_line.echo("text"), lambda: command_line.Parser("it", "Print.").parse_args(["--help"])):
        assert command_line.run_cli(work) == code
        message = capsys.readouterr().err
        assert message.startswith(line) and bool(message) == bool(line)


def test_closed_standard_output_and_unsupported_characters(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", None)
    assert command_line.run_cli(lambda: command_line.echo("text")) == 2
    assert capsys.readouterr().err.startswith("error: standard output is closed")
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    monkeypatch.setattr(sys, "stdout", terminal)
    command_line.echo("é — \udc80\n")
    assert terminal.buffer.getvalue() == b"\xe9 \\u2014 \\udc80\n"


def test_log_messages_are_one_line(monkeypatch):
    written = io.StringIO()
    monkeypatch.setattr(logging.root, "handlers", [])
    monkeypatch.setattr(logging.root, "level", logging.WARNING)
    monkeypatch.setattr(logging, "raiseExceptions", True)
    monkeypatch.setattr(sys, "stderr", written)
    logs.show_messages()
    logging.getLogger("trainers.hegraph.x").info("%s is empty", "a\n\x1b[31m" + "b" * 1000)
    logging.getLogger("other").info("is not shown")
    assert written.getvalue().startswith("a \\x1b[31mbbb") and written.getvalue().endswith("bbb is empty\n")
    assert len(written.getvalue()) == text.MAX_MESSAGE + 1
    monkeypatch.setattr(sys, "stderr", None)
    logs.show_messages()
    sys.stderr.write("nobody reads this")
    sys.stderr.close()


def test_unknown_suggests_a_name():
    known = str(errors.unknown("data set", "Digit", iter(["UCF101", "Digits"])))
    assert known == "unknown data set 'Digit'; did you mean 'Digits'? (known: Digits, UCF101)"
    assert "did you mean 'EuroSAT'?" in str(errors.unknown("data set", "EUROSAT", ["EuroSAT", "Food101"]))
    assert str(errors.unknown("data set", "xyzzy", ["Digits"])) == "unknown data set 'xyzzy' (known: Digits)"
    assert str(errors.unknown("key", "x" * 99, [f"key{n}" for n in range(30)])).endswith("xxx'")
    assert str(errors.unknown("key", "x", [])) == "unknown key 'x'"


def test_shown_values_are_one_short_line():
    assert text.shown(torch.zeros(2, 1)) == r"tensor([[0.],\n        [0.]])"
    assert text.shown("é" * 99) == "'" + "é" * 79
    assert text.shown(16**4000) == "a int that is too long to show"


def test_command_has_the_name_of_the_program(monkeypatch):
    assert command_line.command() == "python -m trainers.hegraph"
    assert command_line.command("--shots 1") == "python -m trainers.hegraph --shots 1"
    monkeypatch.setattr(command_line, "PACKAGE", "hegraph")
    assert (command_line.command(), command_line.command("datasets check")) == ("hegraph", "hegraph datasets check")
