"""A trained model: what `config.json` of its folder says, and beside it the tensors. It may hear images without labels.

The declarations check all that a folder says before any of it is used.

Shapes: K classes, d feature width, B images of a batch, M unlabelled images.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import ConfigDict, Field, InstanceOf, model_validator
from torch import Tensor

from ..datasets.splits import images_per_class
from ..method.cache import FoldedClassifier
from ..method.model import TransferableAdapter
from ..method.unlabelled import ClassSums, UnlabelledAdaptation, adapt_to_unlabelled
from ..training.confidence import KnownScores, known_score
from ..training.memory import refuse_beyond_memory
from ..utils.errors import UserError
from ..utils.reading import Count, Finite, Name, Percent, Positive, Share, Size, StrictModel, validate
from .support_set import SupportSet

if TYPE_CHECKING:
    from ..backbones.clip import Backbone as FrozenCLIP

logger = logging.getLogger(__name__)

Three = Field(min_length=3, max_length=3)
COPIES = 4  # of the logits of all unlabelled images, in float32, that hearing them holds at once


class Backbone(StrictModel):
    """The frozen CLIP that made the features.

    Attributes:
        title: The model and its weights, for people.
        model, pretrained, precision: As `load_backbone` takes them; "" where the model was trained from a feature
            bank that does not say how it was encoded.
        fingerprint: Plain values that change whenever the features would; {} where it is not known.
    """

    title: str
    model: str = ""
    pretrained: str = ""
    precision: Annotated[str, Field(pattern="^(fp32|bf16|fp16|amp)$")] = "fp32"
    fingerprint: dict[str, str] = Field(default={})

    @classmethod
    def of(cls, backbone: FrozenCLIP, model: str, pretrained: str) -> Backbone:
        """That of a backbone that `load_backbone` has loaded by these two."""
        return cls(
            title=backbone.name, model=model, pretrained=pretrained, precision=backbone.precision,
            fingerprint=backbone.fingerprint,
        )  # fmt: skip

    def compare_precision(self, here: str) -> None:
        """Says where features were encoded in another precision than those that the model was trained on."""
        if self.model and here != self.precision:
            logger.warning("the model was trained on features in %s, and these are in %s", self.precision, here)


class Preprocessing(StrictModel):
    """How an image becomes the backbone's input: height and width in pixels, mean and deviation of each channel, and in
    `transform` the whole of it in words.
    """

    size: Annotated[list[Size], Field(min_length=2, max_length=2)]
    mean: Annotated[list[Finite], Three]
    std: Annotated[list[Positive], Three]
    transform: str

    @classmethod
    def of(cls, backbone: FrozenCLIP) -> Preprocessing:
        """The preprocessing of a loaded backbone."""
        size, transform = list(backbone.input_size), backbone.fingerprint["preprocess"]
        return cls(size=size, mean=list(backbone.mean), std=list(backbone.std), transform=transform)


class Prompts(StrictModel):
    """The sentences that the text nodes were made of: the positive ones by group and class, the negative ones by class.
    The sentences of a class in a group are averaged first, then the groups.
    """

    positive: list[list[list[str]]]
    negative: list[list[str]]


class TrainedOn(StrictModel):
    """Where the model comes from."""

    dataset: str
    shots: int
    seed: Count
    num_train: Count
    split_hash: str
    selected_on: str
    selected: dict[str, Any]
    config: dict[str, Any]
    host: str
    git_commit: str | None
    versions: dict[str, str]


class Scores(StrictModel):
    """Percent on the test images; None where there were none. `ece` is the expected calibration error of probabilities,
    `text` HeGraphAdapter's text classifier without the cache, `zero_shot` CLIP as it comes.
    """

    accuracy: Percent | None
    accuracy_text: Percent | None
    accuracy_zero_shot: Percent | None
    macro_f1: Percent | None
    num_test: Count
    ece: Percent | None = None
    ece_zero_shot: Percent | None = None


NOT_TESTED = Scores(accuracy=None, accuracy_text=None, accuracy_zero_shot=None, macro_f1=None, num_test=0)


class ModelMetadata(StrictModel):
    """What a model says of itself, in its folder and in memory.

    Attributes:
        method: Name of the method, as `--trainer` takes it.
        variant: Of HeGraphAdapter; "" for another method.
        classnames: The K class names in label order.
        class_ids: What tells classes apart across data sets, such as WordNet ids; mostly the names.
        logit_scale: CLIP's `tau`.
        temperature: What logits are divided by to become calibrated.
        preprocessing, prompts: None where the model was trained from a feature bank.
        scores: On the test images of `trained_on`.
        labels: What the user of the Python API called the K classes; None where the class names are the labels.
        known: How images of known classes score, for `is_known`; None where the run did not find it out.
        unlabelled: How many images without labels the classifier has heard (`method/unlabelled.py`).
        images: How many labelled images of each class it was trained on; None where that is not known.
        image_ids: `Lessons.ids`; None where the images came as features.
    """

    method: str
    variant: str
    classnames: Annotated[tuple[Name, ...], Field(min_length=1)]
    class_ids: tuple[Name, ...]
    logit_scale: Positive
    temperature: Positive = 1.0
    backbone: Backbone
    preprocessing: Preprocessing | None = None
    prompts: Prompts | None = None
    trained_on: TrainedOn
    scores: Scores
    labels: tuple[bool | int | float | str, ...] | None = None
    known: KnownScores | None = None
    unlabelled: Count = 0
    images: tuple[Count, ...] | None = None
    image_ids: tuple[int, ...] | None = None

    @model_validator(mode="after")
    def one_of_each_class(self) -> ModelMetadata:
        """Every class has one id, one label, one number of images and one entry in each group of prompts; no two
        classes have the same id or label.
        """
        classes, prompts = len(self.classnames), self.prompts
        for name in ("class_ids", "labels", "images"):
            values = getattr(self, name)
            if values is not None and len(values) != classes:
                raise ValueError(f"{len(values)} {name} for {classes} classnames")
            if values is not None and name != "images" and len(set(values)) < classes:
                raise ValueError(f"{name} must be different ones")
        if prompts is not None and {len(group) for group in (*prompts.positive, prompts.negative)} != {classes}:
            raise ValueError(f"prompts must have sentences for each of the {classes} classes in every group")
        return self

    @property
    def named_only(self) -> tuple[str, ...]:
        """Names of the classes that have no image beside classes that have some: they are known by their text alone."""
        images = self.images or ()
        return tuple(name for name, count in zip(self.classnames, images) if not count) if any(images) else ()

    @property
    def sample(self) -> str:
        """The labelled images in words."""
        shots = self.trained_on.shots
        if found := images_per_class(shots, self.images):
            return f"{shots} shots{found}"
        return {-1: "all images", 1: "1 image"}.get(shots, f"{shots} images") + " of each class"


class SavedModel(ModelMetadata):
    """A trained model in memory. `model_copy(update={...})` gives one with other fields.

    Attributes:
        classifier: The folded classifier. Divide its logits by `temperature` before a softmax.
        text_positive: Positive text features before training, unit-norm, shape `[K, d]`: zero-shot CLIP's classifier.
        transfer: What reaches other classes; None where `transfer_rule` is not "adapter".
        transfer_rule: "adapter", or as of `folder.OtherTransfer`.
        class_nodes: HeGraphAdapter's visual nodes in the whitened space, for `results/by_image.py`, whose mean and
            whitening are those of `transfer.messages`; None without messages in closed form.
        labelled: What the labelled images tell unlabelled ones; None where the model has heard some, or is of an
            earlier version.
        lessons: What HeGraphAdapter was taught, so that it can be taught more; None for another method, and for a
            model of an earlier version.
        unlabelled_features: Unit-norm features `[M, d]` of the unlabelled images that the classifier is adapted to,
            and is adapted to again after more training. A folder stores them if it stores `lessons`.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    classifier: InstanceOf[FoldedClassifier]
    text_positive: InstanceOf[Tensor]
    transfer: InstanceOf[TransferableAdapter] | None = None
    transfer_rule: str = "none"
    class_nodes: InstanceOf[Tensor] | None = None
    labelled: InstanceOf[ClassSums] | None = None
    support_set: InstanceOf[SupportSet] | None = None
    unlabelled_features: InstanceOf[Tensor] | None = None

    def probabilities(self, features: Tensor, batch_size: int = 1024) -> Tensor:
        """Calibrated probabilities of unit-norm image features `[B, d]`, shape `[B, K]`."""
        return self.calibrate(self.classifier.logits(features, batch_size))

    def calibrate(self, logits: Tensor) -> Tensor:
        """Calibrated probabilities of logits `[..., K]`, of the same shape."""
        return (logits / self.temperature).softmax(dim=-1)

    def zero_shot_logits(self, features: Tensor) -> Tensor:
        """Logits of zero-shot CLIP with the same prompts, shape `[B, K]`."""
        return self.logit_scale * features @ self.text_positive.t()

    def is_known(self, logits: Tensor, rate: float) -> Tensor:
        """Open-set rejection: which images are accepted as one of the classes, booleans of shape `[B]`.

        Args:
            logits: Logits of the images, shape `[B, K]`.
            rate: Fraction of images of known classes to accept, between 0 and 1.

        Raises:
            UserError: If the model has no scores of known images, or `rate` is out of range.
        """
        rate = validate(Share, rate, "rate", convert=True)
        if self.known is None:
            raise UserError(
                "the model has no scores of known images for a threshold; train it again with CALIBRATE auto, at least "
                "four classes or two images of a class, and without unlabelled images"
            )
        return known_score(logits, self.temperature, self.known.score) >= self.known.threshold(rate)

    def share_below(self, logits: Tensor) -> float | None:
        """Fraction of images of known classes with a lower score than an image with logits `[K]`, from 0 to 1.

        None if the model has no scores of known images.
        """
        if self.known is None:
            return None
        return self.known.share_below(known_score(logits[None], self.temperature, self.known.score).item())


