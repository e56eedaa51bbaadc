"""Encoding in processes of their own: the bar in a terminal, and what an interrupt or a kill leaves."""

import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
# 10 digits with 18 images of 10 views each
FLAGS = ("--dataset-config-file", "digits", "--config-file", "mini", "--shots", "18", "--no-train")
STATE = re.compile(r"encoding train images: .*?(\d+)/180 ")
# The command line, which writes chunks every 0.2 s, so that a kill within a second finds some
PROGRAM = """
import sys
from trainers.hegraph.__main__ import main
from trainers.hegraph.features import chunks
chunks.WRITE_SECONDS = 0.2
raise SystemExit(main(sys.argv[1:]))
"""


def in_terminal(folder: Path, stop: Callable[[list[int]], int] | None = None) -> tuple[str, int]:
    """Encode the digits in a terminal of 100 columns; returns the screen and the exit code.

    Args:
        folder: Folder of the features.
        stop: Function of all states of the bar so far, the numbers of images, that returns a signal to send, or 0.
    """
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    keys = ["TRAINER.HEGRAPHADAPTER.FEATURES.DIR", str(folder / "features")]
    words = [*FLAGS, "--output-dir", str(folder / "out"), *keys]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    screen = ""
    sent = False
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *words], cwd=ROOT, stdout=slave, stderr=slave, env=environment
    ) as process:
        os.close(slave)
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            try:
                part = os.read(master, 4096)
            except OSError:  # Linux: the other end is closed
                break
            if not part:
                break
            screen += part.decode()
            number = stop(states(screen)) if stop is not None and not sent else 0
            if number:
                process.send_signal(number)
                sent = True
        code = process.wait(60)
    os.close(master)
    return screen, code


def states(screen: str) -> list[int]:
    """Numbers of images that the bar has shown."""
    return [int(number) for number in STATE.findall(screen)]


def test_bar_of_1800_views_shows_20_states(tmp_path):
    screen, code = in_terminal(tmp_path)
    assert code == 0
    assert len(set(states(screen))) >= 20
    assert states(screen) == sorted(states(screen)) and states(screen)[-1] == 180
    assert re.search(r"\[\d\d:\d\d<\d\d:\d\d, +[\d.]+img/s\]", screen), "rate and remaining time"
    assert "encoded 180 train images in 10 views each" in screen


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_interrupt_encodes_no_image_twice(tmp_path, share):
    screen, code = in_terminal(tmp_path, lambda shown: signal.SIGINT if shown and shown[-1] >= 180 * share else 0)
    assert code == 130
    [kept] = re.findall(r"interrupted; (\d+) of 180 train images are encoded and will not be encoded again", screen)
    assert int(kept) >= 180 * share - 1
    again, code = in_terminal(tmp_path)
    assert code == 0
    assert f"continuing after {kept} of 180 train images" in again
    assert f"encoded {180 - int(kept)} train images in 10 views each" in again


def test_interrupt_before_the_encoding_promises_nothing(tmp_path):
    screen, code = in_terminal(tmp_path, lambda shown: signal.SIGINT)  # at the first output
    assert code == 130 or "encoding" not in screen
    assert "will not be encoded again" not in screen or states(screen)


def test_kill_keeps_all_chunks(tmp_path):
    _, code = in_terminal(tmp_path, lambda shown: signal.SIGKILL if shown and shown[-1] >= 90 else 0)
    assert code == -signal.SIGKILL
    again, code = in_terminal(tmp_path)
    [continued] = map(int, re.findall(r"continuing after (\d+) of 180 train images", again))
    assert code == 0 and continued > 0
    assert f"encoded {180 - continued} train images in 10 views each" in again
