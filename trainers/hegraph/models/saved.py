"""A trained model in memory: the classifier, its classes, the backbone, and where it comes from.

Shapes: K classes, N cached images, d feature width.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..method.cache import FoldedClassifier
from ..method.transfer import TransferableAdapter
from ..training.rejection import KnownScores, known_score
from ..utils.errors import UserError
from .schema import Backbone, Preprocessing, Prompts, Scores, TrainedOn


@dataclass(frozen=True)
class SavedModel:
    """All that a model folder holds.

    Attributes:
        classifier: The folded classifier. Divide its logits by `temperature` before a softmax.
        text_positive: Positive text features before training, unit-norm, shape `[K, d]`: zero-shot CLIP's classifier.
        classnames: The K class names in label order.
        class_ids: What tells classes apart across data sets, such as WordNet ids; mostly the names.
        method: Name of the method, as `--trainer` takes it.
        variant: Of HeGraphAdapter; "" for another method.
        logit_scale: CLIP's `tau`.
        temperature: What logits are divided by to become calibrated.
        backbone: The frozen CLIP that made the features.
        preprocessing: How an image becomes its input; None where the model was trained from a feature bank.
        prompts: The sentences of the text nodes; None where the model was trained from a feature bank.
        transfer: What reaches other classes; None where `transfer_rule` is not "adapter".
        transfer_rule: "adapter", "zero-shot" or "none", see `schema.Transfer`.
        trained_on: Data set, images, configuration, versions.
        scores: On the test images of that data set.
        known: How images of known classes score, for `is_known`; None where the run did not find it out.
        class_nodes: HeGraphAdapter's visual nodes in the whitened space, for `training.rejection.metric_scores`, whose
            mean and whitening are those of `transfer.messages`; None without messages in closed form.
        labels: What the user of the Python API called the K classes; None where the class names are the labels.
    """

    classifier: FoldedClassifier
    text_positive: Tensor
    classnames: tuple[str, ...]
    class_ids: tuple[str, ...]
    method: str
    variant: str
    logit_scale: float
    backbone: Backbone
    trained_on: TrainedOn
    scores: Scores
    temperature: float = 1.0
    preprocessing: Preprocessing | None = None
    prompts: Prompts | None = None
    transfer: TransferableAdapter | None = None
    transfer_rule: str = "none"
    labels: tuple[bool | int | float | str, ...] | None = None
    known: KnownScores | None = None
    class_nodes: Tensor | None = None

    def probabilities(self, features: Tensor, batch_size: int = 1024) -> Tensor:
        """Calibrated probabilities of unit-norm image features `[B, d]`, shape `[B, K]`."""
        return self.calibrate(self.classifier.logits(features, batch_size))

    def calibrate(self, logits: Tensor) -> Tensor:
        """Calibrated probabilities of logits `[..., K]`, of the same shape."""
        return (logits / self.temperature).softmax(dim=-1)

    def is_known(self, logits: Tensor, keep: float) -> Tensor:
        """Which images are taken to be of one of the classes, shape `[B]`.

        Args:
            logits: Shape `[B, K]`.
            keep: The share of images of known classes that should be, between 0 and 1.

        Raises:
            UserError: If the model has no scores of known images, or `keep` is no share.
        """
        if not 0 < keep < 1:
            raise UserError(f"keep must lie between 0 and 1, as 0.95, got {keep!r:.80}")
        if self.known is None:
            raise UserError(
                "the model does not know how images of its classes score, so no threshold can be had; train it again, "
                "with TRAINER.HEGRAPHADAPTER.CALIBRATE on and at least four classes, or two images of a class"
            )
        return known_score(logits, self.temperature, self.known.score) >= self.known.threshold(keep)

    def share_below(self, logits: Tensor) -> float | None:
        """The share of images of known classes that score lower than an image, from 0 to 1.

        Args:
            logits: Of the image, shape `[K]`.

        Returns:
            None if the model has no scores of known images.
        """
        if self.known is None:
            return None
        return self.known.share_below(known_score(logits[None], self.temperature, self.known.score).item())

    def zero_shot_logits(self, features: Tensor) -> Tensor:
        """Logits of zero-shot CLIP with the same prompts, shape `[B, K]`."""
        return self.logit_scale * features @ self.text_positive.t()
