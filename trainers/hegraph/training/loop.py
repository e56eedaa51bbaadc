"""The training of an adapter: AdamW, one warm-up epoch, cosine, checkpoints. It never sees test features.

`AdapterTraining` is what both hosts share. `train_to_end` is the loop of a run without Dassl, which has a loop of its
own.

Good text is soon spoilt by single images, so the rate of training is small at one shot. Weak text has to be left, which
takes a larger one: on validation images of tasks whose text was mixed with that of wrong classes, three times the rate
gained 8 points at one shot, where the same on good text lost half a point (`docs/trials.md`). Whether text is weak is
told from the training images alone, by `text_share`.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from ..method.cache import adapter_loss, text_logits
from ..method.closed_form import TEMPERATURES, nll_at_temperatures
from ..method.model import HeGraphModel
from ..utils.errors import UserError
from .batches import Batch, TrainingData, epoch_generator
from .checkpoints import Checkpoints
from .options import TrainingOptions

logger = logging.getLogger(__name__)

CHECKPOINT_SECONDS = 10.0
WEAK = 0.65  # text that tells a smaller share than this of what there is to know about the classes is weak
BATCH = 1024  # images that are classified at once, so that many classes take little memory
NOISE_STREAM = 1  # the order and the views of an epoch are drawn from stream 0


@dataclass(frozen=True)
class TrainingSummary:
    """How long a training took, over all sittings of a resumed run; `seconds` are wall time."""

    epochs: int = 0
    steps: int = 0
    seconds: float = 0.0


class AdapterTraining:
    """A training under way: its optimizer, its schedule and its checkpoints. The host runs the epochs.

    Args:
        model: The adapter, whose parameters are trained in place.
        data: Training batches.
        options: How it is trained.
        checkpoints: Where its state is kept; None keeps none.
        keep: Called with the model and the number of epochs after every `options.checkpoint_epochs` epochs.
    """

    def __init__(
        self,
        model: HeGraphModel,
        data: TrainingData,
        options: TrainingOptions,
        checkpoints: Checkpoints | None = None,
        keep: Callable[[HeGraphModel, int], None] | None = None,
    ) -> None:
        self.model, self.data, self.options, self.checkpoints, self.keep = model, data, options, checkpoints, keep
        rate = options.learning_rate
        if options.lr_width:  # a unit vector turns by about `rate * sqrt(d)`: AdamW moves each entry by about the rate
            rate = rate * math.sqrt(options.lr_width / model.x_positive.shape[1])
        if options.lr_tau:  # logits move `tau` times as much as the class features
            rate = rate * options.lr_tau / model.logit_scale
        self.peak_rate = rate * self._factor_of_weak_text()
        groups = model.parameter_groups(self.peak_rate, options.weight_lr_mult, options.visual_lr)
        self.optimizer = torch.optim.AdamW(groups, weight_decay=options.weight_decay, fused=True)
        self.peak_rates = [group["lr"] for group in self.optimizer.param_groups]
        self.epochs = max(options.epochs, math.ceil(options.min_steps / data.steps_per_epoch))
        self.epoch, self.seconds_before = 0, 0.0
        self.noise = epoch_generator(data.seed, self.epoch, NOISE_STREAM)
        self.started = self.last_saved = time.monotonic()

    def resume(self) -> None:
        """Goes on from the checkpoint, if there is one. Raises UserError as `Checkpoints.load`."""
        if self.checkpoints is not None and (found := self.checkpoints.load(self.model, self.optimizer)) is not None:
            self.epoch, self.seconds_before = found
            path = self.checkpoints.path_to_resume
            logger.info("resuming from %s after epoch %d of %d", path, self.epoch, self.epochs)
        self.started = self.last_saved = time.monotonic()

    @property
    def summary(self) -> TrainingSummary:
        """How long the training has taken so far."""
        seconds = self.seconds_before + time.monotonic() - self.started
        return TrainingSummary(self.epoch, self.epoch * self.data.steps_per_epoch, seconds)

    @property
    def learning_rate(self) -> float:
        """The learning rate of the biases in this epoch."""
        return self._rate(self.peak_rate)

    def begin_epoch(self) -> None:
        """Sets the learning rates of the epoch, and seeds its noise."""
        self.noise = epoch_generator(self.data.seed, self.epoch, NOISE_STREAM)
        for group, peak in zip(self.optimizer.param_groups, self.peak_rates):
            group["lr"] = self._rate(peak)

    def step(self, batch: Batch) -> Tensor:
        """Takes one optimizer step; returns the loss, which has not been read from the device."""
        options = self.options
        own = batch.positions if options.leave_one_out else None
        noisy = self.model.with_noise(batch.features, self.noise)
        logits = self.model(batch.features, own, batch.products, noisy)
        loss = adapter_loss(logits, batch.labels, options.visual_weight, options.visual_scale)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def end_epoch(self, loss: Tensor) -> None:
        """Counts the epoch, and saves what is due. Raises UserError if the loss of its last step is not finite."""
        self.epoch += 1
        if not loss.isfinite():
            raise UserError(
                f"the loss is {loss.item()} in epoch {self.epoch}; lower OPTIM.LR ({self.options.learning_rate})"
            )
        every = self.options.checkpoint_epochs
        if every and self.epoch % every == 0 and self.keep is not None:
            self.keep(self.model, self.epoch)
        if self.checkpoints is None:
            return
        due = self.epoch % every == 0 if every else time.monotonic() - self.last_saved > CHECKPOINT_SECONDS
        if due and self.epoch < self.epochs:
            self.checkpoints.save(self.model, self.optimizer, self.epoch, self.summary.seconds)
            self.last_saved = time.monotonic()

    def _factor_of_weak_text(self) -> float:
        factor, model = self.options.weak_text_lr_mult, self.model
        if factor == 1:
            return 1.0
        share = text_share(model.cache_keys, model.cache_labels, model.x_positive, model.logit_scale)
        if share >= WEAK:
            return 1.0
        logger.info("text is weak (it tells %.2f of the classes, below %.2f): OPTIM.LR x %g", share, WEAK, factor)
        return factor

    def _rate(self, peak: float) -> float:
        options = self.options
        return learning_rate(self.epoch, self.epochs, peak, options.warmup_epochs, options.warmup_lr)


def train_to_end(training: AdapterTraining) -> TrainingSummary:
    """Trains an adapter in place, to the last epoch. Raises UserError if the loss is not finite."""
    training.model.train()
    with tqdm(total=training.epochs, initial=training.epoch, desc="training", unit="epoch", disable=None) as progress:
        while training.epoch < training.epochs:
            training.begin_epoch()
            for batch in training.data.epoch(training.epoch):
                loss = training.step(batch)
            training.end_epoch(loss)
            progress.update()
            if training.epoch % training.options.progress_epochs == 0:
                progress.set_postfix(loss=f"{loss.item():.3f}")
    return training.summary


def learning_rate(epoch: int, epochs: int, peak: float, warmup_epochs: int, warmup_rate: float) -> float:
    """The rate of one epoch, counted from 0, under Dassl's cosine schedule with a constant warm-up.

    The cosine starts after the warm-up but is as long as the whole training, so it does not reach zero. With 0 warm-up
    epochs or less there is none.
    """
    warmup_epochs = max(warmup_epochs, 0)
    if epoch < warmup_epochs:
        return warmup_rate
    return 0.5 * peak * (1 + math.cos(math.pi * (epoch - warmup_epochs) / epochs))


@torch.no_grad()
def text_share(features: Tensor, labels: Tensor, text: Tensor, logit_scale: float) -> float:
    """The share of what there is to know about the classes of images that zero-shot CLIP knows: McFadden's R^2.

        R^2 = 1 - NLL / log K

    McFadden, "Conditional logit analysis of qualitative choice behavior", 1974. The NLL is the mean over the images
    `[N, d]`, at the one of `TEMPERATURES` that suits them best; text is that of at least two classes, `[K, d]`. It is 1
    where CLIP is sure and right, 0 where it knows nothing, and below that where it is sure and wrong.
    """
    sums = torch.zeros(len(TEMPERATURES), device=features.device)
    for some, true in zip(features.split(BATCH), labels.split(BATCH)):
        sums += nll_at_temperatures(text_logits(some, text, logit_scale), true)
    return 1 - sums.min().item() / (len(features) * math.log(len(text)))
