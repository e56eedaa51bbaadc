"""What the model can be asked to be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial

from ..utils.option import NODE, POSITIVE_BY_SHOTS, ROWS, Option, option
from .relations import REFINED, RELATIONS, RelationType

VARIANTS = ("base", "free", "T-N", "T-P", "T", "full")
INITS = ("identity", "xavier", "zero")

# Controls of the ablation: what a relation tells each class is given to another class instead
SHUFFLES = ("none", "text_to_visual", "visual_to_text", "negative")

UNTRAINED = ("base", "free")  # they have no parameters

_kept = partial(option, shapes_model=True)  # in a trained model, so that a test cannot change it
_by_shots = partial(_kept, rows=POSITIVE_BY_SHOTS, by_shots=True, above=0)
CLOSED, FREE = f"{NODE}.CLOSED_FORM", f"{NODE}.FREE"
KAPPA, OMEGA = "how many images of a class its text counts as", "weight of the messages in the logits"
RHO = "strength of the covariance's ridge, times feature width over images"


@dataclass(frozen=True)
class ClosedFormOptions:
    """Constants of the closed form (`closed_form.py`), as they apply to a number of shots."""

    kappa: float = _kept(4.0, f"{CLOSED}.KAPPA", KAPPA, filled=True, above=0)
    rho: float = _kept(0.3, f"{CLOSED}.RHO", RHO, above=0)
    omega: float = _kept(0.0, f"{CLOSED}.OMEGA", f"{OMEGA}; 0: none, as in the paper", filled=True, least=0)


@dataclass(frozen=True)
class FreeOptions:
    """What takes the place of `ClosedFormOptions` in the variant "free"."""

    kappa: float = _by_shots(4.0, f"{FREE}.KAPPA", f"{KAPPA}; {ROWS}", configured=[[1, 4.0], [2, 2.0]])
    rho: float = _kept(0.3, f"{FREE}.RHO", RHO, above=0)
    omega: float = _by_shots(0.15, f"{FREE}.OMEGA", f"{OMEGA}; {ROWS}", configured=[[1, 0.15], [8, 0.3], [16, 0.4]])


def metapath_options() -> dict[str, Option]:
    """Key of each meta-path weight (Eq. 2 and 4), below the node of HeGraphAdapter -> its declaration."""
    declared = partial(Option, shapes_model=True)
    found = {}
    for r in RELATIONS:
        if r.weight_key:
            symbol = "Eq. 4" if r.target == REFINED else "Eq. 2"
            meaning = f"weight of the messages {r.source} → {r.target}"
            found[r.weight_key] = declared(f"{NODE}.{r.weight_key}", r.weight, meaning, symbol=symbol)
        if r.weight_at_test is not None:
            meaning = f"{r.weight_key} in testing; unused with `LEARN_METAPATH`, and without `TEXT_W`"
            found[r.key_at_test] = declared(f"{NODE}.{r.key_at_test}", r.weight_at_test, meaning, symbol="section 4.1")
    return found


def metapath_defaults() -> dict[str, float]:
    """Every key of a meta-path weight, with its default."""
    return {key: declared.default for key, declared in metapath_options().items()}


@dataclass(frozen=True)
class ModelOptions:
    """Options of `HeGraphModel`. Python's defaults are the paper's; those of the keys are our recipe."""

    variant: str = _kept(
        "full",
        f"{NODE}.VARIANT",
        "`full`: both classifiers; `T`: the text classifier alone, without the cache; `T-N`: only negative text nodes "
        "send messages to positive ones; `T-P`: only positive text and visual nodes do; `base`: zero-shot CLIP; "
        "`free`, which is not in the paper: messages in closed form and no training",
        choices=VARIANTS,
        symbol="Table 2",
    )
    # By key; a relation of weight 0 is left out
    metapath: Mapping[str, float] = field(default_factory=metapath_defaults, metadata={"options": metapath_options()})
    learn_metapath: bool = _kept(
        False, f"{NODE}.LEARN_METAPATH", "train these weights, all but those of 0", symbol="Table 3, last column"
    )
    weight_init: str = _kept(
        "identity", f"{NODE}.WEIGHT_INIT", "what `W` starts at", configured="zero", choices=INITS, symbol="left open"
    )
    text_weights: bool = _kept(
        True,
        f"{NODE}.TEXT_W",
        "whether messages to text nodes have a `W`; without one a message is the bias of its class and relation",
        symbol="`True`",
    )
    bias: bool = _kept(True, f"{NODE}.BIAS", "a trainable bias for each class and relation", symbol="left open")
    beta_c: float = _kept(
        1.0, f"{NODE}.BETA_C", "sharpness of the cache affinities", least=0, symbol="β of Tip-Adapter, Eq. 8"
    )
    alpha_c: float = _kept(
        8.0, f"{NODE}.ALPHA_C", "weight of the visual logits in predictions", filled=True, symbol="alpha of Tip-Adapter"
    )
    closed_form: ClosedFormOptions = field(default_factory=ClosedFormOptions)
    noise: float = _kept(
        0.0,
        f"{NODE}.NOISE",
        "within-class noise: training moves a query of the text classifier by another image's deviation, times this",
        configured=1.0,
        least=0,
    )
    shuffle: str = _kept(
        "none",
        f"{NODE}.SHUFFLE",
        "a control of the ablation: the messages of this relation, or the negative text nodes, go to wrong classes",
        choices=SHUFFLES,
    )

    @property
    def has_closed_form(self) -> bool:
        """Whether text nodes receive messages in closed form."""
        return self.variant in ("free", "T-P", "T", "full") and self.closed_form.omega > 0

    @property
    def needs_closed_form(self) -> bool:
        """Whether it is worked out: for text nodes, or for the noise of training."""
        return self.has_closed_form or self.noise > 0

    @property
    def in_training(self) -> ModelOptions:
        """The options as training sees them: with defaults for what weighs predictions alone."""
        return replace(self, alpha_c=ModelOptions.alpha_c, closed_form=ClosedFormOptions(kappa=self.closed_form.kappa))

    @property
    def variant_metapath(self) -> dict[str, float]:
        """The meta-path weights that the variant uses; those of the relations that it leaves out are zero."""
        weights = dict(self.metapath)
        for relation in RELATIONS:
            left_out = "T-P" if relation.source == "negative" else "T-N"
            if relation.target == REFINED and self.variant == left_out:
                weights[relation.weight_key] = 0.0
        return weights

    @property
    def relations(self) -> tuple[RelationType, ...]:
        """The relations whose messages change the result, in the order of the table. One of weight 0 does not."""
        # The variant "full" has a cache, whose images the relation without a weight moves
        weights = self.variant_metapath | {"": float(self.variant == "full")}
        sending = [r for r in RELATIONS if weights.get(r.weight_key, 0.0)]
        # Without a `W`, messages to text nodes read no node; nodes that nobody reads receive their messages in vain
        read = {REFINED} | {r.source for r in sending if self.text_weights and not r.frozen}
        return tuple(r for r in sending if not r.weight_key or r.target in read)
