"""Options of the graph, the closed-form head and the cache, with their configuration keys."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial

from ..utils.errors import UserError
from ..utils.option import NODE, SHOT_ROWS, Option, check_options, option
from .relations import REFINED, RELATIONS, RelationType

VARIANTS = ("base", "training_free", "T-N", "T-P", "T", "full")
INITS = ("identity", "xavier", "zero")

# Controls of the ablation: the messages of one relation go to wrong classes
SHUFFLES = ("none", "text_to_visual", "visual_to_text", "negative")

CLASS_PRIORS = ("balanced", "training")

HEAD_SCALE = 100.0  # CLIP's `tau`, at which the constants of the closed-form head were chosen
UNTRAINED = ("base", "training_free")  # variants without trainable parameters

_option = partial(option, shapes_model=True)  # a trained model stores it, and a test cannot change it
_rows = partial(_option, by_task=True, above=0)

# Keys and descriptions of the constants of the closed-form head, for the trained variants and for the training-free one
CLOSED = ".CLOSED_FORM"
FREE = ".TRAINING_FREE"
OF_KAPPA = "weight of the text prior in a class mean, as a number of images"
OF_RHO = "shrinkage of the within-class covariance, as a multiple of feature width / number of images"
OF_OMEGA = "weight of the closed-form logits"


@dataclass(frozen=True)
class ClosedFormOptions:
    """Constants of the closed-form head (`head/closed_form.py`) for one number of shots; UserError for invalid ones."""

    kappa: float = _option(4.0, f"{CLOSED}.KAPPA", OF_KAPPA, filled=True, above=0)
    rho: float = _option(0.3, f"{CLOSED}.RHO", OF_RHO, above=0)
    omega: float = _option(0.0, f"{CLOSED}.OMEGA", f"{OF_OMEGA}; 0: no head, as in the paper", filled=True, least=0)

    def __post_init__(self) -> None:
        check_options(self)


@dataclass(frozen=True)
class TrainingFreeOptions:
    """Constants of the closed-form head in the training-free variant, as rows `[from this many shots, value]`."""

    kappa: float = _rows(4.0, f"{FREE}.KAPPA", f"{OF_KAPPA}; {SHOT_ROWS}", configured=[[1, 4.0], [2, 2.0]])
    rho: float = _option(0.3, f"{FREE}.RHO", OF_RHO, above=0)
    omega: float = _rows(0.15, f"{FREE}.OMEGA", f"{OF_OMEGA}; {SHOT_ROWS}", configured=[[1, 0.15], [8, 0.3], [16, 0.4]])


def metapath_options() -> dict[str, Option]:
    """Declarations of the meta-path weights (Eq. 2 and 4), by key without the prefix `TRAINER.HEGRAPHADAPTER.`."""
    declared = partial(Option, shapes_model=True)
    options = {}
    for r in RELATIONS:
        if r.weight_key:
            equation = "Eq. 4" if r.target == REFINED else "Eq. 2"
            meaning = f"weight of messages {r.source} → {r.target} ({equation})"
            options[r.weight_key] = declared(f"{NODE}.{r.weight_key}", r.weight, meaning)
        if r.weight_at_test is not None:
            meaning = f"`{r.weight_key}` at test (section 4.1); unused if `LEARN_METAPATH` is set or `TEXT_W` is not"
            options[r.key_at_test] = declared(f"{NODE}.{r.key_at_test}", r.weight_at_test, meaning)
    return options


def metapath_defaults() -> dict[str, float]:
    """Default meta-path weights, by key."""
    return {key: declared.default for key, declared in metapath_options().items()}


@dataclass(frozen=True)
class ModelOptions:
    """Options of `HeGraphModel`. The defaults in Python are the paper's, those of the configuration keys are ours.

    Raises:
        UserError: If a value is not allowed.

    Examples:
        >>> from hegraph import ModelOptions
        >>> sorted({relation.target for relation in ModelOptions(variant="T").relations})  # no visual nodes
        ['negative', 'positive']
    """

    variant: str = _option(
        "full", ".VARIANT", "[parts of the model](../glossary.md#variants-of-hegraphadapter)", choices=VARIANTS
    )
    # By key; a weight of 0 removes the relation
    metapath: Mapping[str, float] = field(default_factory=metapath_defaults, metadata={"options": metapath_options()})
    learn_metapath: bool = _option(False, ".LEARN_METAPATH", "whether to train nonzero meta-path weights (Table 3)")
    weight_init: str = _option("identity", ".WEIGHT_INIT", "initial `W`", configured="zero", choices=INITS)
    text_weights: bool = _option(
        True, ".TEXT_W", "whether messages to text nodes have a matrix `W` beside the trained bias"
    )
    bias: bool = _option(True, ".BIAS", "whether each class and relation has a trained bias (not in the paper)")
    beta_c: float = _option(1.0, ".BETA_C", "sharpness of the affinities (beta of Tip-Adapter, Eq. 8)", least=0)
    alpha_c: float = _option(8.0, ".ALPHA_C", "weight of the cache logits (alpha of Tip-Adapter)", filled=True, least=0)
    closed_form: ClosedFormOptions = field(default_factory=ClosedFormOptions)
    noise: float = _option(
        0.0,
        ".NOISE",
        "scale of the within-class noise on training queries of the text classifier",
        configured=1.0,
        least=0,
    )
    trust_text: bool = _option(
        False,
        ".TRUST_TEXT",
        "whether text that does not describe the images of its class is replaced (not in the paper)",
        configured=True,
    )
    class_prior: str = _option(
        "balanced",
        ".CLASS_PRIOR",
        "class frequencies among test images, for the training-free variant and the cache: equal ones, or those of "
        "the training images",
        choices=CLASS_PRIORS,
    )
    shuffle: str = _option(
        "none", ".SHUFFLE", "relation whose messages go to wrong classes (ablation)", choices=SHUFFLES
    )

    def __post_init__(self) -> None:
        check_options(self)
        expected = metapath_defaults()
        if self.metapath.keys() != expected.keys():
            keys = ", ".join(sorted(self.metapath))
            raise UserError(f"metapath must have the keys {', '.join(expected)}, got {keys}")

    @property
    def has_closed_form(self) -> bool:
        """Whether predictions use the closed-form head."""
        return self.variant in ("training_free", "T-P", "T", "full") and self.closed_form.omega > 0

    @property
    def needs_closed_form(self) -> bool:
        """Whether the closed form is computed: for predictions, or for the noise of the training."""
        return self.has_closed_form or self.noise > 0

    @property
    def trusts_text(self) -> bool:
        """Whether the variant replaces text that does not describe the images of its class."""
        return self.trust_text and self.variant != "base"

    def head_weight(self, logit_scale: float) -> float:
        """Factor of the closed-form logits: `omega tau`, or `omega` times `HEAD_SCALE` in the training-free variant.

        With trust in text, the head of the training-free variant does not depend on CLIP's `tau`.
        """
        is_free = self.variant == "training_free" and self.trusts_text
        return self.closed_form.omega * (HEAD_SCALE if is_free else logit_scale)

    @property
    def in_training(self) -> "ModelOptions":
        """Options that shape the training; those that affect predictions alone have their defaults."""
        return replace(self, alpha_c=ModelOptions.alpha_c, closed_form=ClosedFormOptions(kappa=self.closed_form.kappa))

    @property
    def variant_metapath(self) -> dict[str, float]:
        """Meta-path weights of the variant; those of relations that it does not use are 0."""
        weights = dict(self.metapath)
        for relation in RELATIONS:
            left_out = "T-P" if relation.source == "negative" else "T-N"
            if relation.target == REFINED and self.variant == left_out:
                weights[relation.weight_key] = 0.0
        return weights

    @property
    def relations(self) -> tuple[RelationType, ...]:
        """Relations whose messages change the result, in the order of the table."""
        # The relation without a weight moves the cache keys, which the variant "full" alone has
        weights = self.variant_metapath | {"": float(self.variant == "full")}
        sending = [r for r in RELATIONS if weights.get(r.weight_key, 0.0)]
        # A relation is needed if its target nodes are read: by the classifier, or by another relation through a `W`
        read = {REFINED} | {r.source for r in sending if self.text_weights and not r.frozen}
        return tuple(r for r in sending if not r.weight_key or r.target in read)
