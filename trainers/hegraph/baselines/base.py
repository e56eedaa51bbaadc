"""Base class of the methods: HeGraphAdapter, and those that it is compared with.

Each subclass of `Method` implements one published method. Its class name is the value of `--trainer`, and a registry in
`__init__.py` lists it. The docstring of the class, or of its module, cites the paper, states the equation and lists the
differences from the original. Methods that train class features derive from `TrainedClassifier` (`trained.py`), methods
that add a cache to the text logits from `CacheMethod` (`caches.py`).

Two differences hold for all methods and are not repeated:

- Originals that train by epochs augment the images in every epoch, and those built on Dassl (CoOp, CLIP-Adapter,
  TaskRes, GraphAdapter) drop the last incomplete batch. Here an epoch samples one of the bank's views of every image,
  and no batch is dropped.
- The originals of GDA, TIMO, ProKeR, Proto-CLIP and the cache methods tune hyperparameters on the whole val split (on
  ImageNet: on test). Here they use the few-shot val split.

Shapes: N training images, V augmented views of each, K classes, d feature width, B images of a batch.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Generic, TypeVar

import torch.nn.functional as F
from torch import Tensor

from ..features.bank import FeatureBank, count_labels, mean_count
from ..method.cache import FoldedClassifier, text_logits
from ..method.head.trust import TrustedText
from ..method.training.confidence import Calibration

if TYPE_CHECKING:  # open_clip takes seconds to import, and most methods do not need it
    from ..config import Config
    from ..features.backbones.base import Backbone

logger = logging.getLogger(__name__)

Transfer = Callable[[FeatureBank], Tensor]
OptionsT = TypeVar("OptionsT")  # dataclass of the options of a method
EPSILON = 1e-12  # lower bound of divisors and logarithms


@dataclass(frozen=True)
class FittedMethod:
    """Result of `Method.fit`: functions that predict, and the values that a run records about the training.

    `experiments.record.make_model` makes a `TrainedModel` of it. Only HeGraphAdapter sets the attributes from `variant`
    to `trusted`.

    Attributes:
        logits: Function from unit-norm image features `[B, d]` to logits `[B, K]`.
        num_parameters: Number of trained parameters.
        epochs, steps: Number of training epochs and steps; 0 for a training-free method.
        selected: Hyperparameters selected on val, name -> {"value": ..., "candidates": [[value, accuracy in percent],
            ...]}.
        transfer: Function from a bank with other classes to the logits of its test images; None if the method has no
            rule for unseen classes. A model folder stores a `TransferableAdapter` or `zero_shot_transfer`.
        classifier: `logits` as class weights and a cache, which a run saves; None if `Method.not_saved` gives a reason.
        variant: Variant of HeGraphAdapter; "" for another method.
        text_nodes: Positive text nodes before and after message passing, each `[K, d]` of unit norm.
        state: Trained parameters by name.
        class_nodes: Visual class nodes in the whitened space, shape `[K, d]`; None without the closed-form head.
        trusted: Text of the classes after `method/head/trust.py`; None without trust in text.
        seconds: Time of fitting, with earlier parts of a resumed training; 0: `experiments.fitting.fit` measures it.
        calibration: Temperature of the logits.
        thresholds: Least logit with which a class is predicted, shape `[K]`, with several labels per image; None if the
            method chooses none.
        transductive: Whether the method is transductive: `logits` takes all test images at once, and each prediction
            depends on all of them.
    """

    logits: Callable[[Tensor], Tensor]
    num_parameters: int = 0
    epochs: int = 0
    steps: int = 0
    selected: dict = field(default_factory=dict)
    transfer: Transfer | None = None
    classifier: FoldedClassifier | None = None
    variant: str = ""
    text_nodes: tuple[Tensor, Tensor] | None = None
    state: Mapping[str, Tensor] = field(default_factory=dict)
    class_nodes: Tensor | None = None
    trusted: TrustedText | None = None
    seconds: float = 0.0
    calibration: Calibration = field(default_factory=Calibration)
    thresholds: Tensor | None = None
    transductive: bool = False


@dataclass(frozen=True)
class NoOptions:
    """Options of a method without any."""


class Method(ABC, Generic[OptionsT]):
    """Few-shot classification method.

    Attributes:
        options: Dataclass of the options, whose keys are below `TRAINER.<NAME IN CAPITALS>`.
        needs_backbone: Whether `fit` needs the frozen CLIP model, so that the method cannot run on a feature bank.
        needs_text: Whether the method uses the text of the classes, so that it cannot run without.
        needs_base: Whether the method corrects the predictions of another method, its option `BASE`; see
            `transductive.py`.
        trainer_of_coop: Whether CoOp registers a trainer of this name in Dassl, so that this one runs without Dassl
            only.
        not_saved: Reason why a run saves no model folder; "" if it saves one, from `FittedMethod.classifier`.
        transfers: Whether `fit` returns a `transfer`, so that the method can be tested on other classes.
        needs_batches: Whether `fit` takes training batches, checkpoints and parameters to start from; see
            `hegraph.py`.
        selects_on_val: Whether the method selects the values of SELECT on val images, with `--select val`.
        stores_support_set: Whether a model folder stores the training images' features, for incremental training.
    """

    options: ClassVar[type] = NoOptions
    needs_backbone: ClassVar[bool] = False
    needs_text: ClassVar[bool] = True
    needs_base: ClassVar[bool] = False
    trainer_of_coop: ClassVar[bool] = False
    not_saved: ClassVar[str] = ""
    transfers: ClassVar[bool] = False
    needs_batches: ClassVar[bool] = False
    selects_on_val: ClassVar[bool] = False
    stores_support_set: ClassVar[bool] = False

    @property
    def name(self) -> str:
        """Value of `--trainer`: the name of the class."""
        return type(self).__name__

    def options_for(self, cfg: "Config", bank: FeatureBank) -> OptionsT:
        """Return the options of this method for a task, an argument of `fit`."""
        return cfg.method_for(bank.dataset, shots_of(bank))

    def stores_key(self, key: str) -> bool:
        """Whether a configuration key belongs to a trained model, so that a test cannot change it."""
        return key.startswith(f"TRAINER.{self.name.upper()}.")

    @abstractmethod
    def fit(self, bank: FeatureBank, options: OptionsT, seed: int, backbone: "Backbone | None" = None) -> FittedMethod:
        """Fit the method to a few-shot task.

        Args:
            bank: Training images, val images if the task has any, and text features, but no test images. It is not
                modified.
            options: Options for this task, an object of the dataclass `Method.options`.
            seed: Seed of every random choice.
            backbone: The frozen CLIP model, if `needs_backbone`.

        Raises:
            UserError: If an option does not fit the task, or the training diverges.
        """


def shots_of(bank: FeatureBank) -> int:
    """Return the number of shots of a task for `rows_for`: the rounded mean number of images of the classes."""
    return mean_count(count_labels(bank.train_labels, len(bank.text_positive)))


def groups_to_leave_out(bank: FeatureBank) -> Tensor | None:
    """Groups of the training images, `[N]`; None without groups, and with a warning if all are of one group."""
    groups = bank.train_groups
    if groups is None or len(groups.unique()) > 1:
        return groups
    logger.warning("all training images are of one group, so thresholds and probabilities leave out single images")
    return None


def zero_shot_transfer(bank: FeatureBank) -> Tensor:
    """Return the logits of zero-shot CLIP for the test images of a bank."""
    return text_logits(bank.features_to_classify, bank.text_positive, bank.logit_scale)


def cosine_classifier(class_features: Tensor, logit_scale: float) -> FoldedClassifier:
    """Return the classifier `tau * cos(f, x_k)` for class features `x_k` of any norm, shape `[K, d]`."""
    return FoldedClassifier(logit_scale * F.normalize(class_features, dim=-1))
