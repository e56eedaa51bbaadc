"""A Ray cluster: whether it answers, what it has to offer, and whether its machines have this package.

Nothing of Ray is imported before a cluster is asked for, since Ray is optional.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from ..utils.errors import PACKAGE, UserError
from ..utils.signals import kept_signals
from .package_state import in_words, reader_of_state, state_here

logger = logging.getLogger(__name__)

LOCAL, AUTO = "local", "auto"
ADDRESS = re.compile(r"(?:\[[0-9A-Fa-f:]+\]|[^\s:/\[\]]+):[0-9]{1,5}")  # HOST:PORT
REACHED_WITHIN = 10.0  # seconds in which a port has to take a connection
ANSWERED_WITHIN = 60.0  # seconds in which a cluster has to let us in, and a machine to answer
THREADS = "OMP_NUM_THREADS"
# Connects and leaves again. A process of its own can be ended where Ray would wait, or end the process that it is in.
TRY = "import sys, ray; ray.init(address=sys.argv[1], log_to_driver=False, logging_level='ERROR'); print('connected')"


@dataclass(frozen=True)
class Demand:
    """What one run takes of a machine: CPUs, which are threads too, and GPUs. Both may be fractions.

    Raises:
        UserError: If a run would take no CPU, or less than no GPU.
    """

    cpus: float = 1.0
    gpus: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.cpus < float("inf"):
            raise UserError(f"--cpus-per-run must be above 0, got {self.cpus:g}")
        if not 0 <= self.gpus < float("inf"):
            raise UserError(f"--gpus-per-run must be at least 0, got {self.gpus:g}")
        for name, value in (("cpus", self.cpus), ("gpus", self.gpus)):
            if value > 1 and value != int(value):
                raise UserError(f"--{name}-per-run above 1 must be a whole number, got {value:g}")

    @property
    def threads(self) -> int:
        """How many threads a run computes with."""
        return max(1, int(self.cpus))

    def times_in(self, resources: dict[str, float]) -> int:
        """How many runs fit into what Ray says of a machine."""
        fits = resources.get("CPU", 0.0) / self.cpus
        if self.gpus:
            fits = min(fits, resources.get("GPU", 0.0) / self.gpus)
        return int(fits + 1e-6)

    def __str__(self) -> str:
        gpus = f" and {self.gpus:g} GPUs" if self.gpus else ""
        return f"{self.cpus:g} CPUs{gpus}"


def check_address(address: str) -> None:
    """Checks that an address is one.

    Raises:
        UserError: If it is not.
    """
    if address not in (LOCAL, AUTO) and not ADDRESS.fullmatch(address):
        raise UserError(
            f"--ray takes {LOCAL}, {AUTO} or HOST:PORT of the cluster's head, such as 10.0.0.1:6379, got {address!r}"
        )


@contextmanager
def connected(address: str, demand: Demand) -> Iterator[Any]:
    """Gives the module `ray`, connected to a cluster whose machines can do runs, until the block ends.

    Args:
        address: "local" starts Ray on this machine; "auto" takes the cluster that this machine is part of; else
            HOST:PORT of the cluster's head.
        demand: What one run takes.

    Raises:
        UserError: If Ray is not installed, nobody answers, no machine has enough for a run, or a machine has another
            version of this package.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a sweep reports to nobody
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")  # else Ray warns that this will change
    try:
        import ray
    except ImportError as error:
        raise UserError(
            f"--ray needs Ray, which is not installed ({error}); pip install 'hegraph-adapter[ray]', or pip install ray"
        ) from error
    if address != LOCAL:
        check_answer(address)
    settings: dict[str, Any] = {"include_dashboard": False} if address == LOCAL else {}
    try:
        with kept_signals():
            ray.init(
                address=address,
                runtime_env={"env_vars": {THREADS: str(demand.threads)}},  # torch reads it when it is imported
                logging_level=logging.ERROR,
                **settings,
            )
    except Exception as error:  # where its processes do not start in time, Ray raises nothing narrower
        raise UserError(f"cannot start Ray at {address}: {' '.join(str(error).split()):.200}") from error
    try:
        check_nodes(ray, demand)
        check_packages(ray)
        yield ray
    finally:
        ray.shutdown()


