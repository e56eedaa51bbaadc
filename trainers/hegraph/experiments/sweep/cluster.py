"""Run a sweep on a Ray cluster (optional).

This process, the driver, reads the feature banks and writes all files, so that the machines of the cluster need no
access to its folders. The folder of a submitted run is locked. Runs of lost workers or machines are submitted again.
"""

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

from ...config import Config
from ...config_files import with_values
from ...method.training.loop import CHECKPOINT
from ...results.records import RECORD
from ...utils.errors import UserError, first_line
from ...utils.files import hash_file, hash_json, write_json
from ...utils.locks import Locked, lock_folder
from ...utils.logs import PACKAGE, show_messages
from ...utils.reading import read_json, reading
from ..run_folder import ERROR
from .grid import Run
from .workers import DONE, FAILED, LOCKED, THREADS, Result, attempt, is_done, record_failure

logger = logging.getLogger(__name__)

LOCAL, AUTO = "local", "auto"
RAY = "ray[serve]>=2.49"  # as in pyproject.toml
CONNECT_TIMEOUT = 10.0  # seconds
TRIES = 4  # number of submissions before a run counts as failed, as its worker may run out of memory every time
AHEAD = 2  # submitted runs per slot of the cluster, so that no worker is idle
MAX_SUBMITTED = 900  # each locks a file, and a process can open 1,024 files
REFRESH = 10.0  # seconds between two queries of the machines


@contextmanager
def connected(address: str, cpus: float, gpus: float, verbose: bool) -> "Iterator[Cluster]":
    """Context of a Ray cluster with at least one machine that has the resources of a run.

    Args:
        address: "local" to start Ray on this machine, "auto" for the cluster of this machine, or HOST:PORT of a head.
        cpus: CPUs of a run, and number of its threads; fractions below 1 are allowed.
        gpus: GPUs of a run; fractions below 1 are allowed.
        verbose: Whether to show all messages of the runs instead of their warnings only.

    Raises:
        UserError: If `cpus` or `gpus` is out of range, Ray is not installed, the address does not answer, or no machine
            has the resources of a run.
    """
    allowed = 0 < cpus < math.inf and 0 <= gpus < math.inf
    if not allowed or any(value > 1 and value % 1 for value in (cpus, gpus)):
        expected = "expected --cpus-per-run above 0 and --gpus-per-run of at least 0, and whole numbers above 1"
        raise UserError(f"{expected}, got {cpus:g} and {gpus:g}; give such as 0.5, 1 or 2", "ray.resources")
    ray = start_ray(address, cpus)
    try:
        with closing(Cluster(ray, cpus, gpus, verbose)) as cluster:
            machines = len(cluster.machines())
            logger.info("Ray cluster of %d machines; every run takes %g CPUs and %g GPUs", machines, cpus, gpus)
            if not cluster.runs_at_a_time():
                raise UserError(
                    f"expected a machine with {cpus:g} CPUs and {gpus:g} GPUs for a run, got {machines} smaller ones "
                    f"(total: {ray.cluster_resources()}); lower --cpus-per-run or --gpus-per-run",
                    "ray.resources",
                )
            yield cluster
    finally:
        ray.shutdown()


