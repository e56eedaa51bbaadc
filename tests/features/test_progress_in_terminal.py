"""Encoding in processes of their own: the bar in a terminal, and what an interrupt or a kill leaves."""

import codecs
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
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest

from trainers.hegraph import load_dataset

pytestmark = pytest.mark.slow


@pytest.fixture
def images(tmp_path) -> Path:
    """Folder of 698 digits."""
    digits = load_dataset("Digits")
    for number, item in enumerate(digits.train):
        digits.open(item.path).save(tmp_path / f"{number}.png")
    return tmp_path


ROOT = Path(__file__).parents[2]
DIGITS = ("--dataset-config-file", "digits", "--config-file", "mini")
FEATURES = "TRAINER.HEGRAPHADAPTER.FEATURES"
# Command lines that encode, and the number of images: 18 of each digit in 10 views, or all 698 training images once
TRAIN = (*DIGITS, "--shots", "18", "--no-train", "--output-dir", "{folder}/out")
COMMANDS = {
    "extract": (698, ("features", "extract", *DIGITS, "--out", "{folder}/b.safetensors", f"{FEATURES}.VIEWS", "1")),
    "backbones": (180, ("backbones", *DIGITS[:2], "--shots", "18", "--candidates", "mini")),
    "check": (698, ("label", "check", *DIGITS, "--root", ".")),
}  # fmt: skip
# The command line, which writes chunks every 0.2 s, so that a kill within a second finds some, and encodes in the small
# steps of large images
PROGRAM = """
import sys
from trainers.hegraph.__main__ import main
from trainers.hegraph.features import chunks
from trainers.hegraph.features.backbones import base
chunks.WRITE_SECONDS = 0.2
base.USUAL_PIXELS = 32 * 32
raise SystemExit(main(sys.argv[1:]))
"""


# Before PROGRAM: an encoder that waits for a signal once the bar has shown some images, so that the signal comes before
# the end of the encoding on every machine. It takes some time for an image, and the file `calls` gets the number of
# images of each call
ENCODER = """
import time
from trainers.hegraph.features.backbones.base import Backbone
from trainers.hegraph.utils.progress import Progress
from trainers.hegraph.utils.signals import was_interrupted
encode, show = Backbone.encode_images, Progress.show
is_waiting = not {wait_after}

def show_and_note(self, finished):
    global is_waiting
    show(self, finished)
    is_waiting = is_waiting or finished >= {wait_after}

def encode_and_wait(self, images, *batch_size):
    end = time.monotonic() + 100
    while is_waiting and not was_interrupted() and time.monotonic() < end:
        time.sleep(0.01)
    if {calls!r}:
        with open({calls!r}, "a") as calls:
            print(len(images), file=calls)
    time.sleep({seconds} * len(images))
    return encode(self, images, *batch_size)

Backbone.encode_images, Progress.show = encode_and_wait, show_and_note
"""
ALL_STATES = """
from trainers.hegraph.utils import progress
progress.DRAW_SECONDS = 0
"""


def waiting_after(number: float) -> str:
    """Program whose encoder waits for a signal after a number of images, and whose bar shows each state."""
    return ENCODER.format(wait_after=number, seconds=0, calls="") + ALL_STATES + PROGRAM


def in_terminal(
    words: Sequence[str],
    stop: Callable[[list[int]], int] | None = None,
    program: str = PROGRAM,
    python: Path = Path(sys.executable),
) -> tuple[str, int]:
    """Run a command line in a terminal of 100 columns; returns the screen and the exit code.

    Args:
        words: Arguments of the program.
        stop: Function of all states of the bar so far, the numbers of images, that returns a signal to send, or 0.
        program: The program.
        python: The interpreter.
    """
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    screen = ""
    sent = False
    with subprocess.Popen(
        [python, "-c", program, *words], cwd=ROOT, stdout=slave, stderr=slave, env=environment
    ) as process:
        os.close(slave)
        decoder = codecs.getincrementaldecoder("utf-8")()  # a read may end within a character
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            try:
                part = os.read(master, 4096)
            except OSError:  # Linux: the other end is closed
                break
            if not part:
                break
            screen += decoder.decode(part)
            number = stop(states(screen)) if stop is not None and not sent else 0
            if number:
                process.send_signal(number)
                sent = True
        code = process.wait(240)
    os.close(master)
    return screen, code


@pytest.fixture
def terminal(python) -> Callable[..., tuple[str, int]]:
    """`in_terminal` with an interpreter that starts fast; it passes on an interrupt, but no kill."""
    return partial(in_terminal, python=python)


def encoding(folder: Path, words: Sequence[str] = TRAIN) -> list[str]:
    """Command line with its files and features in a folder."""
    return [*(word.format(folder=folder) for word in words), f"{FEATURES}.DIR", str(folder / "features")]


def states(screen: str) -> list[int]:
    """Numbers of images that the first bar of an encoding has shown."""
    bars = re.findall(r"(?:encoding|predicting)[\w ]*: [^/\r]*?(\d+)/(\d+) ", screen)
    return [int(number) for number, total in bars if total == bars[0][1]]


