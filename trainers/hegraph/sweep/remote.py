"""What a worker of a Ray cluster does: one run in a temporary folder, whose files it gives back."""

from __future__ import annotations

import json
import os
import shutil
import socket
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from filelock import FileLock
from yacs.config import CfgNode

from ..experiments.failure import ERROR
from ..experiments.opened import Opened
from ..training.checkpoints import CHECKPOINT
from ..utils.errors import show_messages
from ..utils.files import atomic_path
from .execute import attempt
from .grid import Run
from .package_state import State, in_words, state_here
from .run_files import Files, read_files, write_files

OTHER_PACKAGE = "other package"  # what can become of a run beside what `execute` names


@dataclass(frozen=True)
class SentBank:
    """A feature bank in Ray's object store.

    Attributes:
        reference: Ray's reference to the bytes of its file.
        place: Where its file goes, below the folder of temporary files of a machine.
    """

    reference: Any
    place: str


@dataclass(frozen=True)
class Job:
    """A run with all that a worker needs to do it.

    Attributes:
        run: The run.
        cfg: Its checked configuration: the files that it came from may not be there.
        bank: The feature bank, if the run is made of one.
        files: What lies in the folder of the run and matters to it, which is the checkpoint of an interrupted run.
        cwd: The folder that the sweep was started in. Where the worker has it, too, relative paths mean the same.
        state: The state of the package where the sweep was started.
        verbose: Whether the run's own messages are shown, and not its warnings alone.
    """

    run: Run
    cfg: CfgNode
    bank: SentBank | None
    files: Files
    cwd: str
    state: State
    verbose: bool


@dataclass(frozen=True)
class Answer:
    """What has become of a run: `status`, `message` and `seconds` as of `execute.Result`, and what it has left."""

    status: str
    message: str
    seconds: float
    files: Files


@dataclass(frozen=True)
class RemoteRun(Run):
    """A run away from home: `folder` is temporary, and what the run says of itself is as it would say it at home.

    Attributes:
        cfg: The checked configuration.
        bank_file: Where the feature bank lies on this machine; None without one.
        at_home: The run as it was asked for.
    """

    cfg: CfgNode | None = None
    bank_file: Path | None = None
    at_home: Run | None = None

    @property
    def bank(self) -> Path | None:
        return self.bank_file

    def configuration(self) -> CfgNode:
        assert self.cfg is not None
        cfg = self.cfg.clone()
        cfg.defrost()
        cfg.OUTPUT_DIR = str(self.folder)
        cfg.freeze()
        return cfg

    def command(self) -> str:
        assert self.at_home is not None
        return self.at_home.command()


def do_run(job: Job) -> Answer:
    """Does a run, and gives back its files."""
    if state_here() != job.state:
        return Answer(OTHER_PACKAGE, f"{socket.gethostname()} has {in_words(state_here())}", 0.0, {})
    show_messages()
    with suppress(OSError):
        os.chdir(job.cwd)
    with tempfile.TemporaryDirectory(prefix=f"hegraph-run-{os.getpid()}-") as temporary:
        folder = Path(temporary) / "run"
        if job.files:
            write_files(folder, job.files)
        bank = None if job.bank is None else fetch_bank(job.bank)
        run = RemoteRun(**{**vars(job.run), "folder": folder}, cfg=job.cfg, bank_file=bank, at_home=job.run)
        result = attempt(run, _opened(), job.verbose)
        at_home = {str(folder): str(job.run.folder)} | ({} if bank is None else {str(bank): job.run.source})
        files = read_files(folder)
        if ERROR in files:
            files[ERROR] = _renamed(files[ERROR].decode("utf-8"), at_home, in_json=True).encode("utf-8")
        return Answer(result.status, _renamed(result.message, at_home), result.seconds, files)


def fetch_bank(bank: SentBank) -> Path:
    """The file of a bank on this machine. The first worker that needs it writes it, and all of them read it."""
    path = Path(tempfile.gettempdir()) / bank.place
    if not path.exists():
        import ray

        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            if not path.exists():
                with atomic_path(path) as temporary:
                    temporary.write_bytes(memoryview(ray.get(bank.reference)))
    return path


def forget_banks(place: str) -> None:
    """Removes the files that `fetch_bank` has written below a place of this machine."""
    shutil.rmtree(Path(tempfile.gettempdir()) / place, ignore_errors=True)


def files_that_matter(folder: Path) -> Files:
    """What a run would find in its folder and go on from."""
    path = folder / CHECKPOINT
    return {CHECKPOINT: path.read_bytes()} if path.exists() else {}


@cache
def _opened() -> Opened:
    """What runs of this process share."""
    return Opened()


def _renamed(text: str, names: dict[str, str], in_json: bool = False) -> str:
    """A text in which temporary paths have the names that the user knows."""
    for old, new in names.items():
        if in_json:
            old, new = (json.dumps(name, ensure_ascii=False)[1:-1] for name in (old, new))
        text = text.replace(old, new)
    return text
