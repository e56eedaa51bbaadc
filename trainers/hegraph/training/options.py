"""How an adapter is trained. No configuration tree reaches the training: `config.training_options` makes this of it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TrainingOptions:
    """Options of `AdapterTraining`.

    Attributes:
        learning_rate: Highest learning rate of the biases and of learned meta-path weights, at the feature width
            `lr_width`.
        lr_width: The feature width that `learning_rate` is meant for; 0: it holds at any width. See
            `schedule.rate_at_width`.
        lr_tau: The logit scale that `learning_rate` is meant for; 0: it holds at any scale. See
            `schedule.rate_at_scale`.
        weak_text_lr_mult: Factor on `learning_rate` where text is weak, see `weak_text.py`.
        weight_lr_mult: Learning rate of the matrices `W`, as a multiple of the biases'.
        visual_lr: Learning rate of the visual relation's bias and matrix.
        weight_decay: AdamW's, per unit of learning rate.
        epochs: Passes over the training images.
        min_steps: Steps that are taken at least; further epochs follow where `epochs` have fewer.
        warmup_epochs: Epochs at `warmup_lr`, before the cosine begins.
        warmup_lr: Learning rate of the warm-up.
        leave_one_out: Whether a training image does not match its own key in the cache.
        visual_weight: `lambda`, the weight of the visual loss (Eq. 9).
        visual_scale: Factor on the visual logits inside the visual loss.
        checkpoint_epochs: Epochs between two checkpoints; 0: one whenever `loop.CHECKPOINT_SECONDS` have passed.
        progress_epochs: Epochs between two losses that the progress bar shows.
    """

    learning_rate: float
    lr_width: int = 512
    lr_tau: float = 0.0
    weak_text_lr_mult: float = 1.0
    weight_lr_mult: float = 0.1
    visual_lr: float = 0.02
    weight_decay: float = 0.01
    epochs: int = 15
    min_steps: int = 0
    warmup_epochs: int = 1
    warmup_lr: float = 1e-5
    leave_one_out: bool = True
    visual_weight: float = 1.0
    visual_scale: float = 100.0
    checkpoint_epochs: int = 0
    progress_epochs: int = 5
