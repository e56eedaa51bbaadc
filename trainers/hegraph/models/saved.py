"""Trained model: metadata (`config.json` of a model folder), tensors, and adaptation to unlabelled images.

The classes are schemas that validate a model folder before use.

Shapes: K classes, d feature width, B images of a batch, M unlabelled images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import torch
from pydantic import ConfigDict, Field, InstanceOf, model_validator
from torch import Tensor

from ..baselines.base import FittedMethod, Transfer, zero_shot_transfer
from ..datasets.shots import SHOTS_PER_CLASS
from ..features.backbones.schema import BackboneConfig
from ..features.options import NO_PROMPTS
from ..method.cache import QUERY_BATCH, FoldedClassifier
from ..method.head.trust import TRUSTED, TextTrust, replace_text
from ..method.model import TransferableAdapter
from ..method.training.confidence import Calibration, KnownScores, known_score
from ..method.training.memory import refuse_beyond_memory
from ..method.training.prediction_sets import SetScores
from ..method.unlabelled import ClassSums, UnlabelledAdaptation, adapt_to_unlabelled
from ..utils.errors import UserError
from ..utils.option import NODE, describe_shots, images_per_class
from ..utils.reading import Count, Finite, Name, Percent, Positive, Share, Size, StrictModel, validate
from .support_set import SupportSet

if TYPE_CHECKING:
    from ..features.backbones.base import Backbone

Three = Field(min_length=3, max_length=3)
LISTED_NAMES = 10  # names of classes in a sentence
COPIES = 4  # float32 copies of all unlabelled images' logits in memory during adaptation


class Preprocessing(StrictModel):
    """Preprocessing of images for the backbone.

    Attributes:
        size: Height and width in pixels.
        mean, std: Mean and standard deviation of the normalisation, for each channel.
        transform: The test transform as text.
    """

    size: Annotated[list[Size], Field(min_length=2, max_length=2)]
    mean: Annotated[list[Finite], Three]
    std: Annotated[list[Positive], Three]
    transform: str

    @classmethod
    def of(cls, backbone: Backbone) -> Preprocessing:
        """The preprocessing of a loaded backbone."""
        return cls(
            size=list(backbone.input_size),
            mean=list(backbone.mean),
            std=list(backbone.std),
            transform=backbone.fingerprint["preprocess"],
        )


class Prompts(StrictModel):
    """Sentences of the text nodes: positive ones by group and class, negative ones by class.

    Features are averaged over the sentences of a class in a group, then over groups.
    """

    positive: list[list[list[str]]]
    negative: list[list[str]]


class TrainedOn(StrictModel):
    """Provenance of a model: data, seed, configuration and software.

    `source` is the name of the folder or file of own images; "" for another data set, or if unknown.
    """

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
    source: str = ""

    @property
    def title(self) -> str:
        """Name of the data set for readers."""
        return self.source or self.dataset

    @property
    def shots_per_class(self) -> str:
        """Unequal numbers of training images, as in DATASET.SHOTS_PER_CLASS; "" for equal numbers."""
        return str(self.config.get(SHOTS_PER_CLASS, ""))


class TextTrustRecord(StrictModel):
    """Trust in the text of the classes (`method/head/trust.py`): `w_c` by class, the scale `a` and the share `pi`."""

    weights: tuple[Annotated[float, Field(ge=0, le=1)], ...]
    scale: Annotated[float, Field(ge=0, le=1)]
    share: Annotated[float, Field(ge=0, le=1)]

    @classmethod
    def of(cls, trust: TextTrust) -> TextTrustRecord:
        """The record of an estimate."""
        return cls(weights=tuple(trust.weights.tolist()), scale=trust.scale, share=trust.share)

    def estimate(self) -> TextTrust:
        """The estimate of a record."""
        return TextTrust(torch.tensor(self.weights, dtype=torch.float64), self.scale, self.share)

    def untrusted(self, classnames: Sequence[str], images: Sequence[int]) -> tuple[str, ...]:
        """Names of the classes with images whose text says nothing to the encoder.

        Args:
            classnames: The K class names.
            images: Number of images of each class.
        """
        rows = zip(classnames, self.weights, images)
        return tuple(name for name, weight, count in rows if count and weight <= TRUSTED)

    def sentence(self, classnames: Sequence[str], images: Sequence[int]) -> str:
        """Sentence about `untrusted` classes and the scale of text; "" if all text is used as in zero-shot CLIP."""
        sentences = []
        if names := self.untrusted(classnames, images):
            listed = ", ".join(names[:LISTED_NAMES]) + (", ..." if len(names) > LISTED_NAMES else "")
            count = f"{len(names)} of {len(classnames)} classes"
            reason = "Classified by images alone, because the names say nothing to the encoder"
            sentences.append(f"{reason}: {listed} ({count}).")
        if self.scale < 1:
            times = f"{self.scale:g} times as much as for CLIP without training"
            sentences.append(f"The class names count {times}.")
        return " ".join(sentences)


class Scores(StrictModel):
    """Scores on the test images in percent; null without test images.

    Scores that end in `_zero_shot` are those of zero-shot CLIP without a temperature. With several labels per image,
    `map` replaces the accuracy.
    """

    accuracy: Percent | None
    accuracy_text: Percent | None
    accuracy_zero_shot: Percent | None
    macro_f1: Percent | None
    num_test: Count
    ece: Percent | None = None
    ece_zero_shot: Percent | None = None
    map: Percent | None = None
    map_zero_shot: Percent | None = None


NOT_TESTED = Scores(accuracy=None, accuracy_text=None, accuracy_zero_shot=None, macro_f1=None, num_test=0)


class ModelMetadata(StrictModel):
    """Metadata of a model, in its folder and in memory.

    Attributes:
        method: Name of the method, an argument of `--trainer`.
        variant: Variant of HeGraphAdapter; "" for another method.
        classnames: The K class names in label order.
        class_ids: Identifiers of the classes across data sets, such as WordNet ids; usually the names.
        logit_scale: CLIP's `tau`.
        temperature: Divisor of logits for calibrated probabilities.
        preprocessing, prompts: None for a model from a feature bank.
        scores: Scores on the test images of `trained_on`.
        labels: The K labels of the Python API; None if the class names are the labels.
        known: Scores of images of known classes, for open-set rejection; None if the run did not compute them, or with
            classes that were added without images.
        sets: Probabilities of true classes, for prediction sets; None as for `known`.
        unlabelled: Number of unlabelled images that the classifier is adapted to (`method/unlabelled.py`).
        images: Number of labelled training images of each class; None if unknown.
        image_ids: `SupportSet.ids`; None if the images were passed as features.
        text_trust: Trust in the text of each class; None without an estimate.
    """

    method: str
    variant: str
    classnames: Annotated[tuple[Name, ...], Field(min_length=1)]
    class_ids: tuple[Name, ...]
    logit_scale: Positive
    temperature: Positive = 1.0
    backbone: BackboneConfig
    preprocessing: Preprocessing | None = None
    prompts: Prompts | None = None
    trained_on: TrainedOn
    scores: Scores
    labels: tuple[bool | int | float | str, ...] | None = None
    known: KnownScores | None = None
    sets: SetScores | None = None
    unlabelled: Count = 0
    images: tuple[Count, ...] | None = None
    image_ids: tuple[int, ...] | None = None
    text_trust: TextTrustRecord | None = None

    @model_validator(mode="after")
    def consistent_classes(self) -> ModelMetadata:
        """Check that every class has a unique id and label, a number of images, and prompts in each group."""
        classes = len(self.classnames)
        for name in ("class_ids", "labels", "images"):
            values = getattr(self, name)
            if values is not None and len(values) != classes:
                raise ValueError(f"{len(values)} {name} for {classes} classnames")
            if values is not None and name != "images" and len(set(values)) < classes:
                raise ValueError(f"{name} must be unique")
        groups = [] if self.prompts is None else [*self.prompts.positive, self.prompts.negative]
        if any(len(group) != classes for group in groups):
            raise ValueError(f"prompts must have sentences for each of the {classes} classes in every group")
        if self.sets is not None and self.sets.few is not None and max(self.sets.few.classes) >= classes:
            raise ValueError(f"sets.few.classes must be below {classes}, the number of classes")
        return self

    @property
    def named_only(self) -> tuple[str, ...]:
        """Names of the classes without images, known from text alone; empty if no class has images."""
        images = self.images or ()
        return tuple(name for name, count in zip(self.classnames, images) if not count) if any(images) else ()

    def named_only_reason(self) -> str:
        """Return the end of a message: some classes have no images, with the remedy; "" if all or none have images."""
        named_only = self.named_only
        if not named_only:
            return ""
        count = (
            f"classes without training images ({len(named_only)} of {len(self.classnames)}, such as {named_only[0]!r})"
        )
        advice = "add images of them with train-more, or train it again with images of all classes"
        return f", because of {count}; {advice}"

    @property
    def trusts_text(self) -> bool:
        """Whether the training replaces text that does not describe the images; False for older models."""
        return bool(self.trained_on.config.get(f"{NODE}.TRUST_TEXT", False))

    @property
    def class_prior(self) -> str:
        """Class frequencies of test images, "balanced" or "training"; "training" for older models."""
        return self.trained_on.config.get(f"{NODE}.CLASS_PRIOR", "training")

    @property
    def untrusted(self) -> tuple[str, ...]:
        """Names of the classes whose text says nothing to the encoder, so that their images alone classify them."""
        return () if self.text_trust is None else self.text_trust.untrusted(self.classnames, self._counts)

    @property
    def names_sentence(self) -> str:
        """Sentence about classes whose names say nothing to the encoder, and the scale of text; "" without them."""
        return "" if self.text_trust is None else self.text_trust.sentence(self.classnames, self._counts)

    @property
    def _counts(self) -> Sequence[int]:
        """Number of images of each class; 1 where it is unknown, as in `text_trust`."""
        return self.images or [1] * len(self.classnames)

    @property
    def sample_description(self) -> str:
        """Number of labelled images in words, such as "16 images of each class"."""
        shots = self.trained_on.shots
        if images_per_class(shots, self.images):
            return describe_shots(shots, self.images)
        return {-1: "all images", 1: "1 image"}.get(shots, f"{shots} images") + " of each class"


class TrainedModel(ModelMetadata):
    """Classifier that can predict, whether it was just fitted or loaded; `model_copy` changes fields.

    Attributes:
        text_positive: Unit-norm positive text features before training, the classifier of zero-shot CLIP, `[K, d]`;
            without class texts (`has_text`), mean features of the training images.
        classifier: Folded classifier. Divide its logits by `temperature` before a softmax. None for a method that is
            not class weights and a cache.
        thresholds: Least logit with which a label is predicted, shape `[K]`, for several labels per image; None for one
            label per image, or if the method chooses none.
        transfer: Adapter for unseen classes; None unless `transfer_rule` is "adapter".
        transfer_rule: "adapter", "zero-shot" or "none".
        fitted: The method as `fit` returned it, which predicts while it is in memory; None for a model that was
            loaded, or that predicts by `classifier` alone.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    text_positive: InstanceOf[Tensor]
    classifier: InstanceOf[FoldedClassifier] | None = None
    thresholds: InstanceOf[Tensor] | None = None
    transfer: InstanceOf[TransferableAdapter] | None = None
    transfer_rule: str = "none"
    fitted: InstanceOf[FittedMethod] | None = None

    @property
    def calibration(self) -> Calibration:
        """Temperature, its source, and the scores of known images."""
        if self.fitted is not None:
            return self.fitted.calibration
        # A fitted temperature is never exactly 1, so 1 means that none was fitted
        source = "nothing" if self.temperature == 1 else "model"
        return Calibration(self.temperature, source, known=self.known, sets=self.sets)

    @property
    def is_transductive(self) -> bool:
        """Whether `predict` takes all test images at once, because each prediction depends on all of them."""
        return self.fitted is not None and self.fitted.transductive

    @property
    def has_text(self) -> bool:
        """Whether `text_positive` is encoded text, the classifier of zero-shot CLIP, not mean features of images."""
        return self.trained_on.config.get(f"{NODE}.PROMPTS.SOURCE") != NO_PROMPTS

    @property
    def has_text_classifier(self) -> bool:
        """Whether the classifier without its cache is a classifier of its own, as only HeGraphAdapter has it."""
        return self.classifier is not None and bool(self.variant)

    def predictor(self, device: str | torch.device) -> Callable[[Tensor], Tensor]:
        """Function from unit-norm image features `[B, d]` on a device to logits `[B, K]`."""
        if self.fitted is not None:
            return self.fitted.logits
        assert self.classifier is not None  # a model without one is only in memory
        return self.classifier.to(device).logits

    def transfer_function(self, device: str | torch.device) -> Transfer | None:
        """Function from a bank with other classes to the logits of its test images; None without a rule for them."""
        if not self.has_text:
            return None
        if self.fitted is not None:
            return self.fitted.transfer
        if self.transfer_rule == "zero-shot":
            return zero_shot_transfer
        if self.transfer is None:
            return None
        adapter = self.transfer.to(device)
        return lambda bank: adapter(replace(bank, logit_scale=self.logit_scale))


