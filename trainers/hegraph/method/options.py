"""What the model can be asked to be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from ..utils.option import NODE, POSITIVE_BY_SHOTS, ROWS, Option, option
from .relations import REFINED, RELATIONS, metapath_defaults

VARIANTS = ("base", "free", "T-N", "T-P", "T", "full")

# Controls of the ablation: what a relation tells each class is given to another class instead
SHUFFLES = ("none", "text_to_visual", "visual_to_text", "negative")

UNTRAINED = ("base", "free")  # they have no parameters


@dataclass(frozen=True)
class ClosedFormOptions:
    """Constants of the closed form (`closed_form.py`), as they apply to a number of shots."""

    kappa: float = option(
        4.0,
        f"{NODE}.CLOSED_FORM.KAPPA",
        "how many images of a class its text counts as",
        filled=True,
        above=0,
        shapes_model=True,
    )
    rho: float = option(
        0.3,
        f"{NODE}.CLOSED_FORM.RHO",
        "strength of the covariance's ridge, times feature width over images",
        above=0,
        shapes_model=True,
    )
    omega: float = option(
        0.0,
        f"{NODE}.CLOSED_FORM.OMEGA",
        "weight of the messages in the logits; 0: none, as in the paper",
        filled=True,
        least=0,
        shapes_model=True,
    )


@dataclass(frozen=True)
class FreeOptions:
    """What takes the place of `ClosedFormOptions` in the variant "free"."""

    kappa: float = option(
        4.0,
        f"{NODE}.FREE.KAPPA",
        f"how many images of a class its text counts as; {ROWS}",
        configured=[[1, 4.0], [2, 2.0]],
        rows=POSITIVE_BY_SHOTS,
        by_shots=True,
        above=0,
        shapes_model=True,
    )
    rho: float = option(
        0.3,
        f"{NODE}.FREE.RHO",
        "strength of the covariance's ridge, times feature width over images",
        above=0,
        shapes_model=True,
    )
    omega: float = option(
        0.15,
        f"{NODE}.FREE.OMEGA",
        f"weight of the messages in the logits; {ROWS}",
        configured=[[1, 0.15], [8, 0.3], [16, 0.4]],
        rows=POSITIVE_BY_SHOTS,
        by_shots=True,
        above=0,
        shapes_model=True,
    )


def metapath_options() -> dict[str, Option]:
    """Key of each meta-path weight (Eq. 2 and 4), below the node of HeGraphAdapter -> its declaration."""
    found = {}
    for relation in RELATIONS:
        for key, weight in relation.keys.items():
            meaning = f"weight of the messages {relation.source} → {relation.target}"
            symbol = "Eq. 4" if relation.target == REFINED else "Eq. 2"
            if key != relation.weight_key:
                meaning = f"{relation.weight_key} in testing; unused with `LEARN_METAPATH`, and without `TEXT_W`"
                symbol = "section 4.1"
            found[key] = Option(f"{NODE}.{key}", weight, meaning, symbol=symbol, shapes_model=True)
    return found


@dataclass(frozen=True)
class ModelOptions:
    """Options of `HeGraphModel`. Python's defaults are the paper's; those of the keys are our recipe."""

    variant: str = option(
        "full",
        f"{NODE}.VARIANT",
        "`full`: both classifiers; `T`: the text classifier alone, without the cache; `T-N`: only negative text nodes "
        "send messages to positive ones; `T-P`: only positive text and visual nodes do; `base`: zero-shot CLIP; "
        "`free`, which is not in the paper: messages in closed form and no training",
        choices=VARIANTS,
        symbol="Table 2",
        shapes_model=True,
    )
    # By key; a relation of weight 0 is left out
    metapath: Mapping[str, float] = field(default_factory=metapath_defaults, metadata={"options": metapath_options()})
    learn_metapath: bool = option(
        False,
        f"{NODE}.LEARN_METAPATH",
        "train these weights; a relation of weight 0 is left out all the same",
        symbol="Table 3, last column",
        shapes_model=True,
    )
    weight_init: str = option(
        "identity",
        f"{NODE}.WEIGHT_INIT",
        "what `W` starts at",
        configured="zero",
        choices=("identity", "xavier", "zero"),
        symbol="left open",
        shapes_model=True,
    )
    text_weights: bool = option(
        True,
        f"{NODE}.TEXT_W",
        "whether messages to text nodes have a `W`; without one a message is the bias of its class and relation, and "
        "what other classes say arrives in closed form alone (below)",
        symbol="`True`",
        shapes_model=True,
    )
    bias: bool = option(
        True, f"{NODE}.BIAS", "a trainable bias for each class and relation", symbol="left open", shapes_model=True
    )
    beta_c: float = option(
        1.0,
        f"{NODE}.BETA_C",
        "sharpness of the cache affinities",
        least=0,
        symbol="β of Tip-Adapter, Eq. 8",
        shapes_model=True,
    )
    alpha_c: float = option(
        8.0,
        f"{NODE}.ALPHA_C",
        "weight of the visual logits in the prediction",
        filled=True,
        symbol="α of Tip-Adapter",  # noqa: RUF001
        shapes_model=True,
    )
    closed_form: ClosedFormOptions = field(default_factory=ClosedFormOptions)
    noise: float = option(
        0.0,
        f"{NODE}.NOISE",
        "within-class noise: in training, a query of the text classifier is moved by another image's deviation from "
        "its class, times this; 0: none, as in the paper",
        configured=1.0,
        least=0,
        shapes_model=True,
    )
    shuffle: str = option(
        "none",
        f"{NODE}.SHUFFLE",
        "a control of the ablation: the messages of this relation go to wrong classes, or each class has the negative "
        "text node of another",
        choices=SHUFFLES,
        shapes_model=True,
    )

    @property
    def has_closed_form(self) -> bool:
        """Whether text nodes receive messages in closed form."""
        return self.variant in ("free", "T-P", "T", "full") and self.closed_form.omega > 0

    @property
    def needs_closed_form(self) -> bool:
        """Whether it is worked out: for text nodes, or for the noise of training. All of "free" is made of it."""
        return self.has_closed_form or self.noise > 0 or self.variant == "free"

    @property
    def in_training(self) -> ModelOptions:
        """The options as training sees them: with defaults for what weighs predictions alone."""
        return replace(self, alpha_c=ModelOptions.alpha_c, closed_form=ClosedFormOptions(kappa=self.closed_form.kappa))

    @property
    def has_cache(self) -> bool:
        """Whether the variant has the cache classifier, and so messages among visual nodes."""
        return self.variant == "full"

    @property
    def variant_metapath(self) -> dict[str, float]:
        """The meta-path weights that the variant uses; those of the relations that it leaves out are zero."""
        weights = dict(self.metapath)
        for relation in RELATIONS:
            left_out = {"T-N": relation.source != "negative", "T-P": relation.source == "negative"}
            if relation.target == REFINED and left_out.get(self.variant, False):
                weights[relation.weight_key] = 0.0
        return weights