def stop_at(number: float, signal_number: int = signal.SIGINT) -> Callable[[list[int]], int]:
    """Function `stop` of `in_terminal` that sends a signal once the bar has shown a number of images."""
    return lambda shown: signal_number if shown and shown[-1] >= number else 0


def test_bar_of_1800_views_shows_20_states(terminal, tmp_path):
    slow = ENCODER.format(wait_after="float('inf')", seconds=0.001, calls="")  # on a fast machine as well
    screen, code = terminal(encoding(tmp_path), program=slow + PROGRAM)
    assert code == 0
    assert len(set(states(screen))) >= 20
    assert states(screen) == sorted(states(screen)) and states(screen)[-1] == 180
    assert re.search(r"\[\d\d:\d\d<\d\d:\d\d, +[\d.]+img/s\]", screen), "rate and remaining time"
    assert "encoded 180 train images in 10 views each" in screen


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_interrupt_encodes_no_image_twice(terminal, tmp_path, share):
    screen, code = terminal(encoding(tmp_path), stop_at(180 * share), waiting_after(180 * share))
    assert code == 130
    [kept] = re.findall(r"interrupted; (\d+) of 180 train images are encoded and will not be encoded again", screen)
    assert int(kept) >= 180 * share - 1
    again, code = terminal(encoding(tmp_path))
    assert code == 0
    assert f"continuing after {kept} of 180 train images" in again
    assert f"encoded {180 - int(kept)} train images in 10 views each" in again


@pytest.mark.parametrize(("total", "words"), COMMANDS.values(), ids=COMMANDS)
def test_interrupted_command_keeps_its_work(terminal, tmp_path, total, words):
    line = encoding(tmp_path, words)
    screen, code = terminal(line, stop_at(total / 2), waiting_after(total / 2))
    assert code == 130
    assert len(set(states(screen))) >= 5
    [kept] = re.findall(rf"interrupted; (\d+) of {total} train images are encoded and will not be", screen)
    assert int(kept) >= total / 2 - 1
    again, code = terminal(line)
    assert code in (0, 1)  # 1: a suspicious label
    assert f"continuing after {kept} of {total} train images" in again


@pytest.mark.parametrize("command", ["predict", "label suggest"])
def test_interrupted_prediction_keeps_its_work(terminal, finished_digits_once, images, command):
    """The second prediction gives the rows of one without an interrupt."""
    line = [*command.split(), str(finished_digits_once), str(images), "--out"]
    _, code = terminal([*line, str(images / "whole.csv")])
    assert code == 0
    line.append(str(images / "rows.csv"))
    screen, code = terminal(line, stop_at(200), waiting_after(200))
    assert code == 130 and len(set(states(screen))) >= 5
    assert not (images / "rows.csv").exists()
    [kept] = re.findall(r"interrupted; (\d+) of 698 images are encoded and will not be encoded again", screen)
    assert int(kept) >= 200
    again, code = terminal(line)
    assert code == 0
    assert f"continuing after {kept} of 698 images" in again
    assert (images / "rows.csv").read_text() == (images / "whole.csv").read_text()


@pytest.mark.parametrize("command", ["extract", "check", "predict", "label suggest"])
def test_kill_of_a_slow_encoding_loses_ten_seconds(terminal, finished_digits_once, images, command):
    """No more than the 40 images of ten seconds at 4 images a second, also of those that are being encoded.

    Time is 25 times as fast as with a ViT-B/16 of 4 images a second: an image takes 0.01 s, and chunks are written
    every 0.2 s instead of 5 s.
    """
    if command in COMMANDS:
        line = encoding(images, COMMANDS[command][1])
    else:
        line = [*command.split(), str(finished_digits_once), str(images), "--out", str(images / "rows.csv")]
    calls = images / "calls.txt"
    slow = ENCODER.format(wait_after=600, seconds=0.01, calls=str(calls))
    _, code = in_terminal(line, stop_at(200, signal.SIGKILL), slow + PROGRAM)
    assert code == -signal.SIGKILL
    started = sum(map(int, calls.read_text().split()))
    again, code = terminal(line)
    [continued] = map(int, re.findall(r"continuing after (\d+) of 698", again))
    assert code in (0, 1)
    assert started - continued <= 40


def test_interrupt_before_the_encoding_promises_nothing(terminal, tmp_path):
    screen, code = terminal(encoding(tmp_path), lambda shown: signal.SIGINT, waiting_after(0))  # at the first output
    assert code == 130
    assert "will not be encoded again" not in screen


def test_kill_keeps_all_chunks(terminal, tmp_path):
    program = waiting_after(90).replace("WRITE_SECONDS = 0.2", "WRITE_SECONDS = 0")
    screen, code = in_terminal(encoding(tmp_path), stop_at(90, signal.SIGKILL), program)
    assert code == -signal.SIGKILL
    again, code = terminal(encoding(tmp_path))
    [continued] = map(int, re.findall(r"continuing after (\d+) of 180 train images", again))
    assert code == 0 and continued == states(screen)[-1] >= 90
    assert f"encoded {180 - continued} train images in 10 views each" in again
