"""Threads that keep the model of a session up to date: one trains, and one evaluates, which may take longer."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ...utils.errors import UserError, first_line
from ...utils.text import one_line
from .session import Session
from .view import View

logger = logging.getLogger(__name__)

READ_SECONDS = 1.0  # between two checks for changes of the folder by other programs
END_SECONDS = 0.1  # between two attempts to interrupt the evaluation
IDLE_SECONDS = 30.0  # without a request of a page, after which the folder is not checked


class Worker:
    """Threads of a session.

    Attributes:
        session: The session.
        problem: Reason why the folder cannot be read or the model cannot be trained, as a sentence; "" for none.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self.problem = ""
        self._changed = threading.Event()  # the folder
        self._trained = threading.Event()
        self._ended = threading.Event()
        self._asked_at = time.monotonic()  # time of the last request of a page

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run the threads during the block. A training is finished at its end, an evaluation is interrupted."""
        trainer = threading.Thread(target=self._repeat, args=(self._changed, READ_SECONDS, self.train), daemon=True)
        evaluator = threading.Thread(target=self._repeat, args=(self._trained, None, self.evaluate), daemon=True)
        trainer.start()
        evaluator.start()
        self.wake()
        try:
            yield
        finally:
            self._ended.set()
            self.session.stopping.set()  # the encoding
            self._changed.set()
            self._trained.set()
            trainer.join()
            while evaluator.is_alive():
                self.session.outdated.set()  # an evaluation that begins clears it
                evaluator.join(END_SECONDS)

    def wake(self) -> None:
        """Read the folder and train at once."""
        self._changed.set()

    def note_request(self) -> None:
        """Note that a page is open."""
        self._asked_at = time.monotonic()

    def train(self) -> None:
        """Read the folder, and encode and train until the model is up to date, if a page is open."""
        if time.monotonic() - self._asked_at > IDLE_SECONDS:
            return
        for _ in self._reported(self.session.update):
            self._trained.set()

    def evaluate(self) -> None:
        """Evaluate the latest model."""
        for _ in self._reported(self.session.evaluate):
            if self._ended.is_set():
                return

    def _reported(self, steps: Callable[[], Iterator[View]]) -> Iterator[View]:
        """Yield the views of steps. An error becomes `problem`, and ends them."""
        try:
            yield from steps()
            if steps == self.session.update:
                self.problem = ""
        except UserError as error:
            self.problem = one_line(f"Error: {error}")
        except Exception as error:
            logger.exception("the model could not be updated")
            self.problem = one_line(f"Error: {type(error).__name__}: {first_line(error)}")

    def _repeat(self, event: threading.Event, seconds: float | None, work: Callable[[], None]) -> None:
        """Work whenever an event is set, and after some seconds without it, until the program ends."""
        while not self._ended.is_set():
            event.wait(seconds)
            event.clear()
            if not self._ended.is_set():
                work()
