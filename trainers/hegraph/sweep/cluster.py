"""Doing the runs of a sweep on a Ray cluster, which is optional. The results come as they do from `workers`.

This process, the driver, reads the banks and writes all files; the machines of the cluster need see none of its
folders. While a run is away, its folder is locked. A run whose worker or machine is lost is sent again.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import logging
import math
import os
import re
import shutil
import signal
import socket
import tempfile
import uuid
import zipfile
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from ..config import Config
from ..config_files import with_values
from ..experiments.folder import ERROR, Locked, lock_folder
from ..results.records import RECORD
from ..training.checkpoints import CHECKPOINT
from ..utils.errors import PACKAGE, UserError, first_line, show_messages
from ..utils.files import atomic_path, hash_json, write_json
from ..utils.reading import read_json
from .grid import Run
from .plan import is_done
from .workers import DONE, FAILED, LOCKED, THREADS, Result, attempt, record_failure

logger = logging.getLogger(__name__)

LOCAL, AUTO = "local", "auto"
ADDRESS = re.compile(r"(?:\[[0-9A-Fa-f:]+\]|[^\s:/\[\]]+):[0-9]{1,5}")  # HOST:PORT
ANSWERED_WITHIN = 10.0  # seconds in which a port, and a machine, has to answer
HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])  # as every client of gRPC begins
SETTINGS = 4  # the type of the frame with which every server of gRPC answers
TRIES = 4  # how often a run is sent before it counts as failed: its worker may die of its memory every time
AHEAD = 2  # runs that are away for each that the cluster can do at a time, so that no worker waits for the next
MOST_AWAY = 900  # each holds the lock of its folder, and a process may have 1,024 open files
LOOK = 10.0  # seconds between two looks at the machines of the cluster
OTHER_PACKAGE = "other package"  # what can become of a run beside what `workers` names


@dataclass(frozen=True)
class Demand:
    """What one run takes of a machine: CPUs, which are threads too, and GPUs. Both may be fractions.

    Raises:
        UserError: If a run would take no CPU, less than no GPU, or 1.5 of either.
    """

    cpus: float = 1.0
    gpus: float = 0.0

    def __post_init__(self) -> None:
        for flag, value, least, allowed in (
            ("--cpus-per-run", self.cpus, "above 0", 0 < self.cpus < math.inf),
            ("--gpus-per-run", self.gpus, "at least 0", 0 <= self.gpus < math.inf),
        ):
            if not allowed or (value > 1 and value % 1):
                raise UserError(f"{flag} must be {least}, and whole from 1 on, got {value:g}")

    def times_in(self, node: dict) -> int:
        """How many runs a machine, as Ray describes it, can do at a time."""
        has = node["Resources"]
        fits = min(has.get("CPU", 0.0) / self.cpus, has.get("GPU", 0.0) / self.gpus if self.gpus else math.inf)
        return int(fits + 1e-6)

    def __str__(self) -> str:
        return f"{self.cpus:g} CPUs{f' and {self.gpus:g} GPUs' if self.gpus else ''}"


def check_address(address: str) -> None:
    """Raises UserError if an address is none that `--ray` takes."""
    if address not in (LOCAL, AUTO) and not ADDRESS.fullmatch(address):
        raise UserError(
            f"--ray takes {LOCAL}, {AUTO} or HOST:PORT of the cluster's head, such as 10.0.0.1:6379, got {address!r}"
        )


@contextmanager
def connected(address: str, demand: Demand, verbose: bool = False) -> Iterator[Cluster]:
    """Gives a cluster with a machine that can do runs, which is left when the block ends.

    "local" starts Ray on this machine; "auto" takes the cluster that this machine is part of; else it is HOST:PORT of
    the cluster's head. With `verbose` the messages of the runs are shown, and not their warnings alone.

    Raises:
        UserError: If Ray is not installed, nobody answers, or no machine has enough for a run.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a sweep reports to nobody
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")  # else Ray warns that this will change
    try:
        import ray
    except ImportError as error:
        raise UserError(f"--ray needs Ray ({error}); run: pip install 'hegraph-adapter[ray]'") from error
    if address not in (LOCAL, AUTO):
        _check_answer(address)
    settings: dict[str, Any] = {"include_dashboard": False} if address == LOCAL else {}
    environment = {"env_vars": {THREADS: str(max(1, int(demand.cpus)))}}  # torch reads it when it is imported
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        ray.init(address=address, runtime_env=environment, logging_level=logging.ERROR, **settings)
    except Exception as error:  # where its processes do not start in time, Ray raises nothing narrower
        raise UserError(f"no Ray cluster at {address}: {' '.join(str(error).split()):.200}") from error
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)  # Ray would abort the process on SIGTERM
    try:
        with closing(Cluster(ray, demand, verbose)) as cluster:
            logger.info("Ray cluster of %d machines; every run takes %s", len(cluster.machines()), demand)
            if not any(map(demand.times_in, cluster.machines())):
                raise UserError(
                    f"a run takes {demand}, and none of the {len(cluster.machines())} machines of the Ray cluster has "
                    f"so many (all of them together have {ray.cluster_resources()}); lower --cpus-per-run or "
                    "--gpus-per-run"
                )
            yield cluster
    finally:
        ray.shutdown()


