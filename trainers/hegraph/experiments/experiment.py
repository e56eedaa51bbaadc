"""One experiment, in the steps that both hosts take around their training loops: identity, model, scores, record."""

from __future__ import annotations

import datetime
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from yacs.config import CfgNode

from ..config import OF_THE_BACKBONE
from ..features import FeatureBank
from ..method.graph import build_graph, class_means
from ..method.heads import text_logits
from ..method.model import HeGraphAdapter
from ..method.transfer import transfer_class_features
from ..results.records import SPLIT, read_record, write_predictions, write_record, write_text_nodes
from ..training.checkpoints import adapter_file, check_checkpoint, load_adapter, save_adapter
from ..training.evaluation import accuracy, score
from ..training.loop import CHECKPOINT, Fit, FitResult, checkpoint_to_resume
from ..training.memory import free_bytes, log_large, training_bytes
from ..utils.errors import UserError
from ..utils.files import hash_file, hash_json, write_json
from .provenance import git_commit, peak_memory_mb, set_random_seed, versions
from .tasks import Task

logger = logging.getLogger(__name__)

# Keys that say where things are or how they are shown, not what is computed
NOT_PART_OF_A_RUN = (
    "OUTPUT_DIR", "SEED", "USE_CUDA", "RESUME", "DATASET.ROOT", "DATALOADER.NUM_WORKERS",
    "DATALOADER.TEST.BATCH_SIZE", "TRAIN.PRINT_FREQ", "TRAIN.CHECKPOINT_FREQ", "TRAINER.HEGRAPHADAPTER.FEATURES.DIR",
    "TRAINER.HEGRAPHADAPTER.BY_SHOTS", "TRAINER.HEGRAPHADAPTER.BY_DATASET",  # their effect is in other keys
    *OF_THE_BACKBONE, "TEST.FINAL_MODEL", "TEST.SPLIT",  # have one value
)  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What a method came to on one task.

    Attributes:
        logits: Of the prediction on test, shape `[M, K]`; None without test images.
        text_logits: Of the text classifier alone, if the method has one.
        trained: What training took.
        num_parameters: Trained ones.
        variant: Of HeGraphAdapter; "" for another method.
        selected: What was chosen on the few-shot val split, with every candidate's accuracy there.
        classify: Image features `[B, d]` to the logits `[B, K]` that are used in other domains: of HeGraphAdapter those
            of the text classifier alone, since the cache has learned the style of its images.
        transfer: A bank of other classes to the logits of its test images; None if the method has no rule for that.
        text_nodes: Of HeGraphAdapter, the positive ones before and after message passing, each `[K, d]` of unit norm.
    """

    logits: Tensor | None
    text_logits: Tensor | None
    trained: FitResult
    num_parameters: int
    variant: str = ""
    selected: dict = field(default_factory=dict)
    classify: Callable[[Tensor], Tensor] | None = None
    transfer: Callable[[FeatureBank], Tensor] | None = None
    text_nodes: tuple[Tensor, Tensor] | None = None


class Experiment:
    """One seed of one task.

    Args:
        cfg: Our checked configuration (in Dassl, `config.from_dassl`).
        task: The data.
        seed: Of everything random.
        device: "cpu" or "cuda".
        host: "alone" or "dassl", for the record.

    Attributes:
        adapter: File of the trained adapter that is tested instead of training one; see `choose_adapter`.
        bank, model: After `prepare`.
    """

    def __init__(self, cfg: CfgNode, task: Task, seed: int, device: str, host: str) -> None:
        self.cfg, self.task, self.seed, self.device, self.host = cfg, task, seed, device, host
        self.output = Path(cfg.OUTPUT_DIR)
        self.config = run_config(cfg)
        self.split_hash = hash_json(task.split)
        self.adapter: Path | None = None
        self.trained = FitResult(epochs=0, steps=0, seconds=0.0)
        self.bank: FeatureBank | None = None
        self.model: HeGraphAdapter | None = None
        self.features_seconds = 0.0

    @property
    def run_id(self) -> str:
        """Hash of everything that shapes the result."""
        identity = {"config": self.config, "seed": self.seed, "data": self.task.identity, "split": self.task.split}
        if self.adapter is not None:
            identity["adapter"] = _hash_adapter(self.adapter)
        return hash_json(identity)

    @property
    def about(self) -> dict:
        """What a trained adapter keeps beside its parameters."""
        return {"classnames": self.bank.classnames, "split_hash": self.split_hash}

    def finished(self) -> dict | None:
        """The record of this very run, if its folder holds it.

        Raises:
            UserError: If the folder holds the record of another run.
        """
        record = read_record(self.output)
        if record is None:
            return None
        if record["run_id"] != self.run_id:
            raise UserError(
                f"{self.output} holds the result of a run with other settings or data; choose another --output-dir, or "
                "delete it"
            )
        logger.info("%s holds the complete result of this run: skipped", self.output)
        return record

    def write_split(self) -> None:
        """Writes what the protocol selected, unless the folder holds another run's checkpoint."""
        if self.adapter is None:
            check_checkpoint(checkpoint_to_resume(self.output, self.cfg), self.run_id)
        write_json(self.output / SPLIT, self.task.split)

    def encode(self) -> None:
        """Gets the features, encoding what is not on disk."""
        started = time.monotonic()
        self.bank = self.task.bank()
        self.features_seconds = time.monotonic() - started

    def build_model(self) -> None:
        """The untrained adapter, on its device; needs the features. Says so if training it takes much of the memory.

        Raises:
            UserError: If a class has no training image.
        """
        set_random_seed(self.seed)  # encoding may have drawn from the generators, reading what was encoded does not
        self.bank = self.bank.to(self.device)
        views, num_images, width = self.bank.train_features.shape
        batch = min(self.cfg.DATALOADER.TRAIN_X.BATCH_SIZE, num_images)
        parts = training_bytes(len(self.bank.classnames), num_images, width, views, batch)
        log_large(parts, free_bytes(self.device))
        self.model = build_model(self.bank, self.cfg).to(self.device)

    def start_training(self) -> Fit | None:
        """The training, from its checkpoint if there is one; None if the variant has nothing to train."""
        if self.model.layers is None:
            return None
        data = self.task.batches(self.bank)
        return Fit(self.model, data, self.cfg, self.output, self.run_id, self.about)

    def start_candidate(self) -> Fit | None:
        """As `start_training`, for one of several candidates: without checkpoints."""
        if self.model.layers is None:
            return None
        return Fit(self.model, self.task.batches(self.bank), self.cfg, None, self.run_id, self.about)

    def end_training(self, trained: FitResult) -> None:
        """Keeps the trained adapter."""
        self.trained = trained
        save_adapter(self.output / adapter_file(), self.model, **self.about)

    def choose_adapter(self, folder: Path, epoch: int | None = None) -> None:
        """Takes the adapter that another run has trained.

        Args:
            folder: Of the other run.
            epoch: As it was after so many epochs, if that run's TRAIN.CHECKPOINT_FREQ kept it; None: as it ended.

        Raises:
            UserError: If it is not there.
        """
        self.adapter = folder / adapter_file(epoch)
        if epoch is not None and not self.adapter.exists():
            kept = sorted(int(path.stem[len("adapter-epoch") :]) for path in folder.glob("adapter-epoch*.safetensors"))
            raise UserError(
                f"{folder} keeps no adapter of epoch {epoch} (kept: {', '.join(map(str, kept)) or 'none'}); train with "
                "TRAIN.CHECKPOINT_FREQ N to keep every N-th"
            )

    def load_adapter(self) -> None:
        """Loads the chosen adapter into the model.

        Raises:
            UserError: If it was trained for something else.
        """
        load_adapter(self.adapter, self.model, **self.about)

    def outcome(self, selected: dict | None = None) -> Outcome:
        """What the trained model predicts on test.

        Raises:
            UserError: If that is not finite.
        """
        model, test = self.model, self.bank.test_features
        count = sum(parameter.numel() for parameter in model.parameters())
        folded = model.fold()
        nodes = None if model.layers is None else (model.x_positive, folded.weights / model.logit_scale)
        if test is None:
            return Outcome(None, None, self.trained, count, model.variant, selected or {}, text_nodes=nodes)
        logits = model.predict(test, folded=folded)
        combined = model.combine(logits)
        if not combined.isfinite().all():
            raise UserError("the trained adapter predicts NaN or infinite logits; lower OPTIM.LR")

        def transfer(bank: FeatureBank) -> Tensor:
            class_features = transfer_class_features(model, bank.text_positive, bank.text_negative)
            return text_logits(bank.test_features, class_features, bank.logit_scale)

        return Outcome(
            combined,
            logits.text,
            self.trained,
            count,
            model.variant,
            selected or {},
            classify=lambda features: model.predict(features, folded=folded).text,
            transfer=transfer,
            text_nodes=nodes,
        )

    def record(self, outcome: Outcome, targets: dict[str, dict] | None = None) -> dict:
        """Scores an outcome on test, and writes and returns the record; `targets` as of `targets.score_targets`."""
        started = time.monotonic()
        bank = self.bank
        record = {
            "dataset": bank.dataset,
            "trainer": self.cfg.TRAINER.NAME,
            "variant": outcome.variant,
            "backbone": bank.backbone,
            "shots": self.cfg.DATASET.NUM_SHOTS,
            "seed": self.seed,
            **scores_on_test(outcome, bank),
            "num_test": 0 if bank.test_labels is None else len(bank.test_labels),
            "num_train": len(bank.train_labels),
            "adapter_from": None if self.adapter is None else str(self.adapter),
            "selected_on": "val" if outcome.selected else "last_step",
            "selected": outcome.selected,
            "targets": targets or {},
            "epochs": outcome.trained.epochs,
            "steps": outcome.trained.steps,
            "num_parameters": outcome.num_parameters,
            "config": self.config,
            "config_hash": hash_json(self.config),
            "split_hash": self.split_hash,
            "run_id": self.run_id,
            "host": self.host,
            "versions": versions(),
            "git_commit": git_commit(),
            "threads": torch.get_num_threads(),
            "device": self.device if self.device == "cpu" else torch.cuda.get_device_name(),
            "seconds": {
                "features": round(self.features_seconds, 3),
                "training": round(outcome.trained.seconds, 3),
                "test": round(time.monotonic() - started, 3),
            },
            "peak_memory_mb": peak_memory_mb(),
            "finished_at": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        }
        if outcome.text_nodes is not None:
            write_text_nodes(self.output, *outcome.text_nodes, bank.classnames)
        if outcome.logits is not None:
            write_predictions(self.output, outcome.logits.argmax(dim=1), bank.test_labels, bank.classnames)
        write_record(self.output, record)
        if self.adapter is None:
            (self.output / CHECKPOINT).unlink(missing_ok=True)
        return record


