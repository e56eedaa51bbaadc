"""What the model can be asked to be. No configuration tree reaches the model: `config.model_options` makes this of
it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from .relations import REFINED, RELATIONS, metapath_defaults

VARIANTS = ("base", "free", "T-N", "T-P", "T", "full")

# Controls of the ablation: what a relation tells each class is given to another class instead
SHUFFLES = ("none", "text_to_visual", "visual_to_text", "negative")

UNTRAINED = ("base", "free")  # they have no parameters


@dataclass(frozen=True)
class ClosedFormOptions:
    """Constants of the closed form (`closed_form.py`), as they apply to a number of shots.

    Attributes:
        kappa: `kappa`, how many images of a class its text counts as.
        rho: `rho`, the strength of the covariance's ridge, times d / N.
        omega: `omega`, the weight of its messages in the logits; 0: none are passed.
    """

    kappa: float = 4.0
    rho: float = 0.3
    omega: float = 0.0


@dataclass(frozen=True)
class ModelOptions:
    """Options of `HeGraphModel`, with the symbols of the paper.

    Attributes:
        variant: The row of the paper's Table 2, or "free", which is not in the paper: the closed form alone, and no
            training. "base": zero-shot CLIP. "T-N": positive text nodes receive messages from negative ones only;
            "T-P": from all others. "T": from all. "full": T with the cache classifier.
        metapath: Meta-path weights by configuration key: `alpha_pp`, `alpha_vp`, `alpha_np` (Eq. 4), `beta_pn`,
            `beta_vn` (Eq. 2), and `ALPHA_NP_TEST`, which takes the place of `alpha_np` in evaluation mode. A relation
            of weight 0 is left out.
        learn_metapath: Whether the meta-path weights are trained (Table 3). Then `ALPHA_NP_TEST` is not used.
        weight_init: What each `W` starts at: "identity", "xavier" (uniform) or "zero".
        text_weights: Whether messages to text nodes have a `W`. Without one a message is `tanh(b)`: a trained bias for
            each class and relation, and no class hears of another but in closed form.
        bias: Whether each message has a trainable bias per class, `b`, which starts at zero.
        beta_c: `beta_c`, the sharpness of the cache affinities (Eq. 8).
        alpha_c: `alpha_c`, the weight of the cache's logits in the prediction.
        closed_form: Constants of the closed form.
        shuffle: One of `SHUFFLES`. "text_to_visual" and "visual_to_text": messages in closed form go to wrong classes;
            "negative": every class has the negative text node of another.
        noise: Length of the within-class noise that training adds to a query, 1 for that of the images; 0: none.
    """

    variant: str = "full"
    metapath: Mapping[str, float] = field(default_factory=metapath_defaults)
    learn_metapath: bool = False
    weight_init: str = "identity"
    text_weights: bool = True
    bias: bool = True
    beta_c: float = 1.0
    alpha_c: float = 8.0
    closed_form: ClosedFormOptions = field(default_factory=ClosedFormOptions)
    noise: float = 0.0
    shuffle: str = "none"

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
