"""Output folder of a run: the identity of the run, whether it is finished, and the files that it may write.

A training run writes `split.json`, `adapter.safetensors`, `model/`, `text_nodes.safetensors`, `predictions.safetensors`
and, last, the record `result.json`. A failed run of a sweep writes `error.json`.
"""

import logging
import os
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ..baselines import TRANSDUCTIVE_METHODS
from ..config import OPTIONS, Config
from ..datasets.shots import SHOTS_PER_CLASS
from ..features.backbones.identity import AUTO
from ..features.prompts.sentences import description_file
from ..method.training.loop import ADAPTER, CHECKPOINT, Checkpoints
from ..models.folder import CONFIG, TENSORS, check_place, find_model_folder, model_files
from ..results.records import PREDICTIONS, RECORD, SPLIT, TEXT_NODES, read_record
from ..utils.errors import OTHER_RUN, UserError
from ..utils.files import check_not_read, hash_file, hash_json, write_json
from ..utils.locks import lock_folder
from ..utils.option import NODE, OUR_METHOD
from ..utils.reading import reading
from .tasks import TEST_SET, Task

logger = logging.getLogger(__name__)

# Keys that shape a run only if they have a value
ADDED = ("DATASET.UNLABELLED", "DATASET.GROUP_PATTERN", SHOTS_PER_CLASS)
EPOCH_MODEL = "model-epoch"  # folder of the model after an epoch, with its number at the end
ERROR = "error.json"  # of a failed run of a sweep
PRECISION = f"{NODE}.PREC"
METHOD_INDEPENDENT = (*(f"{NODE}.{name}" for name in ("FEATURES.", "PROMPTS.", "CALIBRATE")), PRECISION)


def shaping_method(cfg: Config) -> str:
    """Return the method whose options shape a run: BASE for a method that corrects another one, else `TRAINER.NAME`."""
    return cfg.method.base if cfg.run.trainer in TRANSDUCTIVE_METHODS else cfg.run.trainer


def run_config(cfg: Config, precision: str = AUTO) -> dict[str, object]:
    """Return the keys that shape a run, as plain values.

    Keys of HeGraphAdapter that do not apply to every method are included only if the run trains HeGraphAdapter, as a
    transductive method with BASE HeGraphAdapter does, too. `precision` replaces PREC auto.
    """
    trains_adapter = shaping_method(cfg) == OUR_METHOD
    flat: dict[str, object] = {}
    for key, value in sorted(cfg.values.items()):
        if key in ADDED and not value:  # absent from the records of earlier versions
            continue
        if key in OPTIONS and not OPTIONS[key].shapes_run:
            continue
        of_adapter = key.startswith(("OPTIM.", f"{NODE}.")) and not key.startswith(METHOD_INDEPENDENT)
        if trains_adapter or not of_adapter:
            flat[key] = list(value) if isinstance(value, tuple) else value
    if flat[PRECISION] == AUTO:
        flat[PRECISION] = precision
    return flat


def precision_of(identity: dict) -> str:
    """Return the precision of the features of a task, from `Task.identity`, which omits "fp32"."""
    return identity.get("backbone", identity).get("precision", "fp32")


@dataclass(frozen=True)
class RunIdentity:
    """Everything that shapes the result of a run. A model stores a part of it as its provenance.

    Attributes:
        task: Images and configuration.
        host: Runner of the training, "alone" or "dassl".
        model: Folder of a trained model that the run tests; None if the run trains one.
    """

    task: Task
    host: str = "alone"
    model: Path | None = None

    @cached_property
    def config(self) -> dict[str, object]:
        """Keys of the configuration that shape the run."""
        return run_config(self.task.cfg, precision_of(self.task.identity))

    @cached_property
    def split_hash(self) -> str:
        """Hash of the sampled images."""
        return hash_json(self.task.split)

    @cached_property
    def run_id(self) -> str:
        """Hash of the whole identity.

        Raises:
            UserError: If data or model cannot be read.
        """
        inputs = {"config": self.config, "seed": self.task.seed, "data": self.task.identity}
        if self.task.cfg.data.unlabelled not in ("", TEST_SET):  # the identity of the task covers test images
            inputs["unlabelled"] = self.task.unlabelled.identity()
        if self.model is None:
            inputs["split"] = self.task.split
        else:
            with reading(self.model / CONFIG, "a model"):
                inputs["model"] = hash_json([hash_file(self.model / name) for name in (CONFIG, TENSORS)])
        return hash_json(inputs)


