"""One experiment without Dassl: features -> graph -> training -> test -> record."""

from __future__ import annotations

import datetime
import logging
import platform
import random
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from yacs.config import CfgNode

from .checkpoints import check_checkpoint, load_adapter, save_adapter
from .errors import UserError
from .evaluate import score
from .features import FeatureBank
from .files import hash_file, hash_json, write_json
from .fit import FitResult, fit
from .graph import build_graph, class_means
from .heads import text_logits
from .model import HeGraphAdapter
from .results import SPLIT, read_record, write_record
from .tasks import BankTask, ImageTask, Task

try:
    import resource
except ImportError:  # Windows has no such module
    resource = None

logger = logging.getLogger(__name__)

CHECKPOINT = "checkpoint.pt"
ADAPTER = "adapter.safetensors"

# Keys that say where things are or how they are shown, not what is computed
NOT_PART_OF_A_RUN = (
    "OUTPUT_DIR", "SEED", "USE_CUDA", "DATASET.ROOT", "DATALOADER.NUM_WORKERS",
    "DATALOADER.TEST.BATCH_SIZE", "TRAIN.PRINT_FREQ", "TRAIN.CHECKPOINT_FREQ", "TRAINER.HEGRAPHADAPTER.FEATURES.DIR",
    "TRAINER.HEGRAPHADAPTER.BY_SHOTS", "TRAINER.HEGRAPHADAPTER.BY_DATASET",  # their effect is in other keys
)  # fmt: skip


def run(cfg: CfgNode, bank_file: Path | None = None, model_dir: Path | None = None, train: bool = True) -> dict:
    """Trains and tests one seed, and writes its record.

    Args:
        cfg: The checked configuration.
        bank_file: A feature bank to take everything from; None encodes the images of `DATASET.NAME`.
        model_dir: Folder of a finished run whose adapter is tested instead of training one.
        train: False: encode the features and stop; nothing is tested.

    Returns:
        The record, or {} if nothing was tested. A folder that holds this very run's record is not
        computed again.

    Raises:
        UserError: On anything that the user can mend.
    """
    output = Path(cfg.OUTPUT_DIR)
    device = "cuda" if cfg.USE_CUDA and torch.cuda.is_available() else "cpu"
    seed = cfg.SEED if cfg.SEED >= 0 else random.SystemRandom().randrange(2**31)
    set_random_seed(seed)

    started = time.monotonic()
    task: Task = BankTask(bank_file, cfg, seed) if bank_file else ImageTask(cfg, seed, device)
    config, split_hash = run_config(cfg), hash_json(task.split)
    run_id = hash_json(
        {"config": config, "seed": seed, "data": task.identity, "split": task.split}
        | ({"adapter": hash_adapter(model_dir / ADAPTER)} if model_dir else {})
    )
    if (record := read_record(output)) is not None:
        if record["run_id"] != run_id:
            raise UserError(
                f"{output} holds the result of a run with other settings or data; choose another --output-dir, or "
                "delete it"
            )
        logger.info("%s holds the complete result of this run: skipped", output)
        return record
    if model_dir is None:
        check_checkpoint(output / CHECKPOINT, run_id)  # before anything there is overwritten
    write_json(output / SPLIT, task.split)
    bank = task.bank().to(device)
    if not train:
        return {}
    features_seconds = time.monotonic() - started

    set_random_seed(seed)  # encoding may have drawn from the generators, reading what was encoded does not
    model = build_model(bank, cfg).to(device)
    trained = FitResult(epochs=0, steps=0, seconds=0.0)
    if model_dir is not None:
        load_adapter(model_dir / ADAPTER, model, bank.classnames, split_hash)
    elif model.layers is not None:
        trained = fit(model, task.batches(bank), cfg, output / CHECKPOINT, run_id)
        save_adapter(output / ADAPTER, model, bank.classnames, split_hash)

    started = time.monotonic()
    scores = scores_on_test(model, bank)
    record = {
        "dataset": bank.dataset,
        "trainer": cfg.TRAINER.NAME,
        "variant": model.variant,
        "backbone": bank.backbone,
        "shots": cfg.DATASET.NUM_SHOTS,
        "seed": seed,
        **scores,
        "num_test": len(bank.test_labels),
        "num_train": len(bank.train_labels),
        "adapter_from": None if model_dir is None else str(model_dir),
        "selected_on": "last_step",
        "selected": {},
        "epochs": trained.epochs,
        "steps": trained.steps,
        "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "config": config,
        "config_hash": hash_json(config),
        "split_hash": split_hash,
        "run_id": run_id,
        "versions": versions(),
        "git_commit": git_commit(),
        "threads": torch.get_num_threads(),
        "device": device if device == "cpu" else torch.cuda.get_device_name(),
        "seconds": {
            "features": round(features_seconds, 3),
            "training": round(trained.seconds, 3),
            "test": round(time.monotonic() - started, 3),
        },
        "peak_memory_mb": peak_memory_mb(),
        "finished_at": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }
    write_record(output, record)
    if model_dir is None:
        (output / CHECKPOINT).unlink(missing_ok=True)
    return record


