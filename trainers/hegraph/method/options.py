"""Options of the graph, the closed-form head and the cache, with their configuration keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial

from ..utils.option import NODE, POSITIVE_BY_SHOTS, SHOT_ROWS, Option, option
from .relations import REFINED, RELATIONS, RelationType

VARIANTS = ("base", "training_free", "T-N", "T-P", "T", "full")
INITS = ("identity", "xavier", "zero")

# Controls of the ablation: the messages of one relation go to wrong classes
SHUFFLES = ("none", "text_to_visual", "visual_to_text", "negative")

UNTRAINED = ("base", "training_free")  # variants without trainable parameters

_model_option = partial(option, shapes_model=True)  # a trained model stores it, and a test cannot change it
_by_shots = partial(_model_option, rows=POSITIVE_BY_SHOTS, by_shots=True, above=0)
CLOSED, FREE = f"{NODE}.CLOSED_FORM", f"{NODE}.TRAINING_FREE"
KAPPA, OMEGA = "weight of the text prior of a class mean, in images", "weight of the closed-form logits"
RHO = "shrinkage of the covariance, times feature width over number of images"


@dataclass(frozen=True)
class ClosedFormOptions:
    """Constants of the closed-form head (`closed_form.py`) for one number of shots."""

    kappa: float = _model_option(4.0, f"{CLOSED}.KAPPA", KAPPA, filled=True, above=0)
    rho: float = _model_option(0.3, f"{CLOSED}.RHO", RHO, above=0)
    omega: float = _model_option(0.0, f"{CLOSED}.OMEGA", f"{OMEGA}; 0: no head, as in the paper", filled=True, least=0)


@dataclass(frozen=True)
class TrainingFreeOptions:
    """Constants of the closed-form head in the training-free variant, as rows `[from this many shots, value]`."""

    kappa: float = _by_shots(4.0, f"{FREE}.KAPPA", f"{KAPPA}; {SHOT_ROWS}", configured=[[1, 4.0], [2, 2.0]])
    rho: float = _model_option(0.3, f"{FREE}.RHO", RHO, above=0)
    omega: float = _by_shots(
        0.15, f"{FREE}.OMEGA", f"{OMEGA}; {SHOT_ROWS}", configured=[[1, 0.15], [8, 0.3], [16, 0.4]]
    )


def metapath_options() -> dict[str, Option]:
    """Declarations of the meta-path weights (Eq. 2 and 4), by key without the prefix `TRAINER.HEGRAPHADAPTER.`."""
    declared = partial(Option, shapes_model=True)
    found = {}
    for r in RELATIONS:
        if r.weight_key:
            symbol = "Eq. 4" if r.target == REFINED else "Eq. 2"
            meaning = f"weight of the messages {r.source} → {r.target}"
            found[r.weight_key] = declared(f"{NODE}.{r.weight_key}", r.weight, meaning, symbol=symbol)
        if r.weight_at_test is not None:
            meaning = f"{r.weight_key} at test time; unused with `LEARN_METAPATH` and without `TEXT_W`"
            found[r.key_at_test] = declared(f"{NODE}.{r.key_at_test}", r.weight_at_test, meaning, symbol="section 4.1")
    return found


def metapath_defaults() -> dict[str, float]:
    """Default meta-path weights, by key."""
    return {key: declared.default for key, declared in metapath_options().items()}


@dataclass(frozen=True)
class ModelOptions:
    """Options of `HeGraphModel`. The defaults in Python are the paper's, those of the configuration keys are ours."""

    variant: str = _model_option(
        "full",
        f"{NODE}.VARIANT",
        "`full`: text classifier and cache; `T`: text classifier without the cache; `T-N`: positive text nodes receive "
        "messages from negative text nodes only; `T-P`: from positive text and visual nodes only; `base`: zero-shot "
        "CLIP; `training_free`: closed-form head without training (not in the paper)",
        choices=VARIANTS,
        symbol="Table 2",
    )
    # By key; a weight of 0 removes the relation
    metapath: Mapping[str, float] = field(default_factory=metapath_defaults, metadata={"options": metapath_options()})
    learn_metapath: bool = _model_option(
        False, f"{NODE}.LEARN_METAPATH", "train the meta-path weights that are not 0", symbol="Table 3, last column"
    )
    weight_init: str = _model_option(
        "identity", f"{NODE}.WEIGHT_INIT", "initial value of `W`", configured="zero", choices=INITS, symbol="left open"
    )
    text_weights: bool = _model_option(
        True,
        f"{NODE}.TEXT_W",
        "messages to text nodes have a weight matrix `W`; without it, a message is a bias for each class and relation",
        symbol="`True`",
    )
    bias: bool = _model_option(True, f"{NODE}.BIAS", "a trainable bias for each class and relation", symbol="left open")
    beta_c: float = _model_option(
        1.0, f"{NODE}.BETA_C", "sharpness of the cache affinities", least=0, symbol="β of Tip-Adapter, Eq. 8"
    )
    alpha_c: float = _model_option(
        8.0, f"{NODE}.ALPHA_C", "weight of the cache logits", filled=True, symbol="alpha of Tip-Adapter"
    )
    closed_form: ClosedFormOptions = field(default_factory=ClosedFormOptions)
    noise: float = _model_option(
        0.0,
        f"{NODE}.NOISE",
        "scale of the within-class noise that training adds to the queries of the text classifier",
        configured=1.0,
        least=0,
    )
    shuffle: str = _model_option(
        "none",
        f"{NODE}.SHUFFLE",
        "control of the ablation: messages of this relation, or negative text nodes, are given to wrong classes",
        choices=SHUFFLES,
    )

    @property
    def has_closed_form(self) -> bool:
        """Whether predictions use the closed-form head."""
        return self.variant in ("training_free", "T-P", "T", "full") and self.closed_form.omega > 0

    @property
    def needs_closed_form(self) -> bool:
        """Whether the closed form is computed: for predictions, or for the noise of the training."""
        return self.has_closed_form or self.noise > 0

    @property
    def in_training(self) -> ModelOptions:
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
