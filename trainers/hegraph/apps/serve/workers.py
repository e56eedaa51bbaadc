"""Several processes that answer requests to one address.

The parent loads no model. The first worker starts alone, so that a model that cannot be loaded is one error and not one
for each worker. A worker that is killed later is started again. Workers end when the parent does.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import wait
from typing import TYPE_CHECKING, NamedTuple

from ...utils.logs import show_messages
from ...utils.signals import deferred_interrupts, stop_if_interrupted
from .deadline import end_within

if TYPE_CHECKING:
    from multiprocessing.context import SpawnProcess
    from multiprocessing.synchronize import Event

    from .settings import Settings

logger = logging.getLogger(__name__)

FOLDER = "PROMETHEUS_MULTIPROC_DIR"  # environment variable with the folder of the metrics of all workers
CHECK_SECONDS = 0.2  # between two looks at workers that start
KILL_SECONDS = 1  # from the deadline of the workers to the deadline of the parent


class Worker(NamedTuple):
    """Process of a server.

    Attributes:
        process: The process.
        ready: Set when it accepts requests.
    """

    process: SpawnProcess
    ready: Event


class Workers:
    """Processes that answer requests to one address.

    Args:
        settings: Settings of the server.
        listener: Socket that is bound to the address.
    """

    def __init__(self, settings: Settings, listener: socket.socket) -> None:
        self.settings = settings.model_copy(update={"stop_seconds": settings.stop_seconds - KILL_SECONDS})
        self.listener = listener
        self.context = multiprocessing.get_context("spawn")
        self.workers: list[Worker] = []

    def run(self, on_ready: Callable[[], object]) -> int:
        """Run the workers until the process is interrupted or terminated.

        Args:
            on_ready: Function that is called when all workers accept requests.

        Returns:
            0, or the exit code of a worker that could not start and has printed its error.
        """
        with tempfile.TemporaryDirectory(prefix="hegraph-metrics-") as folder:
            os.environ[FOLDER] = folder
            try:
                for count in (1, self.settings.workers - 1):
                    if code := self._start(count):
                        return code
                on_ready()
                return self._replace_killed()
            except KeyboardInterrupt:
                return 0
            finally:
                with deferred_interrupts():
                    self._stop()

    def _start(self, count: int) -> int:
        """Start workers; returns 0 when they accept requests, or the exit code of one that could not start."""
        started = [self._add() for _ in range(count)]
        while not all(worker.ready.is_set() for worker in started):
            ended = wait([worker.process.sentinel for worker in started], CHECK_SECONDS)
            for worker in started:
                if worker.process.sentinel in ended and not worker.ready.is_set():
                    worker.process.join()
                    return worker.process.exitcode or 1
            if ended:  # a ready one was killed, and is replaced later
                time.sleep(CHECK_SECONDS)
        return 0

    def _add(self) -> Worker:
        ready = self.context.Event()
        process = self.context.Process(target=run_worker, args=(self.settings, self.listener, ready))
        worker = Worker(process, ready)
        self.workers.append(worker)
        with deferred_interrupts():  # in the middle of the start, the process exists, but has no number yet
            process.start()
        stop_if_interrupted()
        return worker

    def _replace_killed(self) -> int:
        """Start a worker again whenever one has ended; returns the exit code of one that could not start."""
        while True:
            wait([worker.process.sentinel for worker in self.workers])
            ended = [worker for worker in self.workers if worker.process.exitcode is not None]
            for worker in ended:
                self.workers.remove(worker)
                logger.warning("a worker ended with exit code %s; another one starts", worker.process.exitcode)
            if code := self._start(len(ended)):
                return code

    def _stop(self) -> None:
        """End all workers within the deadline of the parent; kill those that have not ended before it."""
        end_within(self.settings.stop_seconds + KILL_SECONDS)
        processes = [worker.process for worker in self.workers if worker.process.pid is not None]
        for process in processes:
            process.terminate()
        end = time.monotonic() + self.settings.stop_seconds + KILL_SECONDS / 2
        for process in processes:
            process.join(max(end - time.monotonic(), 0))
        for process in processes:
            if process.exitcode is None:
                process.kill()
                process.join()


def run_worker(settings: Settings, listener: socket.socket, ready: Event) -> None:
    """Answer requests in a process of `Workers`."""
    import torch

    from ...utils.threads import cores
    from .start import run_quietly, serve_model

    threading.Thread(target=end_with_parent, daemon=True).start()
    show_messages()
    torch.set_num_threads(max(cores() // settings.workers, 1))
    sys.exit(run_quietly(lambda: serve_model(settings, listener, ready.set)))


def end_with_parent() -> None:
    """Terminate this process when its parent has ended, even by a kill."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)
