"""The output folder of one run: its lock, which run it belongs to, whether that is finished, and what is written when.

A training run leaves `split.json`, `adapter.safetensors`, `model/`, `text_nodes.safetensors`, `predictions.safetensors`
and, last, `result.json`; a run of a sweep that failed leaves `error.json`.

The lock is the operating system's, so that a process that dies lets go of it, however it dies. Beside it stands a note
of who holds it, for the message to others.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from filelock import FileLock, Timeout

from ..backbones.identity import AUTO
from ..baselines import OTHERS, TRANSDUCTIVE_METHODS
from ..baselines.base import FittedMethod
from ..config import OPTIONS, REMOVED, Config
from ..models.folder import CONFIG, TENSORS, find_model_folder, save_model
from ..models.saved import SavedModel
from ..results.records import SPLIT, read_record, write_predictions, write_record, write_text_nodes
from ..training.checkpoints import CHECKPOINT, Checkpoints
from ..utils.errors import UserError, first_line
from ..utils.files import hash_file, hash_json, write_json
from ..utils.option import NODE
from ..utils.reading import read_json, reading
from .tasks import TOGETHER, Task, Tested

logger = logging.getLogger(__name__)

ERROR = "error.json"  # of a failed run of a sweep
PRECISION = f"{NODE}.PREC"
OF_ALL_METHODS = (*(f"{NODE}.{name}" for name in ("FEATURES.", "PROMPTS.", "CALIBRATE")), PRECISION)
LOCK, HOLDER = ".lock", ".lock-holder.json"
PATIENCE = 0.2  # seconds that one who comes waits, since another may be about to leave
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)  # the file system knows no locks


def run_config(cfg: Config, precision: str = AUTO) -> dict[str, object]:
    """The keys that shape a run, as plain values; `precision` takes the place of PREC auto. A run in which
    HeGraphAdapter is not trained, not even for a transductive method, keeps those of its keys that hold for every
    method.
    """
    name = cfg.run.trainer
    ours = name not in OTHERS or (name in TRANSDUCTIVE_METHODS and cfg.method.BASE == "HeGraphAdapter")
    flat: dict[str, object] = {}
    for key, value in sorted(cfg.values.items()):
        if key == "DATASET.UNLABELLED" and not value:  # earlier runs had no such key
            continue
        of_other = not ours and key.startswith(("OPTIM.", f"{NODE}.")) and not key.startswith(OF_ALL_METHODS)
        if not of_other and (key not in OPTIONS or OPTIONS[key].shapes_run):
            flat[key] = list(value) if isinstance(value, tuple) else value
    if flat[PRECISION] == AUTO:
        flat[PRECISION] = precision
    return flat


def precision_of(identity: dict) -> str:
    """What the features of a task were encoded in, by its identity, which names all but float32."""
    return identity.get("backbone", identity).get("precision", "fp32")


@dataclass(frozen=True)
class RunFolder:
    """The output folder of the run of a task in a host, "alone" or "dassl". Nothing is written when it is made.

    `model` is the folder of a trained model that is tested instead of training one.
    """

    task: Task
    host: str = "alone"
    model: Path | None = None

    @property
    def path(self) -> Path:
        return Path(self.task.cfg.run.output_dir)

    @cached_property
    def config(self) -> dict[str, object]:
        return run_config(self.task.cfg, precision_of(self.task.identity))

    @cached_property
    def split_hash(self) -> str:
        """Hash of the images that were selected."""
        return hash_json(self.task.split)

    @cached_property
    def run_id(self) -> str:
        """Hash of everything that shapes the result; raises UserError if data or model cannot be had."""
        about = {"config": self.config, "seed": self.task.seed, "data": self.task.identity}
        if self.model is not None:
            with reading(self.model / CONFIG, "a model"):
                return hash_json(about | {"model": hash_json([hash_file(self.model / n) for n in (CONFIG, TENSORS)])})
        if self.task.cfg.run.trainer == "HeGraphAdapter":
            about["config"] = REMOVED | self.config  # so that earlier runs are recognised
        what = self.task.cfg.data.unlabelled
        if what not in ("", TOGETHER):  # test images are part of the task's own identity
            about["unlabelled"] = self.task.unlabelled(what).identity()
        return hash_json(about | {"split": self.task.split})

    def finished(self) -> dict | None:
        """The record of this very run, if the folder holds it; raises UserError if it holds that of another run."""
        record = read_record(self.path)
        if record is None:
            return None
        if record["run_id"] != self.run_id:
            raise UserError(
                f"{self.path} holds the result of a run with other settings or data; choose another --output-dir, or "
                "delete it"
            )
        logger.info("%s holds the complete result of this run: skipped", self.path)
        return record

    def do(self, work: Callable[[], dict]) -> dict:
        """Does the work of the run with the folder locked; returns the record, also if another process just left it.

        Raises:
            Locked: If another process is at work in the folder.
            UserError: If the folder holds another run's checkpoint, or RESUME names a folder that holds none.
        """
        with lock_folder(self.path):
            if (record := self.finished()) is not None:
                return record
            if self.model is None:
                self._begin()
            return work()

    def _begin(self) -> None:
        """Checks that the run may begin, removes what an earlier attempt left of its failure, and writes the split."""
        checkpoints, resume = self.checkpoints, self.task.cfg.run.resume
        if resume and not checkpoints.path_to_resume.exists():
            why = f"no {CHECKPOINT}, which a run leaves when it is interrupted"
            raise UserError(f"there is nothing to resume in {resume}: {why}")
        checkpoints.read()  # one that would be refused is refused now
        (self.path / ERROR).unlink(missing_ok=True)
        write_json(self.path / SPLIT, self.task.split)

    def model_folder(self, epoch: int | None = None) -> Path:
        """Where the trained model goes, or the model as it is after `epoch` epochs."""
        return self.path / model_name(epoch)

    @property
    def checkpoints(self) -> Checkpoints:
        """Where the training of this run keeps its state; RESUME names the folder of the run that it goes on from."""
        resume = Path(self.task.cfg.run.resume or self.path)
        return Checkpoints(self.path, resume, self.run_id, self.task.classnames, self.split_hash)

    def finish(
        self, record: dict, tested: Tested, fitted: FittedMethod | None = None, model: SavedModel | None = None
    ) -> None:
        """Writes what a run leaves, the record last, and removes its checkpoint. The record, from `make_record`, tells
        about what was `tested`; `fitted` and `model`, from `make_model`, are for a run that has trained.
        """
        if model is not None:
            save_model(model, self.model_folder())
        if fitted is not None and fitted.text_nodes is not None:
            write_text_nodes(self.path, *fitted.text_nodes, tested.classnames)
        if tested.logits is not None and tested.labels is not None:
            write_predictions(self.path, tested.logits.argmax(dim=1), tested.labels, tested.classnames)
        write_record(self.path, record)
        if self.model is None:
            self.checkpoints.remove()


def model_name(epoch: int | None = None) -> str:
    """The folder of a run's model, below its output folder; with `epoch`, of the model after so many epochs."""
    return "model" if epoch is None else f"model-epoch{epoch}"