def build_model(bank: FeatureBank, cfg: CfgNode) -> HeGraphAdapter:
    """The untrained adapter of a few-shot task.

    Raises:
        UserError: If a class has no training image.
    """
    keys = bank.cache_keys()
    prototypes = class_means(keys, bank.train_labels, bank.classnames)
    graph = build_graph(bank.text_positive, bank.text_negative, prototypes)
    return HeGraphAdapter(graph, keys, bank.train_labels, bank.logit_scale, cfg.TRAINER.HEGRAPHADAPTER)


def scores_on_test(outcome: Outcome, bank: FeatureBank) -> dict[str, float | None]:
    """Percent on test: the prediction, the text classifier alone, and zero-shot CLIP; None for what there is not."""
    if outcome.logits is None:
        logger.warning("%s has no test images: nothing is scored", bank.dataset)
        return dict.fromkeys(("accuracy", "macro_f1", "accuracy_text", "accuracy_zero_shot"))
    zero_shot = text_logits(bank.test_features, bank.text_positive, bank.logit_scale)
    text = outcome.text_logits
    return {
        **score(outcome.logits, bank.test_labels),
        "accuracy_text": None if text is None else accuracy(text, bank.test_labels),
        "accuracy_zero_shot": accuracy(zero_shot, bank.test_labels),
    }


def run_config(cfg: CfgNode) -> dict[str, object]:
    """The keys that shape a run, as a flat dict of plain values.

    Of another method's run, those of HeGraphAdapter that shape features are kept and no more, and no OPTIM.
    """
    ours, prefix_of_ours = cfg.TRAINER.NAME == "HeGraphAdapter", "TRAINER.HEGRAPHADAPTER."
    shape_features = tuple(f"{prefix_of_ours}{name}" for name in ("FEATURES.", "PROMPTS.", "PREC"))
    flat: dict[str, object] = {}

    def visit(node: CfgNode, prefix: str) -> None:
        for key, value in node.items():
            name = f"{prefix}{key}"
            if isinstance(value, CfgNode):
                visit(value, f"{name}.")
            elif not ours and name.startswith(("OPTIM.", prefix_of_ours)) and not name.startswith(shape_features):
                continue
            elif name not in NOT_PART_OF_A_RUN:
                flat[name] = list(value) if isinstance(value, tuple) else value

    visit(cfg, "")
    return dict(sorted(flat.items()))


def _hash_adapter(path: Path) -> str:
    try:
        return hash_file(path)
    except OSError as error:
        raise UserError(f"cannot read the adapter {path}: {error.strerror}") from error
