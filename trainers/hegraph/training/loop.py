"""The training of an adapter: AdamW, one warm-up epoch, cosine, checkpoints. It never sees test features.

`AdapterTraining` is what both hosts share. `train_to_end` is the loop of a run without Dassl, which has a loop of its
own. The files that it leaves hold tensors and plain values only, and reading one runs nothing.

Good text is soon spoilt by single images, so the rate of training is small at one shot. Weak text has to be left, which
takes a larger one: on validation images of tasks whose text was mixed with that of wrong classes, three times the rate
gained 8 points at one shot, where the same on good text lost half a point (`docs/trials.md`). Whether text is weak is
told from the training images alone, by `text_share`.
"""

from __future__ import annotations

import io
import json
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import InstanceOf
from torch import Tensor
from torch.optim import AdamW
from tqdm import tqdm

from ..method.cache import adapter_loss, text_logits
from ..method.closed_form import TEMPERATURES, nll_at_temperatures
from ..method.model import HeGraphModel
from ..utils.errors import UserError
from ..utils.files import atomic_path, hash_content, write_tensors
from ..utils.reading import Count, NotNegative, Part, read_torch, reading
from .batches import Batch, TrainingData, epoch_generator
from .options import TrainingOptions

logger = logging.getLogger(__name__)

CHECKPOINT = "checkpoint.pt"
ADAPTER = "adapter.safetensors"
CHECKPOINT_SECONDS = 10.0
WEAK = 0.65  # text that tells a smaller share than this of what there is to know about the classes is weak
BATCH = 1024  # images that are classified at once, so that many classes take little memory
NOISE_STREAM = 1  # the order and the views of an epoch are drawn from stream 0


class CheckpointState(Part):
    """The content of a checkpoint file: the trained parameters by name, AdamW's moments by position."""

    run_id: str
    epoch: Count
    seconds: NotNegative
    model: dict[str, InstanceOf[Tensor]]
    moments: dict[int, dict[str, InstanceOf[Tensor]]]
    checksum: str


@dataclass(frozen=True)
class Checkpoints:
    """Where the state of one training is kept.

    Attributes:
        folder: The output folder of the run.
        resume_from: The folder whose checkpoint training goes on from; mostly the same.
        run_id: Hash of everything that shapes the run. The checkpoint of another run is refused.
        classnames, split_hash: The K class names and the hash of the selected images, kept with an adapter.
        keep: Called with the model and the number of epochs after every `checkpoint_epochs` epochs.
    """

    folder: Path
    resume_from: Path
    run_id: str
    classnames: Sequence[str] = ()
    split_hash: str = ""
    keep: Callable[[HeGraphModel, int], None] | None = None

    @property
    def path_to_resume(self) -> Path:
        """The checkpoint that training goes on from, if it is there."""
        return self.resume_from / CHECKPOINT

    def read(self) -> CheckpointState | None:
        """What the checkpoint holds; None if there is none. Raises UserError if it is damaged or another run's."""
        path = self.path_to_resume
        if not path.exists():
            return None
        try:
            content = read_torch(path, "a checkpoint")
            with reading(path, "a checkpoint"):
                state = CheckpointState.model_validate(content)
                if state.checksum != _checksum(content):
                    raise ValueError("its content has changed since it was written")
        except UserError as error:
            raise UserError(f"{error}; delete it to start anew") from error
        if state.run_id != self.run_id:
            raise UserError(f"{path} belongs to a run with other settings or data; delete it or change --output-dir")
        return state

    def load(self, model: HeGraphModel, optimizer: AdamW) -> tuple[int, float] | None:
        """Loads model and optimizer in place. Returns the epochs that are done and the seconds that they took; None if
        there is no checkpoint. Raises UserError as `read`, and if another version wrote it, whose tensors are others.
        """
        if (state := self.read()) is None:
            return None
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        wanted = {n: {"step": torch.tensor(0.0), "exp_avg": p, "exp_avg_sq": p} for n, p in enumerate(parameters)}
        # Torch itself takes moments of any shape, and reads beyond their end in the next step
        fit = all(_forms(moments) == _forms(wanted.get(n, {})) for n, moments in state.moments.items())
        if not fit or _forms(state.model) != _forms(model.state_dict()):
            raise UserError(f"the tensors of {self.path_to_resume} are others than here; delete it to start anew")
        model.load_state_dict(state.model)
        optimizer.load_state_dict(optimizer.state_dict() | {"state": state.moments})
        return state.epoch, state.seconds

    def save(self, model: HeGraphModel, optimizer: AdamW, epoch: int, seconds: float) -> None:
        """Writes all that training needs to go on after `epoch` epochs and `seconds` of work, atomically."""
        state: dict[str, Any] = {"run_id": self.run_id, "epoch": epoch, "seconds": seconds}
        state |= {"model": model.state_dict(), "moments": optimizer.state_dict()["state"]}
        content = io.BytesIO()  # torch.save itself raises RuntimeError on a full disk, whatever the cause
        torch.save(state | {"checksum": _checksum(state)}, content)
        with atomic_path(self.folder / CHECKPOINT) as temporary:
            temporary.write_bytes(content.getvalue())

    def save_adapter(self, model: HeGraphModel) -> None:
        """Writes the trained parameters, to look at. What predicts is the model folder beside them."""
        about = {"variant": model.options.variant, "split_hash": self.split_hash, "classnames": list(self.classnames)}
        write_tensors(self.folder / ADAPTER, model.state_dict(), {"adapter": json.dumps(about, ensure_ascii=False)})

    def remove(self) -> None:
        """Removes the checkpoint of a training that has ended."""
        (self.folder / CHECKPOINT).unlink(missing_ok=True)