class SavedModel(TrainedModel):
    """Trained model that a folder stores.

    Attributes:
        classifier: As in `TrainedModel`; always present.
        class_nodes: HeGraphAdapter's visual nodes in the whitened space of `transfer.messages`, for
            `results/rejection.py`; None without a closed-form head.
        labelled: Sums over the labelled images for `adapt`; None after an adaptation.
        support_set: Support set of HeGraphAdapter for incremental training; None for another method.
        unlabelled_features: Unit-norm features `[M, d]` of the unlabelled images that the classifier is adapted to.
            Further training repeats the adaptation. A folder stores them if it stores the support set.
    """

    classifier: InstanceOf[FoldedClassifier]
    class_nodes: InstanceOf[Tensor] | None = None
    labelled: InstanceOf[ClassSums] | None = None
    support_set: InstanceOf[SupportSet] | None = None
    unlabelled_features: InstanceOf[Tensor] | None = None

    @property
    def has_text(self) -> bool:
        return super().has_text if self.support_set is None else self.support_set.positive is not None

    @property
    def known_text(self) -> Tensor:
        """Positive text features, shape `[K, d]`; 0 without class texts."""
        return self.text_positive if self.has_text else torch.zeros_like(self.text_positive)

    def probabilities(self, features: Tensor, batch_size: int = QUERY_BATCH) -> Tensor:
        """Calibrated probabilities of unit-norm image features `[B, d]`, shape `[B, K]`."""
        return self.calibrate(self.classifier.logits(features, batch_size))

    def calibrate(self, logits: Tensor) -> Tensor:
        """Calibrated probabilities of logits `[..., K]`, of the same shape."""
        return (logits / self.temperature).softmax(dim=-1) if self.thresholds is None else logits.sigmoid()

    def check_single_label(self, action: str) -> None:
        """Raise UserError if the model predicts several labels per image. `action` is the subject of its message."""
        if self.thresholds is not None:
            raise UserError(f"{action} needs a model with one label per image, and this one has several")

    def text_of_classes(self) -> Tensor:
        """Text of the classes after `method/head/trust.py`, shape `[K, d]`; without an estimate, `known_text`."""
        if self.text_trust is None or self.labelled is None:
            return self.known_text
        counts = self.labelled.counts.unsqueeze(1)
        trusted = replace_text(self.text_trust.estimate(), counts, self.labelled.sums, self.text_positive)
        return trusted.replaced.to(self.text_positive)

    def zero_shot_logits(self, features: Tensor) -> Tensor:
        """Logits of zero-shot CLIP with the same prompts, shape `[B, K]`; 0 without class texts."""
        return self.logit_scale * features @ self.known_text.t()

    def check_open_set(self, rate: float) -> None:
        """Raise UserError if the model has no scores of known images for `is_known`, or `rate` is out of range."""
        self.check_single_label("open-set rejection")
        validate(Share, rate, "rate", convert=True)
        if self.known is None:
            problem = "the model has no scores of known images for a threshold"
            advice = "; train it again with CALIBRATE auto, at least four classes or two images of a class, and without"
            raise UserError(problem + (self.named_only_reason() or f"{advice} unlabelled images"))

    def is_known(self, logits: Tensor, rate: float) -> Tensor:
        """Open-set rejection: whether each image is accepted as one of the classes, booleans of shape `[B]`.

        Args:
            logits: Logits of the images, shape `[B, K]`.
            rate: Fraction of images of known classes to accept, between 0 and 1.

        Raises:
            UserError: If the model has no scores of known images, or several labels per image, or `rate` is no share.
        """
        self.check_open_set(rate)
        assert self.known is not None
        return known_score(logits, self.temperature, self.known.score) >= self.known.threshold(float(rate))

    def set_threshold(self, coverage: float) -> float:
        """Least probability of a class in the prediction sets of a coverage, such as 0.9; as in `SetScores.threshold`.

        Raises:
            UserError: If the model has several labels per image or no probabilities of held-out images, or the coverage
                is no share or needs more held-out images.
        """
        self.check_single_label("a prediction set")
        if self.sets is None:
            problem = "the model has no probabilities of held-out images for prediction sets"
            advice = "; train it again with CALIBRATE auto, and without unlabelled images"
            raise UserError(problem + (self.named_only_reason() or advice))
        return self.sets.threshold(coverage)

    def prediction_sets(self, features: Tensor, logits: Tensor, coverage: float) -> Tensor:
        """Sets of classes that contain the class of an image with a given probability, booleans of shape `[B, K]`.

        Args:
            features: Unit-norm features of the images, shape `[B, d]`.
            logits: Their logits, shape `[B, K]`.
            coverage: The probability, such as 0.9.

        Raises:
            UserError: As in `set_threshold`.
        """
        self.set_threshold(coverage)  # the check
        assert self.sets is not None
        of_sets = self.zero_shot_logits(features.to(self.text_positive)) if self.sets.of_zero_shot else logits
        return self.sets.sets_of(of_sets, logits.argmax(dim=1), coverage)

    def share_below(self, logits: Tensor) -> float | None:
        """Fraction of images of known classes with a lower score than an image with logits `[K]`, from 0 to 1.

        None if the model has no scores of known images.
        """
        if self.known is None:
            return None
        return self.known.share_below(known_score(logits[None], self.temperature, self.known.score).item())


