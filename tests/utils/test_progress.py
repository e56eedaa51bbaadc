"""Progress of long work: a bar in a terminal, log lines elsewhere, and messages that do not break the bar."""

import io
import logging
import re
import sys
import time
import warnings

import pytest

from trainers.hegraph.utils import progress
from trainers.hegraph.utils.command_line import announce, run_cli
from trainers.hegraph.utils.logs import _AboveBars
from trainers.hegraph.utils.progress import Progress
from trainers.hegraph.utils.signals import Interrupted


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def make_terminal(monkeypatch) -> Terminal:
    """Replace stderr; not in a fixture, since pytest captures anew between the fixtures and the test."""
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    return stream


def test_bar_shows_each_step(monkeypatch):
    terminal = make_terminal(monkeypatch)
    with Progress(8, "encoding", initial=2) as bar:
        for finished in (4, 6, 8):
            time.sleep(2 * progress.DRAW_SECONDS)
            bar.show(finished)
    assert re.findall(r"(\d)/8", terminal.getvalue())[:4] == ["2", "4", "6", "8"]
    assert "img/s" in terminal.getvalue()


def test_warnings_stand_above_the_bar(monkeypatch):
    terminal = make_terminal(monkeypatch)

    def show(message: str, *details) -> None:
        terminal.write(f"{message}\n")

    monkeypatch.setattr(warnings, "showwarning", show)
    with Progress(8, "encoding"):
        warnings.showwarning("careful", UserWarning, "file.py", 1)
    assert re.search(r"\r +\rcareful\n", terminal.getvalue())
    assert warnings.showwarning is show


def test_log_messages_stand_above_the_bar(monkeypatch):
    terminal = make_terminal(monkeypatch)
    handler = _AboveBars(terminal)
    with Progress(8, "encoding"):
        handler.emit(logging.LogRecord("name", logging.WARNING, "", 0, "careful", None, None))
    assert re.search(r"\r +\rcareful\n", terminal.getvalue())


def test_without_a_terminal_lines_are_logged(monkeypatch, caplog):
    times = iter([0.0, 10.0, 31.0, 40.0, 62.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(times))
    with caplog.at_level(logging.INFO), Progress(100, "encoding", initial=7) as lines:
        for finished in (20, 38, 40, 69):  # at 31 s 31 images are new, at 62 s 62
            lines.show(finished)
    assert caplog.messages == [
        "encoding: 38 of 100, 1 images a second, about 62 s left",
        "encoding: 69 of 100, 1 images a second, about 31 s left",
    ]


def test_unknown_total_has_no_remaining_time(monkeypatch, caplog):
    times = iter([0.0, 31.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(times))
    with caplog.at_level(logging.INFO), Progress(None, "predicting") as lines:
        lines.show(62)
    assert caplog.messages == ["predicting: 62, 2 images a second"]


def test_hidden_progress_shows_nothing(monkeypatch, caplog):
    terminal = make_terminal(monkeypatch)
    monkeypatch.setattr(progress, "LINE_SECONDS", 0)
    with caplog.at_level(logging.INFO), Progress(4, "predicting", is_shown=False) as hidden:
        hidden.show(4)
    assert (terminal.getvalue(), caplog.messages) == ("", [])


def test_wait_is_announced_in_a_terminal_and_by_servers(monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    announce("loading the model")
    announce("loading the server", is_server=True)
    make_terminal(monkeypatch)
    announce("loading the model")
    assert caplog.messages == ["loading the server", "loading the model"]


@pytest.mark.parametrize(("error", "continues", "line"), [
    (KeyboardInterrupt(), False, "interrupted"),
    (KeyboardInterrupt(), True, "interrupted; the same command continues from the last checkpoint, if there is one"),
    (Interrupted("4 of 9 images are encoded"), False, "interrupted; 4 of 9 images are encoded"),
    (Interrupted(""), False, "interrupted"),
])  # fmt: skip
def test_interrupt_names_only_work_that_is_saved(capsys, error, continues, line):
    def work() -> None:
        raise error

    assert run_cli(work, continues=continues) == 130
    assert capsys.readouterr().err.strip() == line