def check_answer(address: str) -> None:
    """Checks that a cluster answers, in bounded time.

    Raises:
        UserError: If none does.
    """
    if address != AUTO:
        host, _, port = address.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), REACHED_WITHIN).close()
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise _no_answer(address, reason) from error
    try:
        tried = subprocess.run(
            [sys.executable, "-c", TRY, address], capture_output=True, text=True, timeout=ANSWERED_WITHIN
        )
    except subprocess.TimeoutExpired as error:
        raise _no_answer(address, f"no answer in {ANSWERED_WITHIN:.0f} s") from error
    if "connected" not in tried.stdout:
        said = [line for line in tried.stderr.splitlines() if re.match(r"\w[\w.]*(Error|Exception): ", line)]
        raise _no_answer(address, said[-1] if said else f"Ray ended with code {tried.returncode}")


def _no_answer(address: str, reason: str) -> UserError:
    if address == AUTO:
        return UserError(f"--ray auto finds no running Ray cluster on this machine ({reason:.160}); ray start --head")
    return UserError(f"no Ray cluster answers at {address} ({reason:.160}); ray start --head --port PORT starts one")


def check_nodes(ray: Any, demand: Demand) -> None:
    """Checks that there is a machine that can do a run.

    Raises:
        UserError: If there is none, so that all runs would wait for ever.
    """
    nodes = alive(ray)
    if not any(demand.times_in(node["Resources"]) for node in nodes):
        largest: dict[str, float] = max(
            nodes, key=lambda node: node["Resources"].get("CPU", 0.0), default={"Resources": {}}
        )["Resources"]
        has = f"{largest.get('CPU', 0.0):g} CPUs and {largest.get('GPU', 0.0):g} GPUs"
        raise UserError(
            f"a run takes {demand}, and none of the {len(nodes)} machines of the Ray cluster has so many (the largest "
            f"has {has}); lower --cpus-per-run or --gpus-per-run"
        )


def check_packages(ray: Any) -> None:
    """Asks every machine for its version of this package.

    Raises:
        UserError: If one has another, or does not answer.
    """
    at_node = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
    ask = ray.remote(reader_of_state(PACKAGE))
    asked = {}
    for node in alive(ray):
        there = at_node(node_id=node["NodeID"], soft=False)
        asked[ask.options(num_cpus=0, max_retries=0, scheduling_strategy=there).remote()] = node
    ray.wait(list(asked), num_returns=len(asked), timeout=ANSWERED_WITHIN)
    for reference, node in asked.items():
        name = node["NodeManagerHostname"] or node["NodeManagerAddress"]
        try:
            state = ray.get(reference, timeout=0)
        except ray.exceptions.GetTimeoutError as error:
            raise UserError(f"the machine {name} of the Ray cluster gives no answer; ray status tells of it") from error
        except ray.exceptions.RayError:  # it has left the cluster
            continue
        if state != state_here():
            raise UserError(
                f"the machine {name} ({node['NodeManagerAddress']}) of the Ray cluster has {in_words(state)}, and this "
                f"one has {in_words(state_here())}; install the same on all machines"
            )
    logger.info("Ray cluster of %d machines", len(asked))


def alive(ray: Any) -> Sequence[dict]:
    """The machines of the cluster, as Ray describes them."""
    return [node for node in ray.nodes() if node["Alive"]]


def on_every_node(ray: Any, function: Any, *arguments: object) -> None:
    """Has a function of no result called on every machine, and waits a little for it. What fails is left so."""
    at_node = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
    with suppress(Exception):
        asked = [
            ray.remote(function)
            .options(num_cpus=0, max_retries=0, scheduling_strategy=at_node(node_id=node["NodeID"], soft=False))
            .remote(*arguments)
            for node in alive(ray)
        ]
        ray.wait(asked, num_returns=len(asked), timeout=REACHED_WITHIN)