def start_ray(address: str, cpus: float) -> Any:
    """Connect this process to a Ray cluster, and return the module `ray`.

    Args:
        address: As in `connected`.
        cpus: CPUs of a run, which gives the number of threads of a worker.

    Raises:
        UserError: If Ray is not installed, or the address does not answer.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # disable telemetry
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")  # otherwise Ray warns about a future change
    try:
        import ray
    except ImportError as error:
        raise UserError(f"--ray needs Ray ({error}); run: pip install '{RAY}'") from error
    settings: dict[str, Any] = {"include_dashboard": False} if address == LOCAL else {}
    environment = {"env_vars": {THREADS: str(max(1, int(cpus)))}}  # torch reads it when it is imported
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        if address not in (LOCAL, AUTO):  # Ray would wait for a missing head
            host, _, port = address.rpartition(":")
            socket.create_connection((host.strip("[]"), int(port)), CONNECT_TIMEOUT).close()
        ray.init(address=address, runtime_env=environment, logging_level=logging.ERROR, **settings)
    except Exception as error:  # Ray raises Exception if its processes do not start in time
        why = " ".join(str(error).split())
        raise UserError(f"no Ray cluster answers at {address} ({LOCAL}, {AUTO} or HOST:PORT): {why:.200}") from error
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)  # Ray would abort the process on SIGTERM
    return ray


class Cluster:
    """Submits runs to a cluster, a limited number at a time.

    Args:
        ray: The module `ray`, after `ray.init`.
        cpus, gpus, verbose: As in `connected`.
    """

    def __init__(self, ray: Any, cpus: float, gpus: float, verbose: bool) -> None:
        self.ray = ray
        self.cpus = cpus
        self.gpus = gpus
        self.submitted: dict[Any, tuple[Run, ExitStack]] = {}  # Ray's reference -> run and lock of its folder
        self._last_bank: tuple[Path | None, Any] = None, None
        self._home = os.getcwd(), package_state(), verbose
        # Ray submits a run again if its worker or machine is lost
        tries = {"max_retries": TRIES - 1, "retry_exceptions": False}
        self._task = ray.remote(do_run).options(num_cpus=cpus, num_gpus=gpus, **tries)

    def machines(self) -> Sequence[dict]:
        """List Ray's descriptions of the machines."""
        return [node for node in self.ray.nodes() if node["Alive"]]

    def runs_at_a_time(self) -> int:
        """Return the number of simultaneous runs, and warn if it is 0."""
        count = 0
        for has in (node["Resources"] for node in self.machines()):
            by_gpu = has.get("GPU", 0.0) / self.gpus if self.gpus else math.inf
            count += int(min(has.get("CPU", 0.0) / self.cpus, by_gpu) + 1e-6)
        if not count:
            logger.warning("no machine of the Ray cluster has %g CPUs and %g GPUs for a run", self.cpus, self.gpus)
        return count

    def results(self, runs: Sequence[Run]) -> Generator[Result]:
        """Run all runs, and yield their results in order of completion.

        Raises:
            UserError: If this package is missing on a machine, or has another version there.
        """
        waiting = deque(runs)
        limit = 0  # of submitted runs; 0 until it is known
        while waiting or self.submitted:
            limit = limit or max(1, min(AHEAD * self.runs_at_a_time(), MAX_SUBMITTED))
            if waiting and len(self.submitted) < limit:
                result = self._send(waiting.popleft())
                if result is not None:
                    yield result
            else:
                done, _ = self.ray.wait(list(self.submitted), timeout=REFRESH)
                limit = limit if done else 0  # query the machines again
                yield from map(self._receive, done)

    def close(self) -> None:
        """Abandon the submitted runs."""
        for _, lock in self.submitted.values():
            lock.close()
        self.submitted.clear()

    def _send(self, run: Run) -> Result | None:
        """Submit a run; return its result if it was not submitted."""
        with ExitStack() as lock:
            try:
                lock.enter_context(lock_folder(run.folder))
                cfg = run.configuration()
                if is_done(run, cfg):
                    return Result(run, DONE, "done by another process")
                path = run.folder / CHECKPOINT
                checkpoint = path.read_bytes() if path.exists() else None
                reference = self._task.remote(run, cfg, self._bank(run.bank), checkpoint, *self._home)
            except Locked as error:
                return Result(run, LOCKED, str(error))
            except (UserError, OSError, self.ray.exceptions.RayError) as error:
                return record_failure(run, error)
            self.submitted[reference] = run, lock.pop_all()
        return None

    def _bank(self, path: Path | None) -> Any:
        """Put the bytes of a feature bank into the object store. One bank is cached."""
        if path is None:
            return None
        if path != self._last_bank[0]:
            with reading(path, "a feature bank"):
                content = np.fromfile(path, dtype=np.uint8)
            self._last_bank = path, self.ray.put(content)
        return self._last_bank[1]

    def _receive(self, reference: Any) -> Result:
        """Return the result of a submitted run, and write its files to its folder, which is unlocked.

        A lost worker, a lost machine, and a folder or disk that cannot be read or written fail the run.

        Raises:
            UserError: If the worker failed outside of the run, for example because it has another version of this
                package.
        """
        run, lock = self.submitted.pop(reference)
        errors = self.ray.exceptions
        with lock:
            try:
                result, files = self.ray.get(reference)
                unpack(files, run.folder)
                if result.status == FAILED and not (run.folder / ERROR).exists():  # the worker's disk may be full
                    record_failure(run, RuntimeError(result.message))
                return result
            except errors.RayTaskError as error:
                if not isinstance(error.cause, OSError):
                    raise UserError(f"a Ray worker failed: {first_line(error.cause)}", "ray.worker") from error
                why: Exception = error.cause
            except errors.RayError as error:
                kind = type(error).__name__
                why = RuntimeError(f"lost its worker or machine {TRIES} times ({kind}); raise --cpus-per-run")
            except OSError as error:
                why = error
            return record_failure(run, why)


