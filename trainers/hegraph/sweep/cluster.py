"""Doing the runs of a sweep on a Ray cluster, which is optional. The results come as they do from `workers`.

This process, the driver, reads the banks and writes all files; the machines of the cluster need see none of its
folders. While a run is away, its folder is locked. A run whose worker or machine is lost is sent again.
"""

from __future__ import annotations

import importlib
import io
import logging
import math
import os
import shutil
import signal
import socket
import tempfile
import zipfile
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from ..config import Config
from ..config_files import with_values
from ..experiments.lock import Locked, lock_folder
from ..experiments.run_folder import ERROR
from ..results.records import RECORD
from ..training.loop import CHECKPOINT
from ..utils.errors import PACKAGE, UserError, first_line, show_messages
from ..utils.files import hash_file, hash_json, write_json
from ..utils.reading import read_json, reading
from .grid import Run
from .workers import DONE, FAILED, LOCKED, THREADS, Result, attempt, is_done, record_failure

logger = logging.getLogger(__name__)

LOCAL, AUTO = "local", "auto"
ANSWERED_WITHIN = 10.0  # seconds in which a port has to answer
TRIES = 4  # how often a run is sent before it counts as failed: its worker may die of its memory every time
AHEAD = 2  # runs that are away for each that the cluster can do at a time, so that no worker waits for the next
MOST_AWAY = 900  # each holds the lock of its folder, and a process may have 1,024 open files
LOOK = 10.0  # seconds between two looks at the machines of the cluster


@contextmanager
def connected(address: str, cpus: float, gpus: float, verbose: bool) -> Iterator[Cluster]:
    """Gives a cluster with a machine that can do runs, each of which takes so many CPUs, which are its threads too, and
    GPUs. Both may be fractions. The cluster is left when the block ends.

    "local" starts Ray on this machine; "auto" takes the cluster that this machine is part of; else it is HOST:PORT of
    the cluster's head. With `verbose` the messages of the runs are shown, and not their warnings alone.

    Raises:
        UserError: If a run would take no CPU, less than no GPU, or 1.5 of either, if Ray is not installed, nobody
            answers, or no machine has enough for a run.
    """
    allowed = 0 < cpus < math.inf and 0 <= gpus < math.inf
    if not allowed or any(value > 1 and value % 1 for value in (cpus, gpus)):
        said = f"got {cpus:g} and {gpus:g}"
        raise UserError(f"--cpus-per-run must be above 0 and --gpus-per-run at least 0, whole from 1 on, {said}")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a sweep reports to nobody
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")  # else Ray warns that this will change
    try:
        import ray
    except ImportError as error:
        raise UserError(f"--ray needs Ray ({error}); run: pip install 'hegraph-adapter[ray]'") from error
    settings: dict[str, Any] = {"include_dashboard": False} if address == LOCAL else {}
    environment = {"env_vars": {THREADS: str(max(1, int(cpus)))}}  # torch reads it when it is imported
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        if address not in (LOCAL, AUTO):  # Ray itself would wait for a head that is not there
            host, _, port = address.rpartition(":")
            socket.create_connection((host.strip("[]"), int(port)), ANSWERED_WITHIN).close()
        ray.init(address=address, runtime_env=environment, logging_level=logging.ERROR, **settings)
    except Exception as error:  # where its processes do not start in time, Ray raises nothing narrower
        why = " ".join(str(error).split())
        raise UserError(f"no Ray cluster answers at {address} ({LOCAL}, {AUTO} or HOST:PORT): {why:.200}") from error
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)  # Ray would abort the process on SIGTERM
    try:
        with closing(Cluster(ray, cpus, gpus, verbose)) as cluster:
            machines = len(cluster.machines())
            logger.info("Ray cluster of %d machines; every run takes %g CPUs and %g GPUs", machines, cpus, gpus)
            if not cluster.runs_at_a_time():
                raise UserError(
                    f"a run takes {cpus:g} CPUs and {gpus:g} GPUs, and none of the {machines} machines of the Ray "
                    f"cluster has so many (all together: {ray.cluster_resources()}); lower --cpus-per-run or "
                    "--gpus-per-run"
                )
            yield cluster
    finally:
        ray.shutdown()