def hash_adapter(path: Path) -> str:
    try:
        return hash_file(path)
    except OSError as error:
        raise UserError(f"cannot read the adapter {path}: {error.strerror}") from error


def build_model(bank: FeatureBank, cfg: CfgNode) -> HeGraphAdapter:
    """The untrained adapter of a few-shot task.

    Raises:
        UserError: If a class has no training image.
    """
    keys = bank.cache_keys()
    prototypes = class_means(keys, bank.train_labels, bank.classnames)
    graph = build_graph(bank.text_positive, bank.text_negative, prototypes)
    return HeGraphAdapter(graph, keys, bank.train_labels, bank.logit_scale, cfg.TRAINER.HEGRAPHADAPTER)


def scores_on_test(model: HeGraphAdapter, bank: FeatureBank) -> dict[str, float]:
    """Percent on test: the full prediction, the text classifier alone, and zero-shot CLIP."""
    logits = model.predict(bank.test_features)
    combined = model.combine(logits)
    if not combined.isfinite().all():
        raise UserError("the trained adapter predicts NaN or infinite logits; lower OPTIM.LR")
    zero_shot = text_logits(bank.test_features, bank.text_positive, bank.logit_scale)
    return {
        **score(combined, bank.test_labels),
        "accuracy_text": score(logits.text, bank.test_labels)["accuracy"],
        "accuracy_zero_shot": score(zero_shot, bank.test_labels)["accuracy"],
    }


def run_config(cfg: CfgNode) -> dict[str, object]:
    """The keys that shape a run, as a flat dict of plain values."""
    flat: dict[str, object] = {}

    def visit(node: CfgNode, prefix: str) -> None:
        for key, value in node.items():
            name = f"{prefix}{key}"
            if isinstance(value, CfgNode):
                visit(value, f"{name}.")
            elif name not in NOT_PART_OF_A_RUN:
                flat[name] = list(value) if isinstance(value, tuple) else value

    visit(cfg, "")
    return dict(sorted(flat.items()))


def set_random_seed(seed: int) -> None:
    """Seeds Python, numpy and torch, as Dassl does."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.cuda.manual_seed_all(seed)


def versions() -> dict[str, str]:
    """Versions of what computes the numbers."""
    packages = ("open_clip_torch", "torch_geometric", "numpy", "scikit-learn")
    ours = {"python": platform.python_version(), "torch": torch.__version__}  # with the build, such as +cpu
    return ours | {package: version(package) for package in packages}


def git_commit() -> str | None:
    """The commit of this checkout, with "-dirty" if tracked files differ; None outside a git checkout."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            cwd=Path(__file__).parent, capture_output=True, text=True, check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return None
    return described.stdout.strip()


def peak_memory_mb() -> float | None:
    """Peak resident memory of this process, in MB; None on Windows, which does not say."""
    if resource is None:
        return None
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux kilobytes
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6, 1)