def do_run(
    run: Run, cfg: Config, bank: Any, checkpoint: bytes | None, cwd: str, package: str, verbose: bool
) -> tuple[Result, bytes]:
    """Do a run in a temporary folder of a worker.

    Args:
        cfg: Configuration of the run, whose files may be missing on the worker.
        bank: Bytes of the feature bank; None for a data set.
        checkpoint: Checkpoint of an interrupted run to continue.
        cwd: Working directory of the driver, for relative paths.
        package: `package_state` of the driver.

    Returns:
        Result of the run, and its files as a zip file.
    """
    if package_state() != package:
        got = f"{package_state()} on {socket.gethostname()}"
        raise UserError(f"expected {package} as on the driver, got {got}; install one version")
    show_messages()
    with suppress(OSError):
        os.chdir(cwd)
    with tempfile.TemporaryDirectory(prefix=f"hegraph-run-{os.getpid()}-") as temporary:
        local = replace(run, folder=Path(temporary) / "run")
        local.folder.mkdir()
        if bank is not None:
            local = replace(local, source=f"{temporary}/{Path(run.source).name}")
            Path(local.source).write_bytes(memoryview(bank))
        if checkpoint is not None:
            (local.folder / CHECKPOINT).write_bytes(checkpoint)
        result = attempt(local, verbose, with_values(cfg, {"OUTPUT_DIR": str(local.folder)}))

        def original(text: str) -> str:
            """Replace temporary paths by the ones of the driver."""
            return text.replace(str(local.folder), str(run.folder)).replace(local.source, run.source)

        file = local.folder / ERROR
        if file.exists():
            failure = read_json(file)
            texts = {key: original(value) for key, value in failure.items() if isinstance(value, str)}
            write_json(file, failure | texts | {"command": run.command()})
        packed = Path(shutil.make_archive(f"{temporary}/files", "zip", local.folder)).read_bytes()
        return replace(result, run=run, message=original(result.message)), packed


@cache
def package_state() -> str:
    """Version of this package in this process, and hash of its sources."""
    folder = Path(__file__).parents[2]
    sources = hash_json({file.relative_to(folder).as_posix(): hash_file(file) for file in folder.rglob("*.py")})
    return f"version {importlib.import_module(PACKAGE).__version__} of {PACKAGE} (sources {sources[:16]})"


def unpack(packed: bytes, folder: Path) -> None:
    """Move the files of a run from a zip file to its folder, the record last.

    The error and the checkpoint of an earlier attempt are removed, as after a local run.

    Raises:
        OSError: If the folder cannot be written.
    """
    with tempfile.TemporaryDirectory(dir=folder, prefix=".unpacked-", ignore_cleanup_errors=True) as temporary:
        zipfile.ZipFile(io.BytesIO(packed)).extractall(temporary)
        names = sorted(os.listdir(temporary), key=lambda name: name == RECORD)
        for name in names:
            if (folder / name).is_dir():
                shutil.rmtree(folder / name)
            os.replace(f"{temporary}/{name}", folder / name)
        for name in {ERROR, CHECKPOINT} - set(names):
            (folder / name).unlink(missing_ok=True)
