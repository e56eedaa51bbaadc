"""The output folder of one run: its lock, which run it belongs to, whether that is finished, and what it leaves.

A training run leaves `split.json`, `adapter.safetensors`, `model/`, `text_nodes.safetensors`, `predictions.safetensors`
and, last, the record `result.json`; a run of a sweep that failed leaves `error.json`.

The lock is the operating system's, so that a process that dies lets go of it, however it dies. Beside it stands a note
of who holds it, for the message to others.
"""

from __future__ import annotations

import datetime
import errno
import logging
import os
import platform
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from ..backbones.identity import AUTO
from ..baselines import OTHERS, TRANSDUCTIVE_METHODS, load_method
from ..baselines.base import FittedMethod
from ..config import OPTIONS, Config
from ..features.bank import FeatureBank
from ..models.folder import CONFIG, TENSORS, check_place, find_model_folder, model_files, save_model
from ..models.lessons import Lessons
from ..models.saved import NOT_TESTED, SavedModel, Scores, TrainedOn
from ..prompts.sentences import description_file
from ..results.records import KEEP, PREDICTIONS, RECORD, SPLIT, TEXT_NODES, read_record, write_beside, write_record
from ..training.choice import accuracy, score
from ..training.confidence import Calibration, confidence_scores, known_score
from ..training.loop import ADAPTER, CHECKPOINT, Checkpoints
from ..utils.commit import git_commit
from ..utils.errors import UserError
from ..utils.files import cannot_write, check_not_read, hash_file, hash_json, write_json
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
            what = "the result of a run with other settings or data"
            raise UserError(f"{self.path} holds {what}; choose another output folder, or delete it")
        logger.info("%s holds the complete result of this run: skipped", self.path)
        return record

    def do(self, work: Callable[[], dict]) -> dict:
        """Does the work of the run with the folder locked; returns the record, also if another process just left it.

        Raises:
            Locked: If another process is at work in the folder.
            UserError: If the folder holds another run's checkpoint, RESUME names a folder that holds none, or as
                `check_outputs`.
        """
        with lock_folder(self.path):
            if (record := self.finished()) is not None:
                return record
            self.check_outputs()
            if self.model is None:
                checkpoints, resume = self.checkpoints, self.task.cfg.run.resume
                if resume and not checkpoints.path_to_resume.exists():
                    raise UserError(f"there is nothing to resume in {resume}: no interrupted run left a {CHECKPOINT}")
                checkpoints.read()  # one that would be refused is refused now
                (self.path / ERROR).unlink(missing_ok=True)
                write_json(self.path / SPLIT, self.task.split)
            return work()

    def check_outputs(self) -> None:
        """Raise UserError if a file that the run writes or replaces is one that it reads, or is no file."""
        cfg, prompts = self.task.cfg, self.task.cfg.encoding
        reads: list[Path | str] = [*self.task.reads, cfg.data.root, cfg.data.unlabelled, cfg.backbone.pretrained]
        if prompts.descriptions:
            reads.append(description_file(self.task.name, prompts.descriptions))
        written = [self.path / name for name in (RECORD, PREDICTIONS)]
        if self.model is not None:
            reads += model_files(self.model)
        else:
            models = [self.model_folder, *self.path.glob("model-epoch*")]
            for folder in models:
                check_place(folder)
            written += [self.path / name for name in (SPLIT, ADAPTER, TEXT_NODES, CHECKPOINT)]
            written += [file for folder in models for file in folder.glob("*") if file.is_file()]
        files = [read for read in reads if os.path.isfile(read)]
        for file in written:
            check_not_read(file, files)

    @property
    def model_folder(self) -> Path:
        """Where the trained model goes."""
        return self.path / "model"

    @property
    def checkpoints(self) -> Checkpoints:
        """Where the training of this run keeps its state; RESUME names the folder of the run that it goes on from."""
        resume = Path(self.task.cfg.run.resume or self.path)
        return Checkpoints(self.path, resume, self.run_id, self.task.classnames, self.split_hash)

    def finish(
        self,
        fitted: FittedMethod,
        tested: Tested,
        device: str | torch.device,
        seconds: float,
        bank: FeatureBank | None = None,
        **more: Any,
    ) -> dict:
        """Writes what a run leaves, the record last, removes its checkpoint and returns the record. A run that has
        trained gives the bank that the method was fitted to; the other arguments are those of `make_record`.
        """
        record = make_record(self, fitted, tested, device, seconds, **more)
        if bank is not None:
            if (model := make_model(self, bank, fitted, record)) is not None:
                save_model(model, self.model_folder)
            else:
                name, why = self.task.cfg.run.trainer, "what it says of a test image depends on the others"
                why = why if fitted.together else load_method(name).not_saved
                logger.info("%s leaves no model folder: %s", name, why)
        if fitted.text_nodes is not None:
            before, after = fitted.text_nodes
            write_beside(self.path / TEXT_NODES, tested.classnames, before=before, after=after)
        if tested.logits is not None and tested.labels is not None:
            predicted, labels = tested.logits.argmax(dim=1).int(), tested.labels.int()
            write_beside(self.path / PREDICTIONS, tested.classnames, predicted=predicted, labels=labels)
        write_record(self.path, record)
        if self.model is None:
            self.checkpoints.remove()
        return record


