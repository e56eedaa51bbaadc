"""What a run's method says about the test images, whichever method it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from ..features.bank import FeatureBank
from ..method.cache import FoldedClassifier
from ..method.transfer import TransferableAdapter
from ..training.confidence import Calibration
from ..training.loop import TrainingSummary


@dataclass(frozen=True)
class Outcome:
    """The result of one method on one task.

    Attributes:
        logits: Logits of the prediction on test, shape `[M, K]`; None without test images.
        labels: Labels of the test images, shape `[M]`; None without test images.
        text_logits: Logits of the text classifier alone, shape `[M, K]`, if the method has one.
        training: How long training took.
        num_parameters: How many parameters were trained.
        variant: HeGraphAdapter's variant; "" for another method.
        selected: What was chosen on the few-shot val split, with the accuracy of every candidate there.
        classify: Image features `[B, d]` to the logits `[B, K]` that are used in other domains. For HeGraphAdapter
            these are those of the text classifier alone, since the cache has learned the style of its images.
        transfer: A bank of other classes to the logits of its test images; None if the method has no rule for that.
        text_nodes: HeGraphAdapter's positive text nodes before and after message passing, each `[K, d]` of unit norm.
        classifier: The method, folded into class weights and a cache; None if it does not fold.
        transferable: What HeGraphAdapter carries to other classes.
        transfer_rule: How a saved model reaches other classes: "adapter", "zero-shot" or "none".
        calibration: The temperature of the logits, and what it was fitted on.
        class_nodes: HeGraphAdapter's visual nodes in the whitened space, shape `[K, d]`; None without its messages in
            closed form.
    """

    logits: Tensor | None
    labels: Tensor | None
    training: TrainingSummary
    num_parameters: int
    text_logits: Tensor | None = None
    variant: str = ""
    selected: dict = field(default_factory=dict)
    classify: Callable[[Tensor], Tensor] | None = None
    transfer: Callable[[FeatureBank], Tensor] | None = None
    text_nodes: tuple[Tensor, Tensor] | None = None
    classifier: FoldedClassifier | None = None
    transferable: TransferableAdapter | None = None
    transfer_rule: str = "none"
    calibration: Calibration = field(default_factory=Calibration)
    class_nodes: Tensor | None = None
