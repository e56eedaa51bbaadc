"""A Python interpreter that starts fast, for pages and scripts that start many commands.

A process imports the slow libraries once, and forks for each command. This saves most of the seven seconds of processor
time that a command spends on their import. The process imports nothing of this project, so that each command imports
the project's code itself.

    with warm_python() as program:
        subprocess.run([program, "-m", "trainers.hegraph", "--help"])
"""

import atexit
import gc
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

LIBRARIES = ("torch", "torchvision", "open_clip", "scipy.optimize", "sklearn.metrics")
OF_EXTRAS = ("fastapi", "gradio")  # libraries that need not be installed
AT_IMPORT = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}  # variables that the libraries read when they are imported
PASSED_ON = (signal.SIGINT, signal.SIGTERM)  # signals that a client passes on to its command


class Command(NamedTuple):
    """A command of a client.

    Attributes:
        program: Path of the program that the client was started as.
        words: Arguments of Python, such as `["-m", "trainers.hegraph", "--help"]`.
        folder: Current folder.
        environment: Environment variables.
    """

    program: str
    words: list[str]
    folder: str
    environment: dict[str, str]


@contextmanager
def warm_python() -> Iterator[Path]:
    """Start the process with the libraries; yields a program that takes the arguments of Python.

    It accepts `-m MODULE`, `-c CODE`, `-` and the path of a script, each with arguments, and starts a new interpreter
    for everything else.
    """
    with tempfile.TemporaryDirectory(prefix="warm-") as name:
        address = Path(name, "socket")
        program = Path(name, "python")
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "{__file__}" "{address}" "$@"\n')
        program.chmod(0o755)
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(address))
            listening.listen()
            number = listening.fileno()
            words = [sys.executable, __file__, "--serve", str(number)]
            server = subprocess.Popen(words, env=environment | AT_IMPORT, pass_fds=[number], start_new_session=True)
        try:
            yield program
        finally:
            os.killpg(server.pid, signal.SIGKILL)  # with all commands
            server.wait()


# --- the client


def ask(address: str, words: list[str]) -> int:
    """Have a command run with this process's files, folder and environment; returns its exit code."""
    signal.pthread_sigmask(signal.SIG_BLOCK, PASSED_ON)  # until they can be passed on
    program = str(Path(address).with_name("python"))
    command = Command(program, words, os.getcwd(), dict(os.environ))
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        socket.send_fds(connection, [b"\0"], [0, 1, 2])
        connection.sendall(json.dumps(command).encode() + b"\n")
        answers = connection.makefile("rb")
        process = int(answers.readline())
        for number in PASSED_ON:
            signal.signal(number, lambda number, _: pass_on(number, process))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, PASSED_ON)
        code = int(answers.readline())
    if code < 0:  # a signal
        for number in PASSED_ON:
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return code


def pass_on(number: int, process: int) -> None:
    """Send a signal to a command, unless it has ended."""
    with suppress(ProcessLookupError):
        os.kill(process, number)


def is_understood(words: list[str]) -> bool:
    """Whether the arguments of Python are those of a command, without other options."""
    return len(words) > 0 and (words[0] in ("-m", "-c", "-") or not words[0].startswith("-"))


# --- the server


def wait_for_command(listening: socket.socket) -> Command:
    """Serve clients; returns in a new process for each command, which has the client's files."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        connection, _ = listening.accept()
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            listening.close()
            return read_command(connection)
        connection.close()


def read_command(connection: socket.socket) -> Command:
    """Read a command; returns in a new process, and ends this one when the command has ended."""
    files = socket.recv_fds(connection, 1, 3)[1]
    command = Command(*json.loads(connection.makefile("rb").readline()))
    process = os.fork()
    if process:
        connection.sendall(f"{process}\n".encode())
        code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        connection.sendall(f"{code}\n".encode())
        os._exit(0)
    connection.close()
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    return command


def execute(command: Command) -> None:
    """Run a command in this process as a new interpreter would."""
    os.chdir(command.folder)
    os.environ.clear()
    os.environ.update(command.environment)
    sys.executable = command.program
    sys.stdin = os.fdopen(0, closefd=False)
    sys.stdout = os.fdopen(1, "w", buffering=1 if os.isatty(1) else -1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, errors="backslashreplace", closefd=False)
    paths = [path for path in command.environment.get("PYTHONPATH", "").split(os.pathsep) if path]
    kind, *words = command.words
    first = "" if kind.startswith("-") else str(Path(kind).resolve().parent)
    sys.path[:1] = [command.folder if kind == "-m" else first, *paths]  # the first one was that of this file
    if kind == "-m":
        sys.argv = words
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)
    elif kind.startswith("-"):
        code = words.pop(0) if kind == "-c" else sys.stdin.read()
        sys.argv = [kind, *words]
        exec(compile(code, "<string>", "exec"), {"__name__": "__main__", "__builtins__": __builtins__})
    else:
        sys.argv = command.words
        runpy.run_path(kind, run_name="__main__")


def serve(listening: socket.socket) -> None:
    """Import the libraries, and run each command in a process of its own, which ends at the end of this function."""
    ended = Ended()
    atexit.register(ended.leave)  # first, so that it is called last
    for name in (*LIBRARIES, *filter(find_spec, OF_EXTRAS)):
        import_module(name)
    gc.freeze()  # the garbage collector of a command leaves the libraries alone
    command = wait_for_command(listening)
    try:
        execute(command)
        ended.code = 0
    except SystemExit as error:
        ended.code = error.code if isinstance(error.code, int) else int(error.code is not None)
        raise


class Ended:
    """Exit code of this process, which `leave` ends without the second that Python needs to delete all libraries."""

    code = 1

    def leave(self) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(self.code)


def main() -> None:
    if sys.argv[1] == "--serve":
        with socket.socket(fileno=int(sys.argv[2])) as listening:
            serve(listening)
    elif is_understood(sys.argv[2:]):
        sys.exit(ask(sys.argv[1], sys.argv[2:]))
    else:
        os.execv(sys.executable, [sys.executable, *sys.argv[2:]])


if __name__ == "__main__":
    main()
