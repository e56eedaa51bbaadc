"""Which runs of a grid are to be done, said from what lies in their folders. Nothing heavy is imported for it."""

from __future__ import annotations

import logging
import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from yacs.config import CfgNode

from ..datasets import load_few_shot
from ..experiments.failure import has_failed
from ..experiments.identity import (
    Split,
    bank_identity,
    bank_split,
    configured_backbone,
    hash_run,
    images_identity,
    images_split,
    run_config,
)
from ..features.bank_file import BankFile
from ..results.records import find_runs, read_record
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
    plan, identities = Plan(), Identities()
    others: list[Run] = []
    for run in runs:
        cfg = run.configuration()
        record = read_record(run.folder)
        if record is not None:
            is_this = record["run_id"] == identities.run_id(run, cfg)
            (plan.finished if is_this else others).append(run)
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


class Identities:
    """Works out the identity of runs as `experiments.folder` does; a bank is opened once."""

    def __init__(self) -> None:
        self._banks: dict[Path, BankFile] = {}

    def run_id(self, run: Run, cfg: CfgNode) -> str:
        """The identity that the record of a run has if it is of this run."""
        with _quiet():
            data, split = self._of_bank(run.bank, run, cfg) if run.bank else self._of_images(run, cfg)
        return hash_run(run_config(cfg), run.seed, data, split)

    def _of_bank(self, path: Path, run: Run, cfg: CfgNode) -> tuple[dict, Split]:
        if path not in self._banks:
            self._banks[path] = BankFile(path)
        bank = self._banks[path]
        train, val = (bank.labels[split].tolist() if split in bank.labels else [] for split in ("train", "val"))
        selection, split = bank_split(train, val, bank.classnames, cfg, run.seed)
        return bank_identity(bank, selection), split

    def _of_images(self, run: Run, cfg: CfgNode) -> tuple[dict, Split]:
        data = cfg.DATASET
        dataset = load_few_shot(data.NAME, data.ROOT, data.NUM_SHOTS, run.seed, data.SUBSAMPLE_CLASSES)
        return images_identity(dataset, cfg, configured_backbone(cfg, _device(cfg))), images_split(dataset)


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
        took, method, shots = sum(seconds.values()), record["trainer"], record["shots"]
        dataset = folder.parents[2].name if len(folder.parents) > 2 else ""
        for key in ((method, shots, dataset), (method, shots), (method,)):
            known[key].append(took)

    def of(run: Run) -> float | None:
        for key in ((run.method, run.shots, name_of(run.source)), (run.method, run.shots), (run.method,)):
            if key in known:
                return statistics.median(known[key])
        return None

    return [of(run) for run in runs], len(records)


def _device(cfg: CfgNode) -> str:
    """Where the backbone would run, as far as it changes the features: only a GPU computes in less than fp32."""
    if not cfg.USE_CUDA or cfg.TRAINER.HEGRAPHADAPTER.PREC == "fp32":
        return "cpu"
    from ..utils.devices import available_device  # imports torch

    return available_device()


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