def adapt(model: SavedModel, features: Tensor, device: str) -> tuple[SavedModel, UnlabelledAdaptation]:
    """A model whose classifier has heard unlabelled images, on the CPU, and what was heard (`method/unlabelled.py`).

    What was measured of the model as it was, scores of test images and of known ones, does not hold any more and goes.
    It hears once: what it knew of the labelled images goes, too.

    Args:
        model: One that has heard none.
        features: Unit-norm features of the images, shape `[M, d]`.
        device: Where to compute.

    Raises:
        UserError: As `check_hearing`.
    """
    adaptation = adapt_to_unlabelled(
        model.classifier.to(device),
        check_adaptable(model.labelled, features, model.classifier.width, device),
        model.text_positive.to(device),
        features.to(device),
        model.logit_scale,
        model.temperature,
    )
    changed = {
        "classifier": adaptation.classifier.to("cpu"),
        "unlabelled": len(features),
        "unlabelled_features": features.cpu(),
        "known": None,
        "labelled": None,
        "scores": NOT_TESTED,
    }
    return model.model_copy(update=changed), adaptation


def check_adaptable(labelled: ClassSums | None, features: Tensor, width: int, device: str) -> ClassSums:
    """What a model knows of its labelled images, on the device; it can hear unlabelled ones of these features.

    Raises:
        UserError: If the model knows none, the features are none, of another width or not finite, or hearing them would
            take more memory than is free.
    """
    if labelled is None:
        raise UserError(
            "the model has heard unlabelled images before, or is of a version that kept nothing of its labelled ones; "
            "train it again"
        )
    if not len(features) or features.shape[1] != width or not features.isfinite().all():
        raise UserError(f"unlabelled images need finite features of width {width}, got {list(features.shape)}")
    count, num_classes = len(features), len(labelled.counts)
    takes = COPIES * 4 * count * num_classes
    refuse_beyond_memory(takes, f"{count} unlabelled images of {num_classes} classes", device)
    return labelled.to(device)