def _checksum(state: Mapping[str, Any]) -> str:
    """The hash of all of a checkpoint but its own."""
    return hash_content({key: value for key, value in state.items() if key != "checksum"})


def _forms(tensors: Mapping[str, Tensor]) -> dict[str, tuple]:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}


@dataclass(frozen=True)
class TrainingSummary:
    """How long a training took, over all sittings of a resumed run; `seconds` are wall time."""

    epochs: int = 0
    steps: int = 0
    seconds: float = 0.0


@dataclass(eq=False)
class AdapterTraining:
    """A training under way: its optimizer, its schedule and its checkpoints. The host runs the epochs.

    Attributes:
        model: The adapter, whose parameters are trained in place.
        data: Training batches.
        options: How it is trained.
        checkpoints: Where its state is kept; None keeps none.
    """

    model: HeGraphModel
    data: TrainingData
    options: TrainingOptions
    checkpoints: Checkpoints | None = None

    def __post_init__(self) -> None:
        model, options = self.model, self.options
        rate = options.learning_rate
        if options.lr_width:  # a unit vector turns by about `rate * sqrt(d)`: AdamW moves each entry by about the rate
            rate = rate * math.sqrt(options.lr_width / model.x_positive.shape[1])
        if options.lr_tau:  # logits move `tau` times as much as the class features
            rate = rate * options.lr_tau / model.logit_scale
        if (factor := options.weak_text_lr_mult) != 1:
            share = text_share(model.cache_keys, model.cache_labels, model.x_positive, model.logit_scale)
            if share < WEAK:
                rate = rate * factor
                logger.info("text is weak (it tells %.2f of the classes): OPTIM.LR x %g", share, factor)
        self.peak_rate = rate
        groups = model.parameter_groups(self.peak_rate, options.weight_lr_mult, options.visual_lr)
        self.optimizer = AdamW(groups, weight_decay=options.weight_decay, fused=True)
        self.peak_rates = [group["lr"] for group in self.optimizer.param_groups]
        self.epochs = max(options.epochs, math.ceil(options.min_steps / self.data.steps_per_epoch))
        self.epoch, self.seconds_before = 0, 0.0
        self.noise = epoch_generator(self.data.seed, self.epoch, NOISE_STREAM)
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
            rate = self.options.learning_rate
            raise UserError(f"the loss is {loss.item()} in epoch {self.epoch}; lower OPTIM.LR ({rate})")
        if self.checkpoints is None:
            return
        every = self.options.checkpoint_epochs
        due = self.epoch % every == 0 if every else time.monotonic() - self.last_saved > CHECKPOINT_SECONDS
        if every and due and self.checkpoints.keep is not None:
            self.checkpoints.keep(self.model, self.epoch)
        if due and self.epoch < self.epochs:
            self.checkpoints.save(self.model, self.optimizer, self.epoch, self.summary.seconds)
            self.last_saved = time.monotonic()

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