def adapt(model: SavedModel, features: Tensor, device: str) -> tuple[SavedModel, UnlabelledAdaptation]:
    """Adapt a model to unlabelled images (`method/unlabelled.py`).

    The result has no scores of test images and of known images, because they do not apply to the changed classifier.
    It has no sums over labelled images either, because a classifier is adapted only once.

    Args:
        model: Model without an adaptation.
        features: Unit-norm features of the images, shape `[M, d]`.
        device: Device of the computation.

    Returns:
        The adapted model on the CPU, and the adaptation.

    Raises:
        UserError: If the model is already adapted, lacks sums over labelled images or has several labels per image; if
            the features are empty, have another width or are not finite; or if the memory is too small.
    """
    model.check_single_label("adaptation to unlabelled images")
    if model.unlabelled:
        raise UserError("the model is already adapted to unlabelled images; train it again")
    if model.labelled is None:
        raise UserError("the model's folder has no sums over labelled images to adapt from; train it again")
    check_adaptable(features, model.text_positive, device)
    adaptation = adapt_to_unlabelled(
        model.classifier.to(device),
        model.labelled.to(device),
        model.text_of_classes().to(device),
        features.to(device),
        model.logit_scale,
        model.temperature,
    )
    changed = {
        "classifier": adaptation.classifier.to("cpu"),
        "unlabelled": len(features),
        "unlabelled_features": features.cpu(),
        "known": None,
        "sets": None,
        "labelled": None,
        "scores": NOT_TESTED,
    }
    return model.model_copy(update=changed), adaptation


def check_adaptable(features: Tensor, text: Tensor, device: str) -> None:
    """Check that a classifier with text features `[K, d]` can adapt to unlabelled features `[M, d]` on a device.

    Raises:
        UserError: If the features are empty, have another width or are not finite, or the adaptation needs more memory
            than is free.
    """
    count = len(features)
    num_classes, width = text.shape
    if not count or features.shape[1] != width or not features.isfinite().all():
        raise UserError(f"expected finite features [M, {width}] of unlabelled images, got {list(features.shape)}")
    num_bytes = COPIES * 4 * count * num_classes
    refuse_beyond_memory(num_bytes, f"{count} unlabelled images of {num_classes} classes", device)
