"""What every method HeGraphAdapter is compared with looks like: one function of the same signature.

A method is a file with `DEFAULTS`, the keys of `cfg.TRAINER.<NAME>` with their values, and

    def fit(bank: FeatureBank, options: CfgNode, seed: int) -> Fitted

where `bank` holds the few-shot training features, perhaps a few-shot val split, and the text features. It holds no test
features: a method cannot see what it is tested on.

Shapes: N training images, V augmented views of each, K classes, d feature width, B images of a batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from ..features import FeatureBank


@dataclass(frozen=True)
class Fitted:
    """A method that has been fitted to a few-shot task.

    Attributes:
        logits: Unit-norm image features `[B, d]` to logits `[B, K]`.
        num_parameters: Trained ones.
        epochs, steps: Of training; 0 for a method without.
        selected: What was chosen on the few-shot val split:
            key -> {"value": ..., "candidates": [[value, accuracy], ...]}.
        transfer: A bank of other classes, without training images, to the logits of its test images; None if the
            method has no rule for classes that it was not fitted to.
    """

    logits: Callable[[Tensor], Tensor]
    num_parameters: int = 0
    epochs: int = 0
    steps: int = 0
    selected: dict = field(default_factory=dict)
    transfer: Callable[[FeatureBank], Tensor] | None = None
