"""Threads of the teach page: changes from outside, errors, and the interruption of an evaluation."""

import shutil
import threading
import time
from collections.abc import Callable

import pytest
import torch
from teach_files import NAMES, last, updated

from trainers.hegraph.apps.teach import session as module, worker as worker_module
from trainers.hegraph.apps.teach.interruption import Interrupted, Interruptible
from trainers.hegraph.apps.teach.worker import Worker


def wait(condition: Callable[[], object]) -> None:
    """Wait until a condition holds, at most four minutes."""
    end = time.monotonic() + 240
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_changes_from_outside_reach_model_and_evaluation(session):
    worker = Worker(session)
    with worker.running():
        wait(lambda: session.view.evaluated == 13 and session.view.is_evaluated)
        shutil.copytree(session.project.folder / "train/one", session.project.folder / "train/new")
        wait(lambda: "new" in session.view.scores)
    assert session.view.model.classnames == tuple(sorted([*NAMES, "new"]))


def test_folder_is_not_read_without_an_open_page(session, monkeypatch):
    monkeypatch.setattr(worker_module, "IDLE_SECONDS", -1)
    worker = Worker(session)
    worker.train()
    assert session.view.number == 0
    monkeypatch.setattr(worker_module, "IDLE_SECONDS", 60)
    worker.note_request()
    worker.train()
    assert session.view.model is not None


def test_error_of_the_folder_is_a_problem_until_it_is_mended(session):
    worker = Worker(session)
    (session.project.folder / "train/ONE").mkdir()
    worker.train()
    assert "differ only in case" in worker.problem
    (session.project.folder / "train/ONE").rmdir()
    worker.train()
    assert worker.problem == ""


def test_unexpected_error_does_not_end_the_thread(session, monkeypatch):
    worker = Worker(session)
    monkeypatch.setattr(module, "train_model", lambda *arguments: 1 / 0)
    with worker.running():
        wait(lambda: "division by zero" in worker.problem)
        monkeypatch.undo()
        worker.wake()
        wait(lambda: session.view.model is not None and worker.problem == "")


def test_evaluation_ends_when_another_model_is_trained(session, monkeypatch):
    updated(session)
    evaluation_of = module.evaluation_of

    def evaluate_while_an_image_is_moved(view):
        session.project.move([view.contents.classes["one"][0]], "two")
        monkeypatch.setattr(module, "evaluation_of", evaluation_of)
        thread = threading.Thread(target=updated, args=(session,))
        thread.start()
        thread.join()
        return evaluation_of(view)

    monkeypatch.setattr(module, "evaluation_of", evaluate_while_an_image_is_moved)
    assert [*session.evaluate()] == [] and not session.view.is_evaluated
    assert last(session).scores["two"][1] == 4


def test_program_ends_during_an_evaluation(session, monkeypatch):
    started = threading.Event()

    def endless(view):
        started.set()
        while True:
            torch.zeros(1).sum()

    monkeypatch.setattr(module, "evaluation_of", endless)
    with Worker(session).running():
        assert started.wait(240)
    assert not session.view.is_evaluated


def test_only_the_thread_of_the_context_is_interrupted():
    event = threading.Event()
    event.set()
    with Interruptible(event), pytest.raises(Interrupted):
        torch.zeros(2).sum()
    sums: list[float] = []
    with Interruptible(event):
        thread = threading.Thread(target=lambda: sums.append(torch.ones(2).sum().item()))
        thread.start()
        thread.join()
    assert sums == [2.0]