@dataclass(frozen=True)
class RunFolder(RunIdentity):
    """Output folder of a run, with the identity of the run. Creating the object writes nothing."""

    @property
    def path(self) -> Path:
        """The output folder."""
        return Path(self.task.cfg.run.output_dir)

    def finished(self) -> dict | None:
        """Return the record of this run if the folder holds it, else None.

        Raises:
            UserError: If the folder holds the record of another run.
        """
        record = read_record(self.path)
        if record is None:
            return None
        if record["run_id"] != self.run_id:
            remedy = "choose another output folder (--output-dir)"
            if self.model is None:  # else the folder may hold the model to test
                remedy += ", or delete it"
            problem = f"{self.path} holds the result of a run with other settings or data"
            raise UserError(f"{problem}; {remedy}", OTHER_RUN)
        logger.info("%s holds the complete result of this run, so nothing is computed again", self.path)
        return record

    def run_once(self, work: Callable[[], dict]) -> dict:
        """Lock the folder and return the record of the run, from `work` unless another process has finished the run.

        Raises:
            Locked: If another process works in the folder.
            UserError: If the folder holds the checkpoint of another run, the folder that RESUME names holds none, or a
                file that the run writes is one of its inputs, or is no file.
        """
        with lock_folder(self.path):
            if (record := self.finished()) is not None:
                return record
            self.check_outputs()
            if self.model is None:
                checkpoints = self.checkpoints
                resume = self.task.cfg.run.resume
                if resume and not self.can_resume:
                    raise UserError(f"there is nothing to resume in {resume}: no interrupted run left a {CHECKPOINT}")
                checkpoints.read()  # refuses a checkpoint of another run before anything is written
                (self.path / ERROR).unlink(missing_ok=True)
                write_json(self.path / SPLIT, self.task.split)
            try:
                return work()
            except UserError:
                if self.model is None:  # a refused run leaves only its checkpoint
                    for name in (SPLIT, ADAPTER):
                        (self.path / name).unlink(missing_ok=True)
                raise

    def check_outputs(self) -> None:
        """Raise UserError if a file that the run writes or replaces is one of its inputs, or is no file."""
        cfg = self.task.cfg
        inputs: list[Path | str] = [*self.task.bank_files, cfg.data.root, cfg.data.unlabelled, cfg.backbone.pretrained]
        if cfg.encoding.descriptions:
            inputs.append(description_file(self.task.name, cfg.encoding.descriptions))
        outputs = [self.path / name for name in (RECORD, PREDICTIONS)]
        if self.model is not None:
            inputs += model_files(self.model)
        else:
            outputs += [self.path / name for name in (SPLIT, ADAPTER, TEXT_NODES, CHECKPOINT)]
            for folder in (self.model_folder, *self.path.glob(f"{EPOCH_MODEL}*")):
                check_place(folder)
                outputs += [file for file in folder.glob("*") if file.is_file()]
        files = [read for read in inputs if os.path.isfile(read)]
        for file in outputs:
            check_not_read(file, files)

    @property
    def model_folder(self) -> Path:
        """Folder of the trained model."""
        return self.path / "model"

    @property
    def can_resume(self) -> bool:
        """Whether there is a checkpoint to resume from."""
        return self.checkpoints.path_to_resume.exists()

    @property
    def checkpoints(self) -> Checkpoints:
        """Checkpoints of the training. RESUME names the folder of the interrupted run to continue."""
        resume = Path(self.task.cfg.run.resume or self.path)
        return Checkpoints(self.path, resume, self.run_id, self.task.classnames, self.split_hash)


def find_model_of_epoch(folder: Path, epoch: int | None) -> Path:
    """Return the model folder in the output folder of a run, as it was after `epoch` epochs; None is the last epoch.

    Raises:
        UserError: If there is no model, or none of this epoch; the message lists the epochs that have one.
    """
    if epoch is None or (read_record(folder) or {}).get("epochs") == epoch:
        return find_model_folder(folder)
    saved = folder / f"{EPOCH_MODEL}{epoch}"
    if not saved.is_dir():
        raise no_such_epoch(folder, epoch, saved_epochs(folder))
    return find_model_folder(saved)


def saved_epochs(folder: Path) -> set[int]:
    """Return the epochs whose models the output folder of a run has, with the last if the run is finished."""
    suffixes = [path.name.removeprefix(EPOCH_MODEL) for path in folder.glob(f"{EPOCH_MODEL}*") if path.is_dir()]
    epochs = {int(suffix) for suffix in suffixes if suffix.isdigit()}
    record = read_record(folder)
    return epochs if record is None else epochs | {record["epochs"]}


def no_such_epoch(folder: Path, epoch: int | None, epochs: Collection[int]) -> UserError:
    """Return the error for an epoch without a saved model, with the epochs that have one."""
    existing = f"those of epochs {', '.join(map(str, sorted(epochs)))}" if epochs else "none of any epoch"
    advice = "train with TRAIN.CHECKPOINT_FREQ N to save more"
    return UserError(f"{folder} has no model of epoch {epoch}, but {existing}; {advice}")
