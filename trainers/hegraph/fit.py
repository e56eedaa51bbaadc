"""The standalone training loop: AdamW, one warm-up epoch, cosine, resume. It never sees test features."""

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

from .batches import Batch, TrainingData
from .checkpoints import load_checkpoint, save_checkpoint
from .errors import UserError
from .losses import adapter_losses
from .model import HeGraphAdapter

logger = logging.getLogger(__name__)

CHECKPOINT_SECONDS = 10.0


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


def fit(model: HeGraphAdapter, data: TrainingData, cfg: CfgNode, checkpoint: Path, run_id: str) -> FitResult:
    """Trains the adapter in place.

    Args:
        model: With parameters to train.
        data: Training batches.
        cfg: The whole configuration.
        checkpoint: File to resume from if it exists, and to write to on the way; removed by nobody but the
            caller.
        run_id: Hash of everything that shapes the run; a checkpoint of another run is refused.

    Raises:
        UserError: If the checkpoint belongs to another run or is damaged, or the loss is not finite.
    """
    options = cfg.TRAINER.HEGRAPHADAPTER
    groups = model.parameter_groups(cfg.OPTIM.LR, options.WEIGHT_LR_MULT, options.VISUAL_LR)
    optimizer = torch.optim.AdamW(groups, weight_decay=cfg.OPTIM.WEIGHT_DECAY)
    peak_rates = [group["lr"] for group in optimizer.param_groups]
    epochs = max(cfg.OPTIM.MAX_EPOCH, math.ceil(options.MIN_STEPS / data.steps_per_epoch))
    first_epoch, seconds = 0, 0.0
    if checkpoint.exists():
        first_epoch, seconds = load_checkpoint(checkpoint, run_id, model, optimizer)
        logger.info("resuming from %s after epoch %d of %d", checkpoint, first_epoch, epochs)

    model.train()
    started = last_saved = time.monotonic()
    progress = tqdm(total=epochs, initial=first_epoch, desc="training", unit="epoch", disable=None)
    with progress:
        for epoch in range(first_epoch, epochs):
            for group, peak in zip(optimizer.param_groups, peak_rates):
                group["lr"] = learning_rate(epoch, epochs, peak, cfg.OPTIM.WARMUP_EPOCH, cfg.OPTIM.WARMUP_CONS_LR)
            loss = None
            for batch in data.epoch(epoch):
                loss = train_step(model, optimizer, batch, options)
            if not loss.isfinite():
                raise UserError(f"the loss is {loss.item()} in epoch {epoch + 1}; lower OPTIM.LR ({cfg.OPTIM.LR})")
            progress.update()
            if (epoch + 1) % cfg.TRAIN.PRINT_FREQ == 0:
                progress.set_postfix(loss=f"{loss.item():.3f}")

            frequency = cfg.TRAIN.CHECKPOINT_FREQ
            due = (epoch + 1) % frequency == 0 if frequency else time.monotonic() - last_saved > CHECKPOINT_SECONDS
            if due and epoch + 1 < epochs:
                save_checkpoint(checkpoint, run_id, model, optimizer, epoch + 1, seconds + time.monotonic() - started)
                last_saved = time.monotonic()
    seconds += time.monotonic() - started
    return FitResult(epochs, epochs * data.steps_per_epoch, seconds)


def train_step(model: HeGraphAdapter, optimizer: torch.optim.Optimizer, batch: Batch, options: CfgNode) -> Tensor:
    """One optimizer step; returns the loss, not yet read from the device."""
    own = batch.positions if options.LEAVE_ONE_OUT else None
    logits = model(batch.features, own)
    losses = adapter_losses(logits, batch.labels, options.LAMBDA, options.LOSS_SCALE)
    loss = torch.stack(list(losses.values())).sum()
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return loss.detach()


def learning_rate(epoch: int, epochs: int, peak: float, warmup_epochs: int, warmup_rate: float) -> float:
    """Dassl's cosine schedule with a constant warm-up.

    Its cosine counts from the end of the warm-up but is as long as the whole training, so the last epoch
    stays a little above zero.

    Args:
        epoch: From 0.
        epochs: Of the whole training, warm-up included.
        peak: The rate at the first epoch after the warm-up.
        warmup_epochs: Epochs at `warmup_rate`.
        warmup_rate: Of the warm-up.
    """
    warmup_epochs = max(warmup_epochs, 0)
    if epoch < warmup_epochs:
        return warmup_rate
    return 0.5 * peak * (1 + math.cos(math.pi * (epoch - warmup_epochs) / epochs))