def find_model(folder: Path, epoch: int | None = None) -> Path:
    """The model folder that a finished run has left, given its output folder or the model folder itself. With `epoch`,
    the model as it was after so many epochs; UserError if there is none, or TRAIN.CHECKPOINT_FREQ did not keep it.
    """
    record = None if epoch is None else read_record(folder)
    if epoch is None or (record is not None and record.get("epochs") == epoch):
        return find_model_folder(folder)
    kept = folder / model_name(epoch)
    if not kept.is_dir():
        raise UserError(f"{folder} keeps no model of epoch {epoch}; train with TRAIN.CHECKPOINT_FREQ N to keep some")
    return find_model_folder(kept)


# One process at a time


class Locked(UserError):
    """Another process is at work in a folder, and maybe said who it is."""

    def __init__(self, folder: Path) -> None:
        try:
            said = read_json(folder / HOLDER)
            who = f"process {said['pid']} on {said['host']}"
        except (UserError, KeyError, TypeError):  # it has only just come, or has left
            who = "another process"
        super().__init__(f"{folder} is in use by {who}; wait until it has finished, or choose another output folder")


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Holds the lock of a folder during the block. The folder is made; where the block leaves it empty, it is removed.
    Raises Locked if another process holds it, and UserError if the folder cannot be written.
    """
    made = not folder.exists()
    lock = FileLock(folder / LOCK)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=PATIENCE, poll_interval=PATIENCE / 4)
    except Timeout as error:
        raise Locked(folder) from error
    except OSError as error:
        if error.errno not in NO_LOCKS:
            said = first_line(error)
            raise UserError(f"cannot write {folder}: {said}; choose a folder that can be written") from error
        logger.warning("%s cannot be locked on this file system: start no other run in it meanwhile", folder)
    try:
        if lock.is_locked:
            write_json(folder / HOLDER, {"pid": os.getpid(), "host": socket.gethostname()})
        yield
    finally:
        for name in (HOLDER, LOCK) if lock.is_locked else ():  # while it is held, so that nobody else's is removed
            with suppress(OSError):
                (folder / name).unlink(missing_ok=True)
        lock.release()
        if made:
            with suppress(OSError):
                folder.rmdir()


def is_locked(folder: Path) -> bool:
    """Whether a process is at work in a folder."""
    if not (folder / LOCK).exists():
        return False
    try:
        with FileLock(folder / LOCK, timeout=0):
            return False
    except Timeout:
        return True
    except OSError:  # it has no locks, or may not be written
        return False