def find_model(folder: Path, epoch: int | None = None) -> Path:
    """The model folder that a finished run has left, given its output folder or the model folder itself. With `epoch`,
    the model as it was after so many epochs; UserError if there is none, or TRAIN.CHECKPOINT_FREQ did not keep it.
    """
    if epoch is None or (read_record(folder) or {}).get("epochs") == epoch:
        return find_model_folder(folder)
    kept = folder / f"model-epoch{epoch}"
    if not kept.is_dir():
        raise UserError(f"{folder} keeps no model of epoch {epoch}; train with TRAIN.CHECKPOINT_FREQ N to keep some")
    return find_model_folder(kept)


# What a run leaves: its scores on test and where they come from, and the model for others to use


def make_record(
    folder: RunFolder, fitted: FittedMethod, tested: Tested, device: str | torch.device, seconds: float, **more: object
) -> dict:
    """Scores what was tested, once, and tells where the scores come from; `more` are the caller's keys, which win.
    Getting the features took `seconds`.
    """
    started, cfg, labels = time.monotonic(), folder.task.cfg, tested.labels
    counts = None if labels is None else torch.bincount(labels, minlength=len(tested.classnames)).tolist()
    scores = scores_on_test(tested, fitted.calibration)
    record = {
        "dataset": tested.dataset,
        "trainer": cfg.run.trainer,
        "variant": fitted.variant,
        **provenance(folder, fitted),
        "precision": precision_of(folder.task.identity),
        **scores,
        "num_test": sum(counts or ()),
        # Tells the test sets of one name apart, as data sets of one's own have
        "test_set": None if counts is None else hash_json([list(tested.classnames), counts]),
        "adapter_from": None if folder.model is None else str(folder.model),
        "rejection": rejection_on_test(tested.logits, fitted.calibration),
        "targets": {},
        "epochs": fitted.epochs,
        "steps": fitted.steps,
        "num_parameters": fitted.num_parameters,
        "config_hash": hash_json(folder.config),
        "run_id": folder.run_id,
        "threads": torch.get_num_threads(),
        "device": "cpu" if torch.device(device).type == "cpu" else torch.cuda.get_device_name(device),
        "seconds": {
            "features": round(seconds, 3),
            "training": round(fitted.seconds, 3),
            "calibration": round(fitted.calibration.seconds, 3),
            "test": round(time.monotonic() - started, 3),
        },
        "peak_memory_mb": peak_memory_mb(),
        "finished_at": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }
    return record | fitted.heard | more


def scores_on_test(tested: Tested, found: Calibration) -> dict:
    """How good the prediction is on test, and how honest its probabilities are: before the temperature and after it.

    Returns:
        "accuracy" and "macro_f1" of the prediction, "accuracy_text" of the text classifier alone and
        "accuracy_zero_shot", in percent; and "calibration": what the temperature is and was fitted on, and "before",
        "after" and "zero_shot", each with accuracy, macro F1 and what `confidence_scores` gives. Zero-shot CLIP's has
        no "bins", and is as CLIP comes, without a temperature. None for what there is not.
    """
    about: dict[str, Any] = {key: getattr(found, key) for key in ("temperature", "fitted_on", "num_images")}
    logits, labels, text, zero_shot = tested.logits, tested.labels, tested.text_logits, tested.zero_shot
    if logits is None or labels is None or zero_shot is None:
        logger.warning("%s has no test images: nothing is scored", tested.dataset)
        nothing = dict.fromkeys(("accuracy", "macro_f1", "accuracy_text", "accuracy_zero_shot"))
        return nothing | {"calibration": about | dict.fromkeys(("before", "after", "zero_shot"))}
    scores = score(logits, labels)
    of_clip = score(zero_shot, labels) | confidence_scores(zero_shot, labels)
    del of_clip["bins"]
    before, after = (scores | confidence_scores(logits, labels, at) for at in (1.0, found.temperature))
    about |= {"before": before, "after": after, "zero_shot": of_clip}
    of_text = None if text is None else accuracy(text, labels)
    return scores | {"accuracy_text": of_text, "accuracy_zero_shot": of_clip["accuracy"], "calibration": about}