class Cluster:
    """Sends runs to a cluster, a bounded number at a time. The module `ray` is that of `connected`."""

    def __init__(self, ray: Any, cpus: float, gpus: float, verbose: bool) -> None:
        self.ray, self.cpus, self.gpus = ray, cpus, gpus
        self.away: dict[Any, tuple[Run, ExitStack]] = {}  # Ray's reference -> the run, and the lock of its folder
        self._last_bank: tuple[Path | None, Any] = None, None
        self._home = os.getcwd(), package_state(), verbose
        # Ray itself sends a run again whose worker or machine is lost
        tries = {"max_retries": TRIES - 1, "retry_exceptions": False}
        self._task = ray.remote(do_run).options(num_cpus=cpus, num_gpus=gpus, **tries)

    def machines(self) -> Sequence[dict]:
        """The machines of the cluster, as Ray describes them."""
        return [node for node in self.ray.nodes() if node["Alive"]]

    def runs_at_a_time(self) -> int:
        """How many runs the machines can do at a time; a warning where none can do any."""
        count = 0
        for has in (node["Resources"] for node in self.machines()):
            by_gpu = has.get("GPU", 0.0) / self.gpus if self.gpus else math.inf
            count += int(min(has.get("CPU", 0.0) / self.cpus, by_gpu) + 1e-6)
        if not count:
            logger.warning("no machine of the Ray cluster has %g CPUs and %g GPUs for a run", self.cpus, self.gpus)
        return count

    def results(self, runs: Sequence[Run]) -> Generator[Result]:
        """Does the runs; gives what has become of each as it comes.

        Raises:
            UserError: If a machine has another version of this package, or none.
        """
        waiting, limit = deque(runs), 0
        while waiting or self.away:
            limit = limit or max(1, min(AHEAD * self.runs_at_a_time(), MOST_AWAY))
            if waiting and len(self.away) < limit:
                if (result := self._send(waiting.popleft())) is not None:
                    yield result
            else:
                done, _ = self.ray.wait(list(self.away), timeout=LOOK)
                limit = limit if done else 0  # looks again what machines there are
                yield from map(self._receive, done)

    def close(self) -> None:
        """Gives up the runs that are away."""
        for _, lock in self.away.values():
            lock.close()
        self.away.clear()

    def _send(self, run: Run) -> Result | None:
        """Sends a run; returns what has become of it if it is not sent."""
        with ExitStack() as lock:
            try:
                lock.enter_context(lock_folder(run.folder))
                cfg = run.configuration()
                if is_done(run, cfg):
                    return Result(run, DONE, "done by another process")
                path = run.folder / CHECKPOINT
                checkpoint = path.read_bytes() if path.exists() else None
                sent = self._task.remote(run, cfg, self._bank(run.bank), checkpoint, *self._home)
            except Locked as error:
                return Result(run, LOCKED, str(error))
            except (UserError, OSError, self.ray.exceptions.RayError) as error:
                return Result(run, FAILED, record_failure(run, error))
            self.away[sent] = run, lock.pop_all()
        return None

    def _bank(self, path: Path | None) -> Any:
        """The bytes of a bank in the object store, which keeps no other but for runs that are away."""
        if path is None:
            return None
        if path != self._last_bank[0]:
            with reading(path, "a feature bank"):
                content = np.fromfile(path, dtype=np.uint8)
            self._last_bank = path, self.ray.put(content)
        return self._last_bank[1]

    def _receive(self, reference: Any) -> Result:
        """What has become of a run that was away."""
        (run, lock), errors = self.away.pop(reference), self.ray.exceptions
        with lock:
            try:
                result, left = self.ray.get(reference)
                unpack(left, run.folder)
                if result.status == FAILED and not (run.folder / ERROR).exists():  # the disk of the worker may be full
                    record_failure(run, RuntimeError(result.message))
                return result
            except errors.RayTaskError as error:  # not the run itself has failed, but what is around it
                if not isinstance(error.cause, OSError):
                    raise UserError(f"a worker cannot do runs: {first_line(error.cause)}") from error
                why: Exception = error.cause
            except errors.RayError as error:
                kind = type(error).__name__
                why = RuntimeError(f"its worker or machine was lost {TRIES} times ({kind}): try more --cpus-per-run")
            except OSError as error:
                why = error
            return Result(run, FAILED, record_failure(run, why))


