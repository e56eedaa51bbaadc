"""Training: AdamW, one warm-up epoch, cosine, checkpoints. It never sees test features.

`Fit` is what both hosts share; `fit` is the loop of the standalone one, Dassl has its own.
"""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm
from yacs.config import CfgNode

from ..method.losses import adapter_losses
from ..method.model import HeGraphAdapter
from ..utils.errors import UserError
from .batches import Batch, TrainingData
from .checkpoints import adapter_file, load_checkpoint, save_adapter, save_checkpoint
from .memory import keep_freed_memory
from .schedule import learning_rate, rate_at_width

logger = logging.getLogger(__name__)

CHECKPOINT = "checkpoint.pt"
CHECKPOINT_SECONDS = 10.0
FUSED = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 4)  # before, AdamW's steps were fused on a GPU only


@dataclass(frozen=True)
class FitResult:
    """What training took.

    Attributes:
        epochs, steps: Completed, over all sittings of a resumed run.
        seconds: Wall time of training, over all sittings.
    """

    epochs: int
    steps: int
    seconds: float


class Fit:
    """A training under way: optimizer, schedule and checkpoints. The host runs the epochs.

    Args:
        model: With parameters to train, which it does in place.
        data: Training batches.
        cfg: The whole configuration.
        output: Folder of the checkpoint, which nobody but the caller removes, and of the adapters that
            `TRAIN.CHECKPOINT_FREQ` asks for; None: neither is read or written.
        run_id: Hash of everything that shapes the run; a checkpoint of another run is refused.
        about: What `save_adapter` keeps beside the parameters.

    Attributes:
        epochs: How many there are, from 0.
        epoch: The next one; above 0 if a checkpoint was found.

    Raises:
        UserError: If the checkpoint belongs to another run or is damaged.
    """

    def __init__(
        self, model: HeGraphAdapter, data: TrainingData, cfg: CfgNode, output: Path | None, run_id: str, about: dict
    ) -> None:
        options = cfg.TRAINER.HEGRAPHADAPTER
        keep_freed_memory()
        self.peak_rate = rate_at_width(cfg.OPTIM.LR, options.LR_WIDTH, model.x_positive.shape[1])
        groups = model.parameter_groups(self.peak_rate, options.WEIGHT_LR_MULT, options.VISUAL_LR)
        self.model, self.data, self.cfg, self.output, self.run_id, self.about = model, data, cfg, output, run_id, about
        self.optimizer = torch.optim.AdamW(groups, weight_decay=cfg.OPTIM.WEIGHT_DECAY, fused=FUSED)
        self.peak_rates = [group["lr"] for group in self.optimizer.param_groups]
        self.epochs = max(cfg.OPTIM.MAX_EPOCH, math.ceil(options.MIN_STEPS / data.steps_per_epoch))
        self.epoch, self.seconds_before = 0, 0.0
        checkpoint = None if output is None else checkpoint_to_resume(output, cfg)
        if checkpoint is not None and checkpoint.exists():
            self.epoch, self.seconds_before = load_checkpoint(checkpoint, run_id, model, self.optimizer)
            logger.info("resuming from %s after epoch %d of %d", checkpoint, self.epoch, self.epochs)
        self.started = self.last_saved = time.monotonic()

    @property
    def result(self) -> FitResult:
        seconds = self.seconds_before + time.monotonic() - self.started
        return FitResult(self.epoch, self.epoch * self.data.steps_per_epoch, seconds)

    @property
    def learning_rate(self) -> float:
        """Of this epoch: that of the biases."""
        return self._rate(self.peak_rate)

    def begin_epoch(self) -> None:
        """Sets the learning rates of the epoch."""
        for group, peak in zip(self.optimizer.param_groups, self.peak_rates):
            group["lr"] = self._rate(peak)

    def _rate(self, peak: float) -> float:
        optim = self.cfg.OPTIM
        return learning_rate(self.epoch, self.epochs, peak, optim.WARMUP_EPOCH, optim.WARMUP_CONS_LR)

    def step(self, batch: Batch) -> Tensor:
        """One optimizer step; returns the loss, not yet read from the device."""
        options = self.cfg.TRAINER.HEGRAPHADAPTER
        own = batch.positions if options.LEAVE_ONE_OUT else None
        logits = self.model(batch.features, own, batch.products)
        losses = adapter_losses(logits, batch.labels, options.LAMBDA, options.LOSS_SCALE)
        loss = torch.stack(list(losses.values())).sum()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def end_epoch(self, loss: Tensor) -> None:
        """Counts the epoch, and saves what is due.

        Args:
            loss: Of its last step.

        Raises:
            UserError: If the loss is not finite.
        """
        self.epoch += 1
        if not loss.isfinite():
            raise UserError(f"the loss is {loss.item()} in epoch {self.epoch}; lower OPTIM.LR ({self.cfg.OPTIM.LR})")
        if self.output is None:
            return
        frequency = self.cfg.TRAIN.CHECKPOINT_FREQ
        if frequency and self.epoch % frequency == 0:
            save_adapter(self.output / adapter_file(self.epoch), self.model, **self.about)
        due = self.epoch % frequency == 0 if frequency else time.monotonic() - self.last_saved > CHECKPOINT_SECONDS
        if due and self.epoch < self.epochs:
            seconds = self.result.seconds
            save_checkpoint(self.output / CHECKPOINT, self.run_id, self.model, self.optimizer, self.epoch, seconds)
            self.last_saved = time.monotonic()


def fit(fitting: Fit) -> FitResult:
    """Trains the adapter of `fitting` in place, to the last epoch.

    Raises:
        UserError: If the loss is not finite.
    """
    fitting.model.train()
    with tqdm(total=fitting.epochs, initial=fitting.epoch, desc="training", unit="epoch", disable=None) as progress:
        while fitting.epoch < fitting.epochs:
            fitting.begin_epoch()
            for batch in fitting.data.epoch(fitting.epoch):
                loss = fitting.step(batch)
            fitting.end_epoch(loss)
            progress.update()
            if fitting.epoch % fitting.cfg.TRAIN.PRINT_FREQ == 0:
                progress.set_postfix(loss=f"{loss.item():.3f}")
    return fitting.result


def checkpoint_to_resume(output: Path, cfg: CfgNode) -> Path:
    """Where training goes on from: RESUME, which must hold a checkpoint, or the output folder, which may.

    Raises:
        UserError: If RESUME is given and holds none.
    """
    checkpoint = Path(cfg.RESUME or output) / CHECKPOINT
    if cfg.RESUME and not checkpoint.exists():
        raise UserError(
            f"there is nothing to resume in {cfg.RESUME}: no {CHECKPOINT}, which a run leaves when it is interrupted"
        )
    return checkpoint
