"""What a method is: the contract that every method HeGraphAdapter is compared with keeps.

A method is a class whose name is what `--trainer` says; `METHODS` in `__init__.py` has a row for it. Its docstring, or
its file's, has the paper, the equation and the distance from the original. Methods that train class features derive
from `TrainedClassifier` (`trained.py`), those that add a cache to the text from `CacheMethod` (`caches.py`).

Two distances are not repeated there. Originals that train by epochs augment the images anew in each, and those in Dassl
(CoOp, CLIP-Adapter, TaskRes, GraphAdapter) leave out the last batch if it is not full; here each epoch draws one of the
bank's views of every image, and every batch is a step. Those of GDA, TIMO, ProKeR, Proto-CLIP and the cache methods
choose on the whole val split (on ImageNet: on test); here it is the few-shot one.

Shapes: N training images, V augmented views of each, K classes, d feature width, B images of a batch.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch.nn.functional as F
from torch import Tensor

from ..datasets.registry import canonical_name
from ..features.bank import FeatureBank
from ..method.cache import FoldedClassifier
from ..training.confidence import Calibration
from ..utils.errors import UserError
from ..utils.option import values_up_to

if TYPE_CHECKING:  # open_clip takes seconds to import, and most methods do not need it
    from ..backbones.clip import Backbone

Defaults = Mapping[str, Any]  # option -> a bool, a number, a string or a list of such
Options = Any  # of a run: a frozen dataclass with a field for each key of `defaults`
SMALLEST = 1e-12  # the least value of an option that must be above 0


@dataclass(frozen=True)
class FittedMethod:
    """A method after it has been fitted to a few-shot task; `transferable` to `class_nodes` are HeGraphAdapter's alone.

    Attributes:
        logits: Maps unit-norm image features `[B, d]` to logits `[B, K]`.
        num_parameters: Number of trained parameters.
        epochs, steps: How long it was trained; 0 for a method that trains nothing.
        selected: What was chosen on val: name -> {"value": ..., "candidates": [[value, accuracy in percent], ...]}.
        transfer: Maps a bank of other classes to the logits of its test images; None if there is no rule for them.
        classifier: The same as class weights and a cache, which a run saves; None if `Method.not_saved` says why not.
        transfer_rule: How a saved model reaches other classes: "zero-shot" as CLIP does, "adapter" by `transferable`,
            or "none".
        text_classifier: The classifier without its cache, which has learned the style of the training images.
        text_nodes: Positive text nodes before and after message passing, each `[K, d]` of unit norm.
        state: Trained parameters, by name.
        class_nodes: Visual nodes in the whitened space, shape `[K, d]`; None without closed form.
        together: Whether `logits` takes all test images at once, and says of one what depends on the others.
        heard: The keys with which a record tells of the images without labels that the method has heard.
    """

    logits: Callable[[Tensor], Tensor]
    num_parameters: int = 0
    epochs: int = 0
    steps: int = 0
    selected: dict = field(default_factory=dict)
    transfer: Callable[[FeatureBank], Tensor] | None = None
    classifier: FoldedClassifier | None = None
    transfer_rule: str = "none"
    transferable: Any = None
    text_classifier: FoldedClassifier | None = None
    variant: str = ""
    text_nodes: tuple[Tensor, Tensor] | None = None
    state: Mapping[str, Tensor] = field(default_factory=dict)
    class_nodes: Tensor | None = None
    seconds: float = 0.0
    calibration: Calibration = field(default_factory=Calibration)
    together: bool = False
    heard: dict = field(default_factory=dict)


class Method(ABC):
    """A way to classify images after seeing a few of each class.

    Attributes:
        defaults: The options with their values, which become keys below `TRAINER.<NAME IN CAPITALS>`.
        needs_backbone: Whether `fit` needs the frozen CLIP itself, so that the method does not run on a feature bank.
        needs_base: Whether it corrects the predictions of another method, `BASE`; see `transductive.py`.
        trainer_of_coop: Whether CoOp has a trainer of this name, which Dassl keeps; ours runs without Dassl only.
        not_saved: Why a run leaves no model folder; "" if it leaves one, because `fit` returns a `classifier`.
    """

    defaults: ClassVar[Defaults]
    needs_backbone: ClassVar[bool] = False
    needs_base: ClassVar[bool] = False
    trainer_of_coop: ClassVar[bool] = False
    not_saved: ClassVar[str] = ""

    @property
    def name(self) -> str:
        """What `--trainer` says: the name of the class."""
        return type(self).__name__

    @abstractmethod
    def fit(self, bank: FeatureBank, options: Options, seed: int, backbone: Backbone | None = None) -> FittedMethod:
        """Fits the method to a few-shot task.

        The bank holds training images, val images if there are any, and text features, never test images, and is not
        changed. The options are the keys of `defaults` with the values of this run; `seed` decides everything that is
        drawn at random; the backbone is given if `needs_backbone`. Raises UserError if an option is out of range, or
        the training diverges.
        """


def cosine_classifier(class_features: Tensor, logit_scale: float) -> FoldedClassifier:
    """`tau * cos(f, x_k)` as class weights, from `x_k` of any norm, shape `[K, d]`."""
    return FoldedClassifier(logit_scale * F.normalize(class_features, dim=-1))


def by_dataset(others: Any, **named: Any) -> list[list]:
    """The rows `[data set, value]` of an option: one for each named data set, and "" for all others."""
    return [["", others], *([name, value] for name, value in named.items())]


def value_for_task(options: Options, key: str, bank: FeatureBank) -> Any:
    """The value of an option for a task: of rows, that of the row that fits; UserError if none does.

    Rows are `[data set, value]`, where "" is any data set without a row of its own, or `[from this many shots, value]`,
    of which the last one counts that the class with the most training images reaches. Values are numbers, or lists.
    """
    rows = getattr(options, key)
    if not isinstance(rows, (list, tuple)):
        return rows
    shots = int(bank.train_labels.bincount().max())
    try:
        if all(isinstance(first, str) for first, _ in rows):
            named = {canonical_name(name): value for name, value in rows}
            found = named.get(canonical_name(bank.dataset), named.get(""))
        else:
            found = values_up_to(rows, shots)[-1]
    except (IndexError, TypeError, ValueError):
        found = None
    if not all(isinstance(value, (int, float)) for value in (found if isinstance(found, (list, tuple)) else [found])):
        raise UserError(
            f"{key} must have rows [data set, number] or [from this many shots, number], one of them for "
            f"{bank.dataset!r} or {shots} shots, got {rows}"
        )
    return found


def check_numbers(
    name: str, values: Any, least: float = SMALLEST, most: float = math.inf, count: int = 0, whole: bool = False
) -> None:
    """Raises UserError if an option is no list of numbers in a range, by default above 0, or not of `count` of them."""
    kind = int if whole else (int, float)
    listed = isinstance(values, (list, tuple)) and len(values) == (count or max(len(values), 1))
    if not (listed and all(isinstance(value, kind) and least <= value <= most for value in values)):
        number = f"{count or 'one or more'} {'whole ' if whole else ''}numbers"
        raise UserError(f"{name} must be {number} from {least} to {most}, got {values}")
