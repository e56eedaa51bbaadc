"""The output folder of one run: which run it belongs to, whether it is finished, and what is written when.

A training run leaves `split.json`, `adapter.safetensors`, `model/`, `text_nodes.safetensors`, `predictions.safetensors`
and, last, `result.json`. While it is at work, the folder is locked.
"""

from __future__ import annotations

import datetime
import logging
import os
import re
import socket
import traceback
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ..baselines.base import FittedMethod
from ..config import OPTIONS, REMOVED, Config
from ..models.folder import CONFIG, TENSORS, find_model_folder, save_model
from ..models.saved import SavedModel
from ..models.thumbnails import has_thumbnails, write_thumbnails
from ..results.records import SPLIT, read_record, write_predictions, write_record, write_text_nodes
from ..training.checkpoints import CHECKPOINT, Checkpoints
from ..utils.errors import UserError, first_line
from ..utils.files import hash_file, hash_json, write_json
from ..utils.option import NODE
from ..utils.reading import read_json
from .lock import check_lock, lock_folder
from .tasks import Split, Task, Tested

logger = logging.getLogger(__name__)

ERROR = "error.json"  # of a failed run of a sweep
OF_ALL_METHODS = tuple(f"{NODE}.{name}" for name in ("FEATURES.", "PROMPTS.", "PREC", "CALIBRATE"))


def run_config(cfg: Config) -> dict[str, object]:
    """The keys that shape a run, as a flat dict of plain values.

    The run of another method keeps those keys of HeGraphAdapter that hold for every method, and none of OPTIM.
    """
    flat: dict[str, object] = {}
    for key, value in sorted(cfg.values.items()):
        of_other = cfg.run.trainer != "HeGraphAdapter" and key.startswith(("OPTIM.", f"{NODE}."))
        if (of_other and not key.startswith(OF_ALL_METHODS)) or (key in OPTIONS and not OPTIONS[key].shapes_run):
            continue
        flat[key] = list(value) if isinstance(value, tuple) else value
    return flat


@dataclass(frozen=True)
class RunFolder:
    """The output folder of one run.

    Attributes:
        path: The folder.
        run_id: Hash of everything that shapes the result.
        config: The configuration keys that shape it, see `run_config`.
        split: The images that the few-shot protocol selected.
        resume: Folder of the interrupted run to go on from (RESUME); None looks into `path`, which may hold one.
        model: Folder of a trained model that is tested instead of training one; None trains.
    """

    path: Path
    run_id: str
    config: dict[str, object]
    split: Split
    resume: Path | None = None
    model: Path | None = None

    @classmethod
    def of(cls, cfg: Config, task: Task, seed: int) -> RunFolder:
        """The folder of a training run that is about to start. Nothing is written.

        Args:
            cfg: The checked configuration.
            task: The task, of which nothing needs to be encoded.
            seed: The run's seed.
        """
        config = run_config(cfg)
        known = REMOVED if cfg.run.trainer == "HeGraphAdapter" else {}  # so that earlier runs are recognised
        run_id = hash_json({"config": known | config, "seed": seed, "data": task.identity, "split": task.split})
        resume = Path(cfg.run.resume) if cfg.run.resume else None
        return cls(Path(cfg.run.output_dir), run_id, config, task.split, resume)

    @classmethod
    def of_test(cls, cfg: Config, identity: dict, seed: int, model: Path) -> RunFolder:
        """The folder of a test of a trained model.

        Args:
            cfg: The checked configuration.
            identity: Plain values that change whenever the test data would.
            seed: The run's seed.
            model: The model folder.

        Raises:
            UserError: If the model cannot be read.
        """
        config = run_config(cfg)
        of_all = {"config": config, "seed": seed, "data": identity, "model": hash_model(model)}
        return cls(Path(cfg.run.output_dir), hash_json(of_all), config, {}, model=model)

    @property
    def split_hash(self) -> str:
        """Hash of the images that were selected."""
        return hash_json(self.split)

    def finished(self, thumbnails: Iterable[Image.Image] | None = None) -> dict | None:
        """The record of this very run, if the folder holds it.

        Args:
            thumbnails: As of `finish`; a model that has none gets them.

        Raises:
            UserError: If the folder holds the record of another run.
        """
        record = read_record(self.path)
        if record is None:
            return None
        if record["run_id"] != self.run_id:
            raise UserError(
                f"{self.path} holds the result of a run with other settings or data; choose another --output-dir, or "
                "delete it"
            )
        logger.info("%s holds the complete result of this run: skipped", self.path)
        model = self.model_folder()
        if thumbnails is not None and (model / CONFIG).is_file() and not has_thumbnails(model):
            write_thumbnails(model, thumbnails)
        return record

    def check(self) -> None:
        """Checks that the run may begin. Nothing is written or removed.

        Raises:
            Locked: If another process is at work in the folder.
            UserError: If the folder holds another run's checkpoint, or RESUME names a folder that holds none.
        """
        check_lock(self.path)
        checkpoints = self.checkpoints([])
        if self.resume is not None and not checkpoints.path_to_resume.exists():
            raise UserError(
                f"there is nothing to resume in {self.resume}: no {CHECKPOINT}, which a run leaves when it is "
                "interrupted"
            )
        checkpoints.check()

    def locked(self) -> AbstractContextManager[None]:
        """Keeps other processes out of the folder during a block; see `lock.lock_folder`, also for what it raises."""
        return lock_folder(self.path)

    def begin(self) -> None:
        """Writes what the protocol selected, and removes what an earlier attempt has left to say of its failure."""
        remove_failure(self.path)
        write_json(self.path / SPLIT, self.split)

    def model_folder(self, epoch: int | None = None) -> Path:
        """Where the trained model goes, or the model as it is after `epoch` epochs."""
        return self.path / model_name(epoch)

    def checkpoints(self, classnames: Sequence[str]) -> Checkpoints:
        """Where the training of this run keeps its state."""
        return Checkpoints(self.path, self.resume or self.path, self.run_id, classnames, self.split_hash)

    def finish(
        self,
        record: dict,
        tested: Tested,
        fitted: FittedMethod | None = None,
        model: SavedModel | None = None,
        thumbnails: Iterable[Image.Image] | None = None,
    ) -> None:
        """Writes what a run leaves, the record last, and removes its checkpoint.

        Args:
            record: From `record.make_record`.
            tested: What the record tells about.
            fitted, model: The method and, from `record.make_model`, what is saved of it, for a run that has trained.
            thumbnails: The training images in the order of the cache, which are kept small beside the model; None keeps
                none.
        """
        if model is not None:
            save_model(model, self.model_folder())
            if thumbnails is not None:
                write_thumbnails(self.model_folder(), thumbnails)
        if fitted is not None and fitted.text_nodes is not None:
            write_text_nodes(self.path, *fitted.text_nodes, tested.classnames)
        if tested.logits is not None and tested.labels is not None:
            write_predictions(self.path, tested.logits.argmax(dim=1), tested.labels, tested.classnames)
        write_record(self.path, record)
        if self.model is None:
            self.checkpoints(tested.classnames).remove()


