"""What `config.json` of a model folder must hold. Everything is checked here, before any of it is used."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from ..training.rejection import SHARES
from ..utils.schema import Count, Finite, Name, Part, Percent, Positive, Size

if TYPE_CHECKING:
    from ..backbones.clip import Backbone as FrozenCLIP


class Backbone(Part):
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
    precision: str = "fp32"
    fingerprint: dict[str, str] = Field(default={})


class Preprocessing(Part):
    """How an image becomes the backbone's input.

    Attributes:
        size: Height and width in pixels.
        mean, std: Of the normalisation, per channel.
        transform: The whole test transform in words.
    """

    size: Annotated[list[Size], Field(min_length=2, max_length=2)]
    mean: Annotated[list[Finite], Field(min_length=3, max_length=3)]
    std: Annotated[list[Positive], Field(min_length=3, max_length=3)]
    transform: str

    @classmethod
    def of(cls, backbone: FrozenCLIP) -> Preprocessing:
        """The preprocessing of a loaded backbone."""
        return cls(
            size=list(backbone.input_size),
            mean=list(backbone.mean),
            std=list(backbone.std),
            transform=backbone.fingerprint["preprocess"],
        )


class Prompts(Part):
    """The sentences that the text nodes were made of.

    Attributes:
        positive: Groups of sentences; the sentences of a class in a group are averaged first, then the groups.
        negative: The sentences of each class.
    """

    positive: list[list[list[str]]]
    negative: list[list[str]]


class Fusion(Part):
    """How the two classifiers are added: `alpha` weighs the cache, whose affinities have the sharpness `beta`."""

    alpha: Finite = 0.0
    beta: Finite = 1.0


class Transfer(Part):
    """How the model reaches classes that it was not trained on.

    Attributes:
        rule: "adapter": message passing among text nodes with the trained `W`. "zero-shot": as zero-shot CLIP. "none":
            there is no rule.
        options: Of the model, for the rule "adapter", as `AdapterOptions`; {} for the others.
    """

    rule: Literal["adapter", "zero-shot", "none"]
    options: dict[str, Any] = Field(default={})


class ClosedForm(Part):
    """The constants of `method.options.ClosedFormOptions`."""

    kappa: Finite
    rho: Finite
    omega: Finite


class AdapterOptions(Part):
    """The options of `method.options.ModelOptions`, checked; the fields are the same."""

    variant: Literal["base", "free", "T-N", "T-P", "T", "full"]
    metapath: dict[str, Finite]
    learn_metapath: bool
    weight_init: Literal["identity", "xavier", "zero"]
    text_weights: bool
    bias: bool
    beta_c: Finite
    alpha_c: Finite
    closed_form: ClosedForm
    noise: Finite
    shuffle: Literal["none", "text_to_visual", "visual_to_text", "negative"]


class Known(Part):
    """The fields of `training.rejection.KnownScores`, checked."""

    quantiles: Annotated[list[Finite], Field(min_length=SHARES, max_length=SHARES)]
    fitted_on: str
    num_images: Size
    score: Literal["probability", "energy"]

    @model_validator(mode="after")
    def quantiles_ascend(self) -> Known:
        """Quantiles never fall."""
        if any(after < before for before, after in zip(self.quantiles, self.quantiles[1:])):
            raise ValueError("quantiles must not fall")
        return self


class TrainedOn(Part):
    """Where the model comes from."""

    dataset: str
    shots: int
    seed: Count
    num_train: Size
    split_hash: str
    selected_on: str
    selected: dict[str, Any]
    config: dict[str, Any]
    host: str
    git_commit: str | None
    versions: dict[str, str]


class Scores(Part):
    """Percent on the test images; None where there were none.

    Attributes:
        accuracy, macro_f1, ece: Of the model; `ece` is the expected calibration error of its probabilities.
        accuracy_text: Of HeGraphAdapter's text classifier without the cache.
        accuracy_zero_shot, ece_zero_shot: Of zero-shot CLIP as it comes.
        num_test: How many images.
    """

    accuracy: Percent | None
    accuracy_text: Percent | None
    accuracy_zero_shot: Percent | None
    macro_f1: Percent | None
    num_test: Count
    ece: Percent | None = None  # left out where they are not known, and by earlier versions
    ece_zero_shot: Percent | None = None


class ModelConfig(Part):
    """All of `config.json`.

    `labels` is what the user of the Python API called the K classes; null where the class names are the labels.
    `known` is how images of known classes score; it is left out where that is not known, and by earlier versions.
    """

    format: Literal["hegraph-model"]
    version: Literal[1]
    method: str
    variant: str
    classnames: Annotated[list[Name], Field(min_length=1)]
    class_ids: list[Name]
    width: Size
    logit_scale: Positive
    temperature: Positive
    fusion: Fusion
    backbone: Backbone
    preprocessing: Preprocessing | None
    prompts: Prompts | None
    transfer: Transfer
    trained_on: TrainedOn
    scores: Scores
    labels: list[bool | int | float | str] | None
    known: Known | None = None

    @model_validator(mode="after")
    def names_fit_each_other(self) -> ModelConfig:
        """Every class has one id, and no two classes have the same."""
        if len(self.class_ids) != len(self.classnames):
            raise ValueError(f"{len(self.class_ids)} class_ids for {len(self.classnames)} classnames")
        twice = [name for name, count in Counter(self.class_ids).items() if count > 1]
        if twice:
            raise ValueError(f"class_ids repeat: {', '.join(sorted(twice)[:3])}")
        classes = len(self.classnames)
        if self.labels is not None and not len(self.labels) == len(set(self.labels)) == classes:
            raise ValueError(f"labels must be {classes} different ones, one for each class")
        if self.prompts is not None:
            counts = {len(group) for group in (*self.prompts.positive, self.prompts.negative)}
            if counts != {len(self.classnames)}:
                raise ValueError(f"prompts for {sorted(counts)} classes, but there are {len(self.classnames)}")
        return self
