"""Training of an adapter with AdamW, one epoch of warm-up, a cosine schedule and checkpoints.

Both runners use `AdapterTraining`. `train_to_end` is the training loop without Dassl, which has its own loop.
Test features are never used. Checkpoints hold tensors and plain values, and reading one executes no code.

The learning rate is small at one shot, because single images degrade good text features. Weak text needs a larger rate:
on validation images of tasks whose text was mixed with the text of wrong classes, three times the rate gained 8 points
at one shot, and lost half a point on good text (docs/development/trials.md). `text_score` measures the quality of the
text on the training images.
"""

import io
import json
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import InstanceOf
from torch import Tensor
from torch.optim import AdamW
from tqdm import tqdm

from ...utils.errors import OTHER_RUN, UserError
from ...utils.files import atomic_path, hash_content, write_tensors
from ...utils.reading import Count, NotNegative, StrictModel, read_torch, reading
from ..cache import QUERY_BATCH, Logits, adapter_loss, text_logits
from ..head.class_offsets import INVERSE_TEMPERATURES, nll_at_temperatures
from ..model import HeGraphModel
from .batches import Batch, TrainingData, epoch_generator
from .options import TrainingOptions

logger = logging.getLogger(__name__)

CHECKPOINT = "checkpoint.pt"
ADAPTER = "adapter.safetensors"
CHECKPOINT_SECONDS = 10.0
WEAK_TEXT = 0.65  # text with a `text_score` below this is weak
NOISE_STREAM = 1  # stream 0 gives the order and the views of an epoch


class CheckpointState(StrictModel):
    """The content of a checkpoint file: the trained parameters by name, AdamW's moments by position."""

    run_id: str
    epoch: Count
    seconds: NotNegative
    model: dict[str, InstanceOf[Tensor]]
    moments: dict[int, dict[str, InstanceOf[Tensor]]]
    checksum: str


@dataclass(frozen=True)
class Checkpoints:
    """Checkpoint files of one training.

    Attributes:
        folder: Output folder of the run.
        resume_from: Folder of the checkpoint to resume from, usually the same.
        run_id: Hash of configuration and data. The checkpoint of another run is refused.
        classnames, split_hash: Class names and hash of the sampled images, stored with the adapter.
        on_epoch: Callback with the model and the number of epochs, after each `checkpoint_epochs` epochs.
    """

    folder: Path
    resume_from: Path
    run_id: str
    classnames: Sequence[str] = ()
    split_hash: str = ""
    on_epoch: Callable[[HeGraphModel, int], None] | None = None

    @property
    def path_to_resume(self) -> Path:
        """Path of the checkpoint to resume from; the file may be missing."""
        return self.resume_from / CHECKPOINT

    def read(self) -> CheckpointState | None:
        """Read the checkpoint; None without one. UserError if it is damaged or belongs to another run."""
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
            raise UserError(f"{error}; delete it to train from the start") from error
        if state.run_id != self.run_id:
            # The folder may also hold models of the other run, which --load-epoch would take for those of this run
            problem = f"{path} belongs to a run with other settings or data"
            if self.resume_from != self.folder:
                raise UserError(f"{problem}; leave out --resume")
            raise UserError(f"{problem}; choose another --output-dir, or delete {self.folder}", OTHER_RUN)
        return state

    def load(self, model: HeGraphModel, optimizer: AdamW) -> tuple[int, float] | None:
        """Load model and optimizer in place.

        Returns:
            Number of finished epochs and their time in seconds; None without a checkpoint.

        Raises:
            UserError: As `read`, or if the tensors do not fit the model, as those of another version.
        """
        if (state := self.read()) is None:
            return None
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        expected = {n: {"step": torch.tensor(0.0), "exp_avg": p, "exp_avg_sq": p} for n, p in enumerate(parameters)}
        # torch accepts moments of any shape, and reads beyond their end in the next step
        fits = all(_shapes(moments) == _shapes(expected.get(n, {})) for n, moments in state.moments.items())
        if not fits or _shapes(state.model) != _shapes(model.state_dict()):
            path = self.path_to_resume
            raise UserError(f"the tensors of {path} do not fit this model; delete it to train from the start")
        model.load_state_dict(state.model)
        optimizer.load_state_dict(optimizer.state_dict() | {"state": state.moments})
        return state.epoch, state.seconds

    def save(self, model: HeGraphModel, optimizer: AdamW, epoch: int, seconds: float) -> None:
        """Write the state after `epoch` epochs and `seconds` of training, atomically."""
        state: dict[str, Any] = {"run_id": self.run_id, "epoch": epoch, "seconds": seconds}
        state |= {"model": model.state_dict(), "moments": optimizer.state_dict()["state"]}
        content = io.BytesIO()  # torch.save would raise RuntimeError on a full disk
        torch.save(state | {"checksum": _checksum(state)}, content)
        with atomic_path(self.folder / CHECKPOINT) as temporary:
            temporary.write_bytes(content.getvalue())

    def save_adapter(self, model: HeGraphModel) -> None:
        """Write the trained parameters, for inspection. Predictions use the model folder."""
        names = list(self.classnames)
        metadata = {"variant": model.options.variant, "split_hash": self.split_hash, "classnames": names}
        write_tensors(self.folder / ADAPTER, model.state_dict(), {"adapter": json.dumps(metadata, ensure_ascii=False)})

    def remove(self) -> None:
        """Remove the checkpoint of a finished training."""
        (self.folder / CHECKPOINT).unlink(missing_ok=True)