def model_name(epoch: int | None = None) -> str:
    """The folder of a run's model, below its output folder; with `epoch`, of the model after so many epochs."""
    return "model" if epoch is None else f"model-epoch{epoch}"


def find_model(folder: Path, epoch: int | None = None) -> Path:
    """The model folder that a finished run has left.

    Args:
        folder: The output folder of that run, or the model folder itself.
        epoch: Names the model as it was after so many epochs, if TRAIN.CHECKPOINT_FREQ kept it, or after the last;
            None takes the last.

    Raises:
        UserError: If there is none, or that epoch was not kept.
    """
    if epoch is None:
        return find_model_folder(folder)
    record = read_record(folder)
    if record is not None and record.get("epochs") == epoch:
        return find_model_folder(folder)
    if not (folder / model_name(epoch)).is_dir():
        names = (re.fullmatch(model_name() + r"-epoch(\d+)", path.name) for path in folder.glob(f"{model_name()}-*"))
        kept = sorted(int(name[1]) for name in names if name)
        raise UserError(
            f"{folder} keeps no model of epoch {epoch} (kept: {', '.join(map(str, kept)) or 'none'}); train with "
            "TRAIN.CHECKPOINT_FREQ N to keep every N-th"
        )
    return find_model_folder(folder / model_name(epoch))


def hash_model(folder: Path) -> str:
    """Hash of what a model folder holds.

    Raises:
        UserError: If it cannot be read.
    """
    try:
        return hash_json([hash_file(folder / name) for name in (CONFIG, TENSORS)])
    except OSError as error:
        raise UserError(f"cannot read the model {folder}: {error.strerror}") from error


# What a failed run of a sweep leaves: why it failed, and what it was asked to do


def write_failure(folder: Path, error: Exception, cfg: Config, source: str, command: str) -> None:
    """Writes `error.json`.

    Args:
        folder: The output folder of the run.
        error: What it raised.
        cfg: The checked configuration.
        source: The feature bank, or the configuration of the data set.
        command: The command line that does this run alone.

    Raises:
        UserError: If the folder cannot be written.
    """
    failure = {
        "message": str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {first_line(error)}",
        "traceback": "".join(traceback.format_exception(error)),
        "configuration": run_config(cfg),
        "seed": cfg.run.seed,
        "data": source,
        "command": command,
        "attempt": hash_attempt(cfg, source),
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "failed_at": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }
    write_json(folder / ERROR, failure)


def has_failed(folder: Path, cfg: Config, source: str) -> bool:
    """Whether a folder says that this very run has failed: this configuration and seed on a source of this name."""
    try:
        said = read_json(folder / ERROR) if (folder / ERROR).exists() else None
    except UserError:  # a damaged file says nothing
        return False
    return isinstance(said, dict) and said.get("attempt") == hash_attempt(cfg, source)


def remove_failure(folder: Path) -> None:
    """Removes what an earlier attempt has left."""
    (folder / ERROR).unlink(missing_ok=True)


def hash_attempt(cfg: Config, source: str) -> str:
    """Hash of what a run was asked to do. The data themselves are not part of it, since they may be what is missing."""
    return hash_json([run_config(cfg), cfg.run.seed, Path(source).name])
