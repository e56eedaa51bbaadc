"""Which runs of a grid are to be done, said from what lies in their folders, and how long they should take."""

from __future__ import annotations

import logging
import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from ..experiments.folder import RunFolder, has_failed, is_locked
from ..experiments.image_task import open_task
from ..experiments.tasks import Opened
from ..results.records import find_runs, read_record
from ..utils.devices import available_device
from ..utils.errors import PACKAGE, UserError
from .grid import Run, name_of


@dataclass
class Plan:
    """The runs of a grid by what is to be done about them.

    Attributes:
        to_do: Those that are run.
        finished: Those whose record is there.
        failed: Those that failed before and are not tried again.
    """

    to_do: list[Run] = field(default_factory=list)
    finished: list[Run] = field(default_factory=list)
    failed: list[Run] = field(default_factory=list)


def make_plan(runs: Sequence[Run], retry_failed: bool = False) -> Plan:
    """Looks into the folders of all runs.

    Args:
        runs: From `Grid.runs`.
        retry_failed: Whether runs that failed are run again. A failed run whose configuration is another by now is run
            in any case.

    Raises:
        UserError: If a configuration is wrong, or folders hold results of runs with other settings or data.
    """
    plan, opened = Plan(), Opened()
    others: list[Run] = []
    for run in runs:
        cfg = run.configuration()
        done = is_done(run, opened)
        if done is not None:
            (plan.finished if done else others).append(run)
            is_locked(run.folder)  # removes what a process that was killed has left of its lock
        elif not retry_failed and has_failed(run.folder, cfg, run.source):
            plan.failed.append(run)
        else:
            plan.to_do.append(run)
    if others:
        raise UserError(
            f"{len(others)} of {len(runs)} folders hold results of runs with other settings or data, the first "
            f"{others[0].folder}; choose another --output, or delete them"
        )
    return plan


def is_done(run: Run, opened: Opened) -> bool | None:
    """Whether the record in the folder of a run is of this very run; None where there is no record.

    Args:
        run: The run.
        opened: What other runs have opened, since the identity of a run takes the labels of its bank.

    Raises:
        UserError: If the bank or the data set cannot be read.
    """
    record = read_record(run.folder)
    if record is None:
        return None
    cfg = run.configuration()
    with _quiet():
        task = open_task(cfg, run.bank, run.seed, available_device(cfg.run.use_cuda), opened)
        return record["run_id"] == RunFolder(task).run_id


def estimate(runs: Sequence[Run], output: str) -> tuple[list[float | None], int]:
    """How long runs should take, in seconds, by the records below a folder.

    Returns:
        For each run the median over finished runs of its method, data set and shots or, where there are none, of its
        method and shots, or of its method; None where there is none of the method. And the number of records.
    """
    known: dict[tuple, list[float]] = defaultdict(list)
    records = find_runs([Path(output)]) if Path(output).is_dir() else {}
    for folder, record in records.items():
        seconds = record.get("seconds")
        if not isinstance(seconds, dict):
            continue
        dataset = folder.parents[2].name if len(folder.parents) > 2 else ""
        for key in _keys(record["trainer"], record["shots"], dataset):
            known[key].append(sum(seconds.values()))

    def of(run: Run) -> float | None:
        keys = [key for key in _keys(run.method, run.shots, name_of(run.source)) if key in known]
        return statistics.median(known[keys[0]]) if keys else None

    return [of(run) for run in runs], len(records)


def _keys(method: str, shots: int, dataset: str) -> tuple[tuple, ...]:
    return (method, shots, dataset), (method, shots), (method,)


@contextmanager
def _quiet() -> Iterator[None]:
    """What the protocol has to say of a selection is said when it is run."""
    logger = logging.getLogger(PACKAGE)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
