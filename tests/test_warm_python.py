"""The interpreter of `tools/warm_python.py`, whose commands must not differ from those of a new interpreter."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tools import warm_python

pytestmark = pytest.mark.slow
REPORT = "import json, os, sys; print(json.dumps([sys.argv, sys.path, os.getcwd(), os.environ['A'], sys.stdin.read()]))"


def run(program: Path | str, *words: str, folder: Path, text: str = "") -> tuple[int, str, str]:
    """Run a command with an interpreter; returns its exit code, its output and its last line of errors."""
    environment = os.environ | {"A": "b", "PYTHONPATH": "/one:/two"}
    ran = subprocess.run([program, *words], cwd=folder, env=environment, input=text, capture_output=True, text=True)
    return ran.returncode, ran.stdout, ran.stderr.strip().rpartition("\n")[2]


COMMANDS = [
    ["-c", REPORT, "first", "--second"],
    ["module", "-x"],
    ["-m", "module", "-x"],
    ["folder/module.py"],
    ["-c", "import sys; sys.exit(3)"],
    ["-c", "import sys; sys.exit('no')"],
    ["-c", "1 / 0"],
    ["-c", "import os; os.kill(os.getpid(), 9)"],
    ["-c", "import sys; sys.stdout.write('x'); sys.stderr.write('y')"],
    ["-c", "import sys; print([name for name in sys.modules if name.startswith('trainers')])"],
    ["-W", "error", "-c", "import warnings; warnings.warn('old')"],
    ["-V"],
]


@pytest.mark.parametrize("words", COMMANDS, ids=[" ".join(words)[:30] for words in COMMANDS])
def test_command_equals_that_of_a_new_interpreter(python, tmp_path, words):
    (tmp_path / "module").write_text(REPORT)
    (tmp_path / "module.py").write_text(REPORT)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "module.py").write_text(REPORT)
    expected, found = (run(program, *words, folder=tmp_path, text="in") for program in (sys.executable, python))
    assert found == expected


def test_code_from_standard_input_runs(python, tmp_path):
    assert run(python, "-", "word", folder=tmp_path, text="import sys; print(sys.argv)") == (0, "['-', 'word']\n", "")


def test_subprocesses_start_fast_too(python, tmp_path):
    program = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import sys; print(sys.executable)'])"
    assert run(python, "-c", program, folder=tmp_path)[1] == f"{python}\n"


def test_libraries_are_imported_before(python, tmp_path):
    code, printed, _ = run(python, "-c", "import json, sys; print(json.dumps([*sys.modules]))", folder=tmp_path)
    assert (code, {"torch", "open_clip", "sklearn"} - {*json.loads(printed)}) == (0, set())


def test_signals_reach_the_command(python):
    code = "import signal, sys; signal.signal(15, lambda *_: sys.exit(5)); print(1, flush=True); signal.pause()"
    with subprocess.Popen([python, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "1\n"
        process.terminate()
    assert process.returncode == 5


def test_early_signal_reaches_the_command(tmp_path):
    """The command has printed something before its client knows its process."""
    code = "import os, signal, sys; signal.signal(2, lambda *_: sys.exit(5)); print(os.getpid()); signal.pause()"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))
        listening.listen()
        client = subprocess.Popen([sys.executable, "-I", "-S", warm_python.__file__, tmp_path / "socket", "-c", code])
        connection, _ = listening.accept()
        with connection, subprocess.Popen([sys.executable, "-uc", code], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout.readline() == f"{process.pid}\n"
            client.send_signal(signal.SIGINT)
            connection.sendall(f"{process.pid}\n".encode())
            connection.sendall(f"{process.wait()}\n".encode())
            assert client.wait() == 5


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_client_ends_by_the_signal_of_its_command(python, number):
    code = f"import os, signal; signal.signal({number}, signal.SIG_DFL); os.kill(os.getpid(), {number})"
    assert subprocess.run([python, "-c", code], stderr=subprocess.PIPE, text=True).returncode == -number
