"""What a command says ends up in one line on stderr, or on a standard output that may be anything."""

from __future__ import annotations

import errno
import io
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from trainers.hegraph.__main__ import SUBCOMMANDS
from trainers.hegraph.utils.commands import Parser
from trainers.hegraph.utils.errors import MAX_MESSAGE, UserError, one_line, report, say, unknown
from trainers.hegraph.utils.signals import TWICE

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "trainers.hegraph.baselines"]


def run(*shell: str, **more) -> subprocess.CompletedProcess:
    return subprocess.run(shell, cwd=ROOT, capture_output=True, text=True, **more)


@pytest.mark.parametrize("arguments", [(), ("--help",)])
def test_a_full_standard_output_is_one_line(arguments):
    with open("/dev/full", "w") as full:
        done = subprocess.run([*COMMAND, *arguments], cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (2, "error: cannot write to standard output: No space left on device\n")


@pytest.mark.parametrize("arguments", [(), ("--help",)])
def test_a_reader_that_leaves_is_no_mistake(arguments):
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([*COMMAND, *arguments], cwd=ROOT, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("flags", [("--dry-run",), ("--folders",)])
@pytest.mark.parametrize(("kind", "code"), [("full", 2), ("left", 0)])
def test_a_sweep_whose_plan_nobody_takes_is_no_traceback(tiny_bank, flags, kind, code):
    grid = ("--datasets", str(tiny_bank), "--configs", "vit_b32", "--shots", "1", "--output", str(tiny_bank.parent))
    read, write = os.pipe()
    os.close(read)
    place = os.open("/dev/full", os.O_WRONLY) if kind == "full" else write
    command = [sys.executable, "-m", "trainers.hegraph", "sweep", *grid, *flags]
    done = subprocess.run(command, cwd=ROOT, stdout=place, stderr=subprocess.PIPE, text=True)
    assert done.returncode == code, done.stderr
    assert done.stderr == ("" if code == 0 else "error: cannot write to standard output: No space left on device\n")


def test_log_messages_are_one_line_whatever_a_name_in_them_holds():
    script = (
        "import logging\n"
        "from trainers.hegraph.utils.errors import show_messages\n"
        "show_messages()\n"
        "logging.getLogger('trainers.hegraph.x').warning('%s is empty', 'a\\n\\x1b[31m' + 'b' * 1000)\n"
    )
    done = run(sys.executable, "-c", script)
    assert done.stderr.startswith("a \\x1b[31mbbb")
    assert done.stderr.endswith("bbb is empty\n")
    assert len(done.stderr) == MAX_MESSAGE + 1


def test_a_standard_error_that_was_closed_keeps_no_progress_bar_from_running():
    script = (
        "from tqdm import tqdm\n"
        "from trainers.hegraph.utils.errors import show_messages\n"
        "show_messages()\n"
        "print(*tqdm([1, 2], disable=None))\n"
    )
    assert run("bash", "-c", f'"{sys.executable}" -c "{script}" 2>&-').stdout == "1 2\n"


def test_a_character_that_the_terminal_lacks_is_escaped(monkeypatch):
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    monkeypatch.setattr(sys, "stdout", terminal)
    say("é — \udc80\n")
    assert terminal.buffer.getvalue() == b"\xe9 \\u2014 \\udc80\n"


def test_no_standard_output_at_all_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", None)
    assert report(lambda: say("text")) == 2
    assert capsys.readouterr().err.startswith("error: standard output is closed")


@pytest.mark.parametrize(
    ("raised", "line"),
    [
        (OSError(errno.EACCES, "Permission denied", "/closed/x"), "error: Permission denied: /closed/x\n"),
        (OSError(errno.ENAMETOOLONG, "File name too long", b"/x"), "error: File name too long: /x\n"),
        (OSError(errno.ENOSPC, "No space left on device"), "error: No space left on device\n"),
        (UserError("first\n  second\tthird\x1b[31m\udcff"), "error: first second third\\x1b[31m\\udcff\n"),
    ],
)
def test_what_the_machine_refuses_is_one_line(capsys, raised, line):
    def command():
        raise raised

    assert report(command) == 2
    assert capsys.readouterr().err == line


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes")])
def test_too_little_memory_is_one_line(capsys, error):
    def command():
        raise error

    assert report(command) == 2
    assert capsys.readouterr().err.startswith("error: out of memory; ")


def test_what_follows_an_interrupt_while_a_module_is_imported_is_no_traceback(capsys):
    def command():
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise RecursionError("half an import") from None

    before = signal.getsignal(signal.SIGINT)
    assert report(command) == 130
    assert "interrupted" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.slow
@pytest.mark.parametrize("name", ["", *(f".{name}" for name in (*SUBCOMMANDS, "baselines"))])
def test_ctrl_c_while_a_command_imports_its_modules_is_no_traceback(name):
    program = (
        "import builtins, runpy, signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "usual = builtins.__import__\n"
        "def patched(name, *more, **named):\n"
        "    if name == 'difflib':\n"
        "        signal.raise_signal(signal.SIGINT)\n"
        "    return usual(name, *more, **named)\n"
        "builtins.__import__ = patched\n"
        "sys.argv = ['-m']\n"
        f"runpy.run_module('trainers.hegraph{name}', run_name='__main__', alter_sys=True)\n"
    )
    done = run(sys.executable, "-c", program)
    assert (done.returncode, done.stderr) == (130, "\ninterrupted\n")


def held_out(script: str) -> list[str]:
    """A program in which `report` runs `script`, which waits for signals; Ctrl-C is as in a shell's foreground."""
    return [
        sys.executable,
        "-c",
        "import gc, os, signal, sys, time\n"
        "from trainers.hegraph.utils.errors import report\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "def ready():\n    sys.stdout.write('ready\\n'); sys.stdout.flush()\n"
        f"def command():\n{textwrap.indent(script, '    ')}\n"
        "sys.exit(report(command))\n",
    ]


CALLBACK = """
class Callback:
    def __del__(self):
        ready()
        time.sleep(60)
Callback()
time.sleep(60)
"""
STUBBORN = """
while True:
    try:
        ready()
        time.sleep(60)
    except KeyboardInterrupt:
        pass
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_that_lands_in_a_callback_is_not_lost(number):
    with subprocess.Popen(held_out(CALLBACK), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as p:
        p.stdout.readline()
        p.send_signal(number)
        _, error = p.communicate(timeout=60)
    assert p.returncode == 130
    assert error == "\ninterrupted; the same command goes on from the last checkpoint\n"


def test_a_second_sigterm_ends_what_does_not_heed_the_first_and_one_that_comes_at_once_does_not():
    with subprocess.Popen(held_out(STUBBORN), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as p:
        p.stdout.readline()
        p.send_signal(signal.SIGTERM)
        p.stdout.readline()
        p.send_signal(signal.SIGTERM)  # as `timeout` does
        time.sleep(2 * TWICE)
        assert p.poll() is None
        p.send_signal(signal.SIGTERM)
        _, error = p.communicate(timeout=60)
    assert (p.returncode, error) == (-signal.SIGTERM, "")


def test_a_long_message_keeps_its_start_and_its_end():
    line = one_line(f"there is no /{'x' * 1000}; give another")
    assert len(line) == MAX_MESSAGE
    assert line.startswith("there is no /xxx")
    assert line.endswith("xxx; give another")


def test_of_a_long_list_the_three_nearest_names_are_shown():
    message = str(unknown("key", "zz", [f"key{number}" for number in range(30)]))
    assert message.startswith("unknown key 'zz' (nearest of 30: ")
    assert message.count("key") == 1 + 3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["colect"], "invalid choice: 'colect'"),
        (["colect"], "; did you mean 'collect'?"),
        (["collect", "--sed", "1"], "; did you mean '--seed'?"),
        ([], "the following arguments are required: what"),
    ],
)
def test_a_mistake_in_the_flags_is_one_line_that_names_what_was_meant(capsys, arguments, words):
    parser = Parser(prog="it")
    parser.add_argument("what", choices=("collect", "report"))
    parser.add_argument("--seed")
    with pytest.raises(UserError) as caught:
        parser.parse_args(arguments)
    assert words in str(caught.value)
    assert str(caught.value).endswith(" (usage: it --help)")
