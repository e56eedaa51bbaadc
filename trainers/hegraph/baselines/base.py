"""Base class of the methods that HeGraphAdapter is compared with.

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

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch.nn.functional as F
from torch import Tensor

from ..datasets.registry import canonical_name
from ..features.bank import FeatureBank
from ..method.cache import FoldedClassifier, text_logits
from ..method.training.confidence import Calibration
from ..utils.errors import UserError
from ..utils.option import describe_shots, values_up_to

if TYPE_CHECKING:  # open_clip takes seconds to import, and most methods do not need it
    from ..features.backbones.clip import Backbone

Transfer = Callable[[FeatureBank], Tensor]
Defaults = Mapping[str, Any]  # option name -> a bool, a number, a string or a list of these
Options = Any  # options of a run: a frozen dataclass with one field for each key of `Method.defaults`
EPSILON = 1e-12  # smallest value of an option that must be positive; lower bound of divisors and logarithms


@dataclass(frozen=True)
class FittedMethod:
    """Classifier that `Method.fit` returns, with the values that a run records about its training.

    Only HeGraphAdapter sets the attributes from `variant` to `class_nodes`.

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
        seconds: Time of fitting.
        calibration: Temperature of the logits.
        thresholds: Least logit with which a class is predicted, shape `[K]`, with several labels per image; None if the
            method chooses none.
        transductive: Whether the method is transductive: `logits` takes all test images at once, and each prediction
            depends on all of them.
        adaptation: Record entries about the unlabelled images that the method was adapted to.
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
    seconds: float = 0.0
    calibration: Calibration = field(default_factory=Calibration)
    thresholds: Tensor | None = None
    transductive: bool = False
    adaptation: dict = field(default_factory=dict)

    @property
    def text_classifier(self) -> FoldedClassifier | None:
        """HeGraphAdapter's classifier without its cache, for other domains: the cache fits the training images."""
        return self.classifier.text_only() if self.classifier is not None and self.variant else None


class Method(ABC):
    """Few-shot classification method.

    Attributes:
        defaults: Options and their default values, which become keys below `TRAINER.<NAME IN CAPITALS>`.
        needs_backbone: Whether `fit` needs the frozen CLIP model, so that the method cannot run on a feature bank.
        needs_base: Whether the method corrects the predictions of another method, its option `BASE`; see
            `transductive.py`.
        trainer_of_coop: Whether CoOp registers a trainer of this name in Dassl, so that this one runs without Dassl
            only.
        not_saved: Reason why a run saves no model folder; "" if it saves one, from `FittedMethod.classifier`.
        transfers: Whether `fit` returns a `transfer`, so that the method can be tested on other classes.
    """

    defaults: ClassVar[Defaults]
    needs_backbone: ClassVar[bool] = False
    needs_base: ClassVar[bool] = False
    trainer_of_coop: ClassVar[bool] = False
    not_saved: ClassVar[str] = ""
    transfers: ClassVar[bool] = False

    @property
    def name(self) -> str:
        """Value of `--trainer`: the name of the class."""
        return type(self).__name__

    @abstractmethod
    def fit(self, bank: FeatureBank, options: Options, seed: int, backbone: "Backbone | None" = None) -> FittedMethod:
        """Fit the method to a few-shot task.

        Args:
            bank: Training images, val images if the task has any, and text features, but no test images. It is not
                modified.
            options: Values of the keys of `defaults` in this run.
            seed: Seed of every random choice.
            backbone: The frozen CLIP model, if `needs_backbone`.

        Raises:
            UserError: If an option is out of range, or the training diverges.
        """


def zero_shot_transfer(bank: FeatureBank) -> Tensor:
    """Return the logits of zero-shot CLIP for the test images of a bank."""
    return text_logits(bank.features_to_classify, bank.text_positive, bank.logit_scale)


def cosine_classifier(class_features: Tensor, logit_scale: float) -> FoldedClassifier:
    """Return the classifier `tau * cos(f, x_k)` for class features `x_k` of any norm, shape `[K, d]`."""
    return FoldedClassifier(logit_scale * F.normalize(class_features, dim=-1))


def by_dataset(default: Any, **values: Any) -> list[list]:
    """Return the rows `[data set, value]` of an option; the row of the data set "" holds the default."""
    return [["", default], *([name, value] for name, value in values.items())]


def value_for_task(
    options: Options, key: str, bank: FeatureBank, minimum: float = EPSILON, maximum: float = math.inf, length: int = 0
) -> Any:
    """Return the value of an option for a task: a number, or a list of `length` numbers where a length is given.

    The option is a number, or a list of rows of one of two kinds:

    - `[data set, value]`: the row of the task's data set applies, else the row of the data set "".
    - `[shots, value]`: of the rows with at most as many shots as the task, the one with the most shots applies. The
      shots of a task are the training images of its largest class.

    Raises:
        UserError: If no row applies, or the value has another form, or is out of range, by default not positive.
    """
    rows = value = getattr(options, key)
    shots, dataset = int(bank.train_labels.bincount().max()), canonical_name(bank.dataset)
    if isinstance(rows, (list, tuple)):
        try:
            if all(isinstance(first, str) for first, _ in rows):
                values = {canonical_name(name): value for name, value in rows}
                value = values[dataset if dataset in values else ""]
            else:
                value = values_up_to(rows, shots)[-1]
        except (IndexError, KeyError, TypeError, ValueError):
            form = "rows [data set, value] or [from this many shots, value]"
            problem = f"must have {form}, one of them for {bank.dataset!r} or {describe_shots(shots)}"
            raise UserError(f"{key} {problem}, got {rows}") from None
    name = f"the value of {key} for {bank.dataset!r} or {describe_shots(shots)}"
    if length:
        check_numbers(name, value, minimum, maximum, length)
    else:
        check_number(name, value, minimum, maximum)
    return value


def check_number(
    name: str, value: Any, minimum: float = EPSILON, maximum: float = math.inf, integer: bool = False
) -> None:
    """Raise UserError unless an option is a number in a range, by default a positive number."""
    if not (isinstance(value, int if integer else (int, float)) and minimum <= value <= maximum):
        limits = f"of at least {minimum:g}" if maximum == math.inf else f"from {minimum:g} to {maximum:g}"
        raise UserError(f"{name} must be a {'whole ' if integer else ''}number {limits}, got {value}")


def check_numbers(
    name: str, values: Any, minimum: float = EPSILON, maximum: float = math.inf, length: int = 0, integer: bool = False
) -> None:
    """Raise UserError unless an option is a list of numbers in a range: `length` numbers, or one or more if it is 0."""
    if not isinstance(values, (list, tuple)) or len(values) != (length or max(len(values), 1)):
        raise UserError(f"{name} must be a list of {length or 'one or more'} numbers, got {values}")
    for value in values:
        check_number(f"every number of {name}", value, minimum, maximum, integer)