def _checksum(state: Mapping[str, Any]) -> str:
    """Hash of a checkpoint without the checksum itself."""
    return hash_content({key: value for key, value in state.items() if key != "checksum"})


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple]:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}


@dataclass(frozen=True)
class TrainingSummary:
    """Epochs, steps and wall time in seconds of a training, including the parts before it was resumed."""

    epochs: int = 0
    steps: int = 0
    seconds: float = 0.0


@dataclass(eq=False)
class AdapterTraining:
    """State of a training, which `start` creates. The runner has the loop over epochs.

    Attributes:
        model: Adapter, trained in place.
        data: Training batches.
        options: Options of the training.
        checkpoints: Checkpoint files; None writes no checkpoints.
        optimizer: AdamW over the parameters of the model.
        peak_rate: Highest learning rate of the biases.
        peak_rates: Highest learning rate of each parameter group of the optimizer.
        noise: Random generator of the noise in this epoch.
        epochs: Number of epochs of the whole training.
        epoch: Number of finished epochs.
        seconds_before: Time of the epochs before the training was resumed.
        started, last_saved: Times of the start and of the last checkpoint, by `time.monotonic`.
    """

    model: HeGraphModel
    data: TrainingData
    options: TrainingOptions
    checkpoints: Checkpoints | None
    optimizer: AdamW
    peak_rate: float
    peak_rates: Sequence[float]
    noise: torch.Generator
    epochs: int
    epoch: int = 0
    seconds_before: float = 0.0
    started: float = field(default_factory=time.monotonic)
    last_saved: float = field(default_factory=time.monotonic)

    @classmethod
    def start(
        cls, model: HeGraphModel, data: TrainingData, options: TrainingOptions, checkpoints: Checkpoints | None = None
    ) -> "AdapterTraining":
        """Start a training, or resume it from its checkpoint if there is one.

        Raises:
            UserError: If the checkpoint is damaged, belongs to another run, or does not fit the model.
        """
        rate = peak_learning_rate(model, options)
        groups = model.parameter_groups(rate, options.weight_lr_mult, options.visual_lr)
        optimizer = AdamW(groups, weight_decay=options.weight_decay, fused=True)
        epochs = max(options.epochs, math.ceil(options.min_steps / data.steps_per_epoch))
        training = cls(
            model,
            data,
            options,
            checkpoints,
            optimizer,
            peak_rate=rate,
            peak_rates=[group["lr"] for group in optimizer.param_groups],
            noise=epoch_generator(data.seed, 0, NOISE_STREAM),
            epochs=epochs,
        )
        training.resume()
        return training

    def resume(self) -> None:
        """Resume from the checkpoint, if there is one; errors as in `start`."""
        if self.checkpoints is not None and (state := self.checkpoints.load(self.model, self.optimizer)) is not None:
            self.epoch, self.seconds_before = state
            path = self.checkpoints.path_to_resume
            logger.info("resuming from %s after epoch %d of %d", path, self.epoch, self.epochs)

    @property
    def summary(self) -> TrainingSummary:
        """Epochs, steps and time so far."""
        seconds = self.seconds_before + time.monotonic() - self.started
        return TrainingSummary(self.epoch, self.epoch * self.data.steps_per_epoch, seconds)

    @property
    def learning_rate(self) -> float:
        """Learning rate of the biases in this epoch."""
        return self._rate(self.peak_rate)

    def begin_epoch(self) -> None:
        """Set the learning rates of the epoch, and seed its noise."""
        self.seed_noise()
        for group, peak in zip(self.optimizer.param_groups, self.peak_rates):
            group["lr"] = self._rate(peak)

    def seed_noise(self) -> None:
        """Seed the noise of this epoch."""
        self.noise = epoch_generator(self.data.seed, self.epoch, NOISE_STREAM)

    def step(self, batch: Batch) -> Tensor:
        """Take one optimizer step; returns the loss as a tensor on the device."""
        loss = self.loss(self.logits(batch), batch.labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def logits(self, batch: Batch) -> Logits:
        """Return the logits of a batch, `[B, K]` each, with noise and without the cache keys of its images."""
        own = batch.positions if self.options.leave_one_out else None
        noisy = self.model.with_noise(batch.features, self.noise)
        return self.model(batch.features, own, batch.products, noisy)

    def loss(self, logits: Logits, labels: Tensor) -> Tensor:
        """Return the loss of a batch (`adapter_loss`)."""
        return adapter_loss(logits, labels, self.options.visual_weight, self.options.visual_scale)

    def end_epoch(self, loss: Tensor) -> None:
        """Count the epoch and write a checkpoint if one is due. UserError if the last loss is not finite."""
        self.epoch += 1
        if not loss.isfinite():
            rate = self.options.learning_rate
            raise UserError(f"the loss is {loss.item()} in epoch {self.epoch}; lower OPTIM.LR ({rate})")
        if self.checkpoints is None:
            return
        every = self.options.checkpoint_epochs
        due = self.epoch % every == 0 if every else time.monotonic() - self.last_saved > CHECKPOINT_SECONDS
        if every and due and self.checkpoints.on_epoch is not None:
            self.checkpoints.on_epoch(self.model, self.epoch)
        if due and self.epoch < self.epochs:
            self.checkpoints.save(self.model, self.optimizer, self.epoch, self.summary.seconds)
            self.last_saved = time.monotonic()

    def _rate(self, peak: float) -> float:
        options = self.options
        return learning_rate(self.epoch, self.epochs, peak, options.warmup_epochs, options.warmup_lr)


def train_to_end(training: AdapterTraining) -> TrainingSummary:
    """Train an adapter in place to the last epoch. UserError if a loss is not finite."""
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


def peak_learning_rate(model: HeGraphModel, options: TrainingOptions) -> float:
    """Highest learning rate of the biases: OPTIM.LR, scaled by the width, by `tau` and for weak text.

    Whether text is weak is measured by `text_score` on the cached images.
    """
    rate = options.learning_rate
    if options.lr_width:  # AdamW moves each entry by about the rate, and a unit vector by about `rate * sqrt(d)`
        rate = rate * math.sqrt(options.lr_width / model.x_positive.shape[1])
    if options.lr_tau:  # logits change `tau` times as much as class features
        rate = rate * options.lr_tau / model.logit_scale
    factor = options.weak_text_lr_mult
    if factor != 1:
        text = text_score(model.cache_keys, model.cache_labels, model.x_positive, model.logit_scale)
        if text < WEAK_TEXT:
            rate = rate * factor
            logger.info("weak text (McFadden's R^2 %.2f below %g): OPTIM.LR times %g", text, WEAK_TEXT, factor)
    return rate


def learning_rate(epoch: int, epochs: int, peak: float, warmup_epochs: int, warmup_rate: float) -> float:
    """Learning rate of an epoch, counted from 0, in Dassl's cosine schedule with constant warm-up.

    The cosine starts after the warm-up and has the length of the whole training, so that it does not reach zero.
    `warmup_epochs` of 0 or less means no warm-up.
    """
    warmup_epochs = max(warmup_epochs, 0)
    if epoch < warmup_epochs:
        return warmup_rate
    return 0.5 * peak * (1 + math.cos(math.pi * (epoch - warmup_epochs) / epochs))


@torch.no_grad()
def text_score(features: Tensor, labels: Tensor, text: Tensor, logit_scale: float) -> float:
    """McFadden's R^2 of zero-shot CLIP, which measures how well text predicts the classes of images.

        R^2 = 1 - NLL / log K

    McFadden, "Conditional logit analysis of qualitative choice behavior", 1974. The NLL is the mean over the images at
    the best of `INVERSE_TEMPERATURES`. The result is 1 for confident correct predictions, 0 for uniform ones, and
    negative for confident wrong ones.

    Args:
        features: Unit-norm image features, shape `[N, d]`.
        labels: Classes of the images, shape `[N]`.
        text: Unit-norm text features of at least two classes, shape `[K, d]`.
        logit_scale: CLIP's `tau`.
    """
    sums = torch.zeros(len(INVERSE_TEMPERATURES), device=features.device)
    for batch, true in zip(features.split(QUERY_BATCH), labels.split(QUERY_BATCH)):
        sums += nll_at_temperatures(text_logits(batch, text, logit_scale), true)
    return 1 - sums.min().item() / (len(features) * math.log(len(text)))