def do_run(
    run: Run, cfg: Config, bank: Any, checkpoint: bytes | None, cwd: str, package: str, verbose: bool
) -> tuple[Result, bytes]:
    """What a worker does: a run in a temporary folder.

    Args:
        cfg: The run's configuration: the files that it came from may not be there.
        bank: The bytes of the feature bank, if the run is made of one.
        checkpoint: Of an interrupted run, which goes on from it.
        cwd, package: The folder in which the sweep was started, for relative paths, and `package_state` there.

    Returns:
        What has become of the run, and the files that it has left, as a zip file.
    """
    if package_state() != package:
        raise UserError(f"{socket.gethostname()} has {package_state()}, and the driver {package}; install one version")
    show_messages()
    with suppress(OSError):
        os.chdir(cwd)
    with tempfile.TemporaryDirectory(prefix=f"hegraph-run-{os.getpid()}-") as temporary:
        there = replace(run, folder=Path(temporary) / "run")
        there.folder.mkdir()
        if bank is not None:
            there = replace(there, source=f"{temporary}/{Path(run.source).name}")
            Path(there.source).write_bytes(memoryview(bank))
        if checkpoint is not None:
            (there.folder / CHECKPOINT).write_bytes(checkpoint)
        result = attempt(there, verbose, with_values(cfg, {"OUTPUT_DIR": str(there.folder)}))

        def at_home(said: str) -> str:
            """A text in which temporary paths have the names that the user knows."""
            return said.replace(str(there.folder), str(run.folder)).replace(there.source, run.source)

        if (error := there.folder / ERROR).exists():
            said = {key: at_home(value) if isinstance(value, str) else value for key, value in read_json(error).items()}
            write_json(error, said | {"command": run.command()})
        packed = Path(shutil.make_archive(f"{temporary}/left", "zip", there.folder)).read_bytes()
        return replace(result, run=run, message=at_home(result.message)), packed


@cache
def package_state() -> str:
    """The version of this package in this process and the hash of its sources, such as "version 1.2 (1f2e3d4c)"."""
    folder = Path(__file__).parents[1]
    sources = hash_json({file.relative_to(folder).as_posix(): hash_file(file) for file in folder.rglob("*.py")})
    return f"version {importlib.import_module(PACKAGE).__version__} of {PACKAGE} (sources {sources[:16]})"


def unpack(packed: bytes, folder: Path) -> None:
    """Puts what a run has left into its folder: every file and every folder whole, and the record last of all.

    As a run on this machine would, it takes away what an earlier attempt has left to say of its failure, and the
    checkpoint of a run that is finished.

    Raises:
        OSError: If the folder cannot be written.
    """
    with tempfile.TemporaryDirectory(dir=folder, prefix=".left-", ignore_cleanup_errors=True) as temporary:
        zipfile.ZipFile(io.BytesIO(packed)).extractall(temporary)
        left = sorted(os.listdir(temporary), key=lambda name: name == RECORD)
        for name in left:
            if (folder / name).is_dir():
                shutil.rmtree(folder / name)
            os.replace(f"{temporary}/{name}", folder / name)
        for name in {ERROR, CHECKPOINT} - set(left):
            (folder / name).unlink(missing_ok=True)
