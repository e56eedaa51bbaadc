"""What a method is: the contract that every method HeGraphAdapter is compared with keeps.

A method is one file of this folder with one class, whose name is what `--trainer` says. The file opens with the paper,
the equation and the distance from the original; `METHODS` in `__init__.py` has a row for it.

Shapes: N training images, V augmented views of each, K classes, d feature width, B images of a batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch.nn.functional as F
from torch import Tensor
from yacs.config import CfgNode

from ..features.bank import FeatureBank
from ..method.cache import FoldedClassifier

if TYPE_CHECKING:  # open_clip takes seconds to import, and most methods do not need it
    from ..backbones.clip import Backbone

Defaults = Mapping[str, Any]  # option -> a bool, a number, a string or a list of such


@dataclass(frozen=True)
class FittedMethod:
    """A method after it has been fitted to a few-shot task.

    Attributes:
        logits: Maps unit-norm image features `[B, d]` to logits `[B, K]`.
        num_parameters: Number of trained parameters.
        epochs, steps: How long it was trained; 0 for a method that trains nothing.
        selected: What was chosen on the few-shot val split, for the record:
            name -> {"value": ..., "candidates": [[value, accuracy in percent], ...]}.
        transfer: Maps a bank of other classes, which has no training images, to the logits of its test images. None if
            the method has no rule for classes that it was not fitted to.
        classifier: The method folded into class weights and a cache, which is what a run saves. Its logits are those of
            `logits` but for rounding. None if the method has another form; `Method.not_saved` then says which.
        transfer_rule: "zero-shot" if a saved model reaches other classes as zero-shot CLIP does; "none" if it does not.
    """

    logits: Callable[[Tensor], Tensor]
    num_parameters: int = 0
    epochs: int = 0
    steps: int = 0
    selected: dict = field(default_factory=dict)
    transfer: Callable[[FeatureBank], Tensor] | None = None
    classifier: FoldedClassifier | None = None
    transfer_rule: str = "none"


def cosine_classifier(class_features: Tensor, logit_scale: float) -> FoldedClassifier:
    """`heads.text_logits`, which is `tau * cos(f, x_k)`, folded into class weights.

    Args:
        class_features: Text features `x_k` of any norm, shape `[K, d]`.
        logit_scale: CLIP's `tau`.
    """
    return FoldedClassifier(logit_scale * F.normalize(class_features, dim=-1))


class Method(ABC):
    """A way to classify images after seeing a few of each class.

    Attributes:
        defaults: The options with their values; they become `cfg.TRAINER.<NAME IN CAPITALS>`.
        needs_backbone: Whether `fit` needs the frozen CLIP itself and not only its features, so that the method runs
            on images but not on a feature bank.
        trainer_of_coop: Whether CoOp's checkout has a trainer of this name. Dassl then keeps that one, and ours runs
            without Dassl only.
        not_saved: Why a run of the method leaves no model folder; "" if it leaves one, because `fit` returns a
            `classifier`.
    """

    defaults: ClassVar[Defaults]
    needs_backbone: ClassVar[bool] = False
    trainer_of_coop: ClassVar[bool] = False
    not_saved: ClassVar[str] = ""

    @property
    def name(self) -> str:
        """What `--trainer` says: the name of the class."""
        return type(self).__name__

    @abstractmethod
    def fit(self, bank: FeatureBank, options: CfgNode, seed: int, backbone: Backbone | None = None) -> FittedMethod:
        """Fits the method to a few-shot task.

        Args:
            bank: Training images, val images if there are any, and text features; it is not changed. It holds no test
                images, so that no method can see what it is tested on.
            options: The keys of `defaults`, with the values of this run.
            seed: Decides everything that is drawn at random.
            backbone: The frozen CLIP that made the features; given if `needs_backbone`.

        Raises:
            UserError: If an option is out of range, or the training diverges.
        """