def rejection_on_test(logits: Tensor | None, found: Calibration) -> dict | None:
    """The threshold below which an image counts as none of the classes, see `training/confidence.py`.

    "accepted" is the percentage of test images that reach it, None without test images. None without scores of known
    images.
    """
    known = found.known
    if known is None:
        return None
    threshold, accepted = known.threshold(KEEP), None
    if logits is not None:
        scores = known_score(logits, found.temperature, known.score)
        accepted = 100 * (scores >= threshold).double().mean().item()
    about = {"score": known.score, "fitted_on": known.fitted_on, "num_images": known.num_images}
    return about | {"rate": KEEP, "threshold": threshold, "accepted": accepted}


def make_model(folder: RunFolder, bank: FeatureBank, fitted: FittedMethod, record: dict | None) -> SavedModel | None:
    """What is saved of a method that was fitted to a bank; None if it does not fold into class weights and a cache.

    `record` is the run's, for its scores; None for a model that was not tested.
    """
    if fitted.classifier is None:
        return None
    task = folder.task
    backbone, preprocessing, prompts = task.made_of(bank)
    trainer = task.cfg.run.trainer
    counts = bank.train_labels.bincount(minlength=len(bank.classnames)).tolist()
    about = provenance(folder, fitted) | {"dataset": bank.dataset, "num_train": len(bank.train_labels)}
    return SavedModel(
        classifier=fitted.classifier,
        text_positive=bank.text_positive.detach().cpu(),
        classnames=tuple(bank.classnames),
        class_ids=tuple(task.class_ids),
        method=trainer,
        variant=fitted.variant,
        logit_scale=bank.logit_scale,
        temperature=fitted.calibration.temperature,
        backbone=backbone,
        preprocessing=preprocessing,
        prompts=prompts,
        transfer=fitted.transferable,
        transfer_rule=fitted.transfer_rule,
        known=fitted.calibration.known,
        class_nodes=fitted.class_nodes,
        labelled=None if fitted.heard else task.labelled(bank),
        lessons=Lessons.of(bank, fitted.state) if trainer == "HeGraphAdapter" else None,
        images=None if trainer == "ZeroShot" else tuple(counts),
        unlabelled=0 if fitted.unlabelled is None else len(fitted.unlabelled),
        unlabelled_features=None if fitted.unlabelled is None else fitted.unlabelled.cpu(),
        trained_on=TrainedOn(**about),
        scores=NOT_TESTED if record is None else _scores_of(record),
    )


def _scores_of(record: dict) -> Scores:
    """What a model folder keeps of the scores of a record."""
    scores = {key: record[key] for key in ("accuracy", "accuracy_text", "accuracy_zero_shot", "macro_f1", "num_test")}
    after, zero_shot = (record["calibration"][when] or {} for when in ("after", "zero_shot"))
    return Scores(**scores, ece=after.get("ece"), ece_zero_shot=zero_shot.get("ece"))


def provenance(folder: RunFolder, fitted: FittedMethod) -> dict[str, Any]:
    """What a record and a model folder both tell of where they come from."""
    return {
        "shots": folder.task.cfg.data.shots,
        "seed": folder.task.seed,
        "split_hash": folder.split_hash,
        "selected_on": "val" if fitted.selected else "last_step",
        "selected": fitted.selected,
        "config": folder.config,
        "host": folder.host,
        "git_commit": git_commit(),
        "versions": versions(),
    }


# Versions and commit are asked for once: what a process has imported stays, whatever is installed meanwhile


@cache
def versions() -> dict[str, str]:
    """Versions of Python and of the packages that compute the numbers."""
    found = {"python": platform.python_version(), "torch": torch.__version__}  # with the build, such as +cpu
    for package in ("open_clip_torch", "torch_geometric", "numpy", "scikit-learn"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # no run needs PyTorch Geometric, only the reference layer does
            found[package] = "none"
    return found


def peak_memory_mb() -> float | None:
    """Peak resident memory of this process, in MB; None on Windows, which does not say."""
    if sys.platform == "win32":
        return None
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux kilobytes
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6, 1)


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
            raise UserError(f"{cannot_write(folder, error)}; choose a folder that can be written") from error
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
    except OSError as error:
        return isinstance(error, Timeout)  # any other: there are no locks, or the folder may not be written
