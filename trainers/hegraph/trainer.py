"""The Dassl trainer: HeGraphAdapter inside CoOp. The only file that imports dassl.

Dassl drives: its registry, its DataManager over CoOp's loaders, its epochs, evaluator and TensorBoard writer. What it
drives is the same model, fed with the same features, as `run.py`; the loaders hand it features where they hand other
trainers images. Schedule, checkpoints and record are ours in both hosts: Dassl's warm-up scheduler does not run on
current torch, and its checkpoints pickle it.

In CoOp's own `train.py`, two lines are enough (README.md, "Inside CoOp"):

    import trainers.hegraph.trainer             # first of all imports
    trainers.hegraph.trainer.extend_cfg(cfg)    # at the end of extend_cfg
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import random
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from torch import Tensor
from yacs.config import CfgNode

from .absent import absent_packages_excused
from .batches import Batch
from .config import extend_cfg, from_dassl
from .datasets.base import Dataset
from .datasets.catalog import CATALOG, open_image
from .datasets.splits import Item
from .errors import UserError
from .experiment import Experiment
from .fit import Fit
from .tasks import ImageTask

with absent_packages_excused("wilds", "pandas"):
    from dassl.data import DataManager
    from dassl.engine import TRAINER_REGISTRY, TrainerX

__all__ = ["HeGraphAdapter", "extend_cfg", "run_in_coop"]

logger = logging.getLogger(__name__)


@TRAINER_REGISTRY.register()
class HeGraphAdapter(TrainerX):
    """HeGraphAdapter as Dassl trains it; `trainers/hegraph/model.py` is the model.

    Raises:
        UserError: On anything that the user can mend.
    """

    def check_cfg(self, cfg: CfgNode) -> None:
        if cfg.TEST.FINAL_MODEL != "last_step":
            raise UserError(
                f"TEST.FINAL_MODEL must be last_step, got {cfg.TEST.FINAL_MODEL!r}: where there is no val split, Dassl "
                "scores test in its place, and would select on it"
            )
        if cfg.TRAINER.HEGRAPHADAPTER.SELECT_ON != "last_step":
            raise UserError("SELECT_ON val trains more than once, which Dassl does not; give --host alone")
        if cfg.TEST.SPLIT != "test":
            raise UserError(f"TEST.SPLIT must be test, got {cfg.TEST.SPLIT!r}")

    def build_data_loader(self) -> None:
        """Dassl's and CoOp's loaders select the images; ours hand out their features."""
        super().build_data_loader()
        cfg = from_dassl(self.cfg)
        seed = cfg.SEED if cfg.SEED >= 0 else random.SystemRandom().randrange(2**31)
        task = ImageTask(dataset_of(self.dm, cfg), cfg, seed, self.device.type)
        self.experiment = Experiment(cfg, task, seed, self.device.type, host="dassl")
        self.experiment.encode()

    def build_model(self) -> None:
        experiment = self.experiment
        experiment.build_model()
        bank = experiment.bank
        self.model = experiment.model
        self.training: Fit | None = None
        self.register_model("hegraph", self.model)
        size = experiment.cfg.DATALOADER.TEST.BATCH_SIZE
        self.test_loader = [
            {"img": features, "label": labels}
            for features, labels in zip(bank.test_features.split(size), bank.test_labels.split(size))
        ]
        self.train_loader_x = self.val_loader = None  # the one waits for the training, the other is never used

    def train(self) -> None:
        if self.experiment.finished() is not None:
            return
        self.experiment.write_split()
        self.training = self.experiment.start_training()
        if self.training is None:  # the variant "base" has nothing to train
            self.max_epoch = 0
        else:
            self.max_epoch = self.training.epochs
            self.train_loader_x = EpochBatches(self.training)
            self._optims["hegraph"] = self.training.optimizer  # Dassl reads the rate it prints from there
        super().train()

    def resume_model_if_exist(self, directory: str) -> int:
        """The first epoch; `start_training` has read the checkpoint."""
        return 0 if self.training is None else self.training.epoch

    def before_epoch(self) -> None:
        self.training.begin_epoch()

    def forward_backward(self, batch: Batch) -> dict[str, float]:
        self.loss = self.training.step(batch)
        return {"loss": self.loss.item()}

    def after_epoch(self) -> None:
        self.training.end_epoch(self.loss)

    def after_train(self) -> None:
        if self.training is not None:
            self.experiment.end_training(self.training.result)
        super().after_train()

    def load_model(self, directory: str, epoch: int | None = None) -> None:
        """Takes the adapter of a finished run; `epoch` as Dassl counts them, from 1.

        Raises:
            UserError: If no folder is given, or there is no adapter that fits.
        """
        if not directory:
            raise UserError("--eval-only needs --model-dir, the folder of a finished run")
        self.experiment.choose_adapter(Path(directory), epoch)
        if self.experiment.finished() is None:
            self.experiment.load_adapter()

    def test(self, split: str | None = None) -> float:
        """Dassl's evaluator on the test features; also writes our record. Returns the accuracy in percent."""
        record = self.experiment.finished()
        if record is not None:
            return record["accuracy"]
        if self.experiment.adapter is not None:
            self.experiment.write_split()
        accuracy = super().test("test")
        self.experiment.record(self.experiment.outcome())
        return accuracy

    def model_inference(self, input: Tensor) -> Tensor:
        """Logits `[B, K]` of image features `[B, d]`."""
        return self.model.combine(self.model.predict(input))


class EpochBatches:
    """The batches of the epoch that is under way, as a loader of Dassl's."""

    def __init__(self, training: Fit) -> None:
        self.training = training

    def __len__(self) -> int:
        return self.training.data.steps_per_epoch

    def __iter__(self) -> Iterator[Batch]:
        return self.training.data.epoch(self.training.epoch)


def dataset_of(manager: DataManager, cfg: CfgNode) -> Dataset:
    """What Dassl's DataManager selected, with paths relative to the data root."""
    root = Path(cfg.DATASET.ROOT).expanduser().absolute()

    def items(data: list | None) -> list[Item]:
        return [
            Item(Path(os.path.relpath(datum.impath, root)).as_posix(), datum.label, datum.classname)
            for datum in data or ()
        ]

    source = manager.dataset
    train, val, test = items(source.train_x), items(source.val), items(source.test)
    if cfg.DATASET.NAME in CATALOG and CATALOG[cfg.DATASET.NAME].test_only:
        raise UserError(f"{cfg.DATASET.NAME} has only test images: train on ImageNet and test the adapter on it")
    return Dataset(cfg.DATASET.NAME, source.classnames, train, val, test, partial(open_image, root), root)


def run_in_coop(args: argparse.Namespace, root: Path) -> None:
    """Runs CoOp's own `train.py`, unedited, with our keys in its configuration.

    Args:
        args: CoOp's flags, as `__main__` parses them.
        root: The CoOp checkout.
    """
    sys.path.insert(0, str(root))
    coop = importlib.import_module("train")
    coop_extend_cfg = coop.extend_cfg

    def extend_both(cfg: CfgNode) -> None:
        coop_extend_cfg(cfg)
        extend_cfg(cfg)

    coop.extend_cfg = extend_both
    coop.main(args)