def _check_answer(address: str) -> None:
    """Raises UserError if nothing at an address speaks as Ray's head does, which Ray itself would wait for."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), ANSWERED_WITHIN) as probe:
            probe.settimeout(ANSWERED_WITHIN)
            probe.sendall(HELLO)
            if probe.recv(9)[3:4] != bytes([SETTINGS]):
                raise OSError("something else answers")
    except (OSError, OverflowError) as error:
        why = f"no Ray cluster answers at {address} ({first_line(error)})"
        raise UserError(f"{why}; ray start --head --port PORT starts one") from error


class Cluster:
    """Sends runs to a cluster, a bounded number at a time. The module `ray` is that of `connected`."""

    def __init__(self, ray: Any, demand: Demand, verbose: bool = False) -> None:
        self.ray, self.demand = ray, demand
        self.away: dict[Any, tuple[Run, ExitStack]] = {}  # Ray's reference -> the run, and the lock of its folder
        self.banks: dict[Path, Any] = {}  # those in the object store
        self._place = f"hegraph-sweep-{uuid.uuid4().hex}"  # of banks, below the temporary folder of every machine
        self._home = self._place, os.getcwd(), package_state(), verbose
        # Ray itself sends a run again whose worker or machine is lost
        tries = {"max_retries": TRIES - 1, "retry_exceptions": False}
        self._task = ray.remote(do_run).options(num_cpus=demand.cpus, num_gpus=demand.gpus, **tries)

    def machines(self) -> Sequence[dict]:
        """The machines of the cluster, as Ray describes them."""
        return [node for node in self.ray.nodes() if node["Alive"]]

    def results(self, runs: Sequence[Run]) -> Iterator[Result]:
        """Does the runs; gives what has become of each as it comes.

        Raises:
            UserError: If a machine has another version of this package, or none.
        """
        waiting, limit, to_come = deque(runs), self.limit(), Counter(run.bank for run in runs)
        while waiting or self.away:
            if waiting and len(self.away) < limit:
                ended = [result] if (result := self._send(waiting.popleft())) else []
            else:
                done, _ = self.ray.wait(list(self.away), timeout=LOOK)
                ended = [self._receive(reference) for reference in done]
                limit = limit if done else self.limit()
            for result in ended:
                to_come[result.run.bank] -= 1
                if result.run.bank and not to_come[result.run.bank]:
                    self.banks.pop(result.run.bank, None)  # takes it out of the object store
                yield result

    def limit(self) -> int:
        """How many runs may be away at a time; says so where no machine can do any."""
        at_a_time = sum(map(self.demand.times_in, self.machines()))
        if not at_a_time:
            logger.warning("no machine of the Ray cluster has %s any more: waiting for one", self.demand)
        return max(1, min(AHEAD * at_a_time, MOST_AWAY))

    def close(self) -> None:
        """Gives up the runs that are away, and removes the banks from the machines."""
        for _, lock in self.away.values():
            lock.close()
        self.away.clear()
        with suppress(Exception):
            at_node = self.ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
            there = [at_node(node_id=node["NodeID"], soft=False) for node in self.machines()]
            forget = [self.ray.remote(forget_banks).options(num_cpus=0, scheduling_strategy=node) for node in there]
            asked = [task.remote(self._place) for task in forget]
            self.ray.wait(asked, num_returns=len(asked), timeout=ANSWERED_WITHIN)

    def _send(self, run: Run) -> Result | None:
        """Sends a run; returns what has become of it if it is not sent."""
        with ExitStack() as lock:
            try:
                lock.enter_context(lock_folder(run.folder))
                cfg = run.configuration()
                if (done := is_done(run, cfg)) is not None:
                    if done:
                        return Result(run, DONE, "done by another process")
                    raise UserError(f"{run.folder} holds the result of a run with other settings or data")
                path = run.folder / CHECKPOINT
                checkpoint = path.read_bytes() if path.exists() else None
                sent = self._task.remote(run, cfg, self._bank(run.bank), checkpoint, *self._home)
            except Locked as error:
                return Result(run, LOCKED, str(error))
            except (UserError, OSError) as error:
                return Result(run, FAILED, record_failure(run, error))
            self.away[sent] = run, lock.pop_all()
        return None

    def _bank(self, path: Path | None) -> Any:
        """The bytes of a bank in the object store, where they go when its first run is sent."""
        if path is not None and path not in self.banks:
            try:
                self.banks[path] = self.ray.put(np.fromfile(path, dtype=np.uint8))
            except (OSError, self.ray.exceptions.RayError) as error:
                raise UserError(f"cannot send the feature bank {path}: {first_line(error)}") from error
        return None if path is None else self.banks[path]

    def _receive(self, reference: Any) -> Result:
        """What has become of a run that was away."""
        (run, lock), errors = self.away.pop(reference), self.ray.exceptions
        with lock:
            try:
                status, message, seconds, left = self.ray.get(reference)
                if status == OTHER_PACKAGE:
                    raise UserError(f"{message}; install the same on all machines")
                unpack(left, run.folder)
                if status == FAILED and not (run.folder / ERROR).exists():  # the disk of the worker may be full
                    record_failure(run, RuntimeError(message))
                return Result(run, status, message, seconds)
            except errors.RayTaskError as error:  # not the run itself has failed, but what is around it
                if not isinstance(error.cause, OSError):
                    raise UserError(f"a worker cannot do runs; is {PACKAGE} there? {error.cause!r:.120}") from error
                why: Exception = error.cause
            except errors.RayError as error:
                kind = type(error).__name__
                why = RuntimeError(f"its worker or machine was lost {TRIES} times ({kind}): try more --cpus-per-run")
            except OSError as error:
                why = error
            return Result(run, FAILED, record_failure(run, why))


def do_run(
    run: Run, cfg: Config, bank: Any, checkpoint: bytes | None, place: str, cwd: str, package: str, verbose: bool
) -> tuple[str, str, float, bytes]:
    """What a worker does: a run in a temporary folder.

    Args:
        cfg: The run's configuration: the files that it came from may not be there.
        bank: The bytes of the feature bank, if the run is made of one.
        checkpoint: Of an interrupted run, which goes on from it.
        place: The folder of banks, below the folder of temporary files of a machine.
        cwd, package: The folder in which the sweep was started, for relative paths, and `package_state` there.

    Returns:
        Status, message and seconds as of `workers.Result`, and the files that the run has left, as a zip file.
    """
    if package_state() != package:
        return OTHER_PACKAGE, f"{socket.gethostname()} has {package_state()}, and the driver {package}", 0.0, b""
    show_messages()
    with suppress(OSError):
        os.chdir(cwd)
    with tempfile.TemporaryDirectory(prefix=f"hegraph-run-{os.getpid()}-") as temporary:
        there = replace(run, folder=Path(temporary) / "run")
        if bank is not None:
            there = replace(there, source=str(_bank_file(bank, Path(tempfile.gettempdir()) / place, Path(run.source))))
        if checkpoint is not None:
            there.folder.mkdir()
            (there.folder / CHECKPOINT).write_bytes(checkpoint)
        result = attempt(there, verbose, with_values(cfg, {"OUTPUT_DIR": str(there.folder)}))

        def at_home(said: str) -> str:
            """A text in which temporary paths have the names that the user knows."""
            return said.replace(str(there.folder), str(run.folder)).replace(there.source, run.source)

        if (error := there.folder / ERROR).exists():
            said = {key: at_home(value) if isinstance(value, str) else value for key, value in read_json(error).items()}
            write_json(error, said | {"command": run.command()})
        packed = Path(shutil.make_archive(f"{temporary}/left", "zip", there.folder)).read_bytes()
        return result.status, at_home(result.message), result.seconds, packed


def _bank_file(content: Any, place: Path, source: Path) -> Path:
    """The file of a bank on this machine. The first worker that needs it writes it, and all of them read it."""
    path = place / hash_json(str(source)) / source.name
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        if not path.exists():
            with atomic_path(path) as temporary:
                temporary.write_bytes(memoryview(content))
    return path


def forget_banks(place: str) -> None:
    """Removes the banks that workers have written on this machine."""
    shutil.rmtree(Path(tempfile.gettempdir()) / place, ignore_errors=True)


@cache
def package_state() -> str:
    """The version of this package in this process and the hash of its sources, such as "version 1.2 (1f2e3d4c)"."""
    folder, digest = Path(__file__).parents[1], hashlib.sha256()
    for name in sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*.py")):
        digest.update(name.encode() + b"\0" + hashlib.sha256((folder / name).read_bytes()).digest())
    return f"version {importlib.import_module(PACKAGE).__version__} of {PACKAGE} (sources {digest.hexdigest()[:16]})"


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
