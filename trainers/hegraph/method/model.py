"""HeGraphAdapter: graph -> message passing -> two classifiers. Takes features, never images.

Once trained, the graph is no longer needed: it folds into `[K, d]` class weights and `[N, d]` keys.

"HeGraphAdapter: Tuning Multi-Modal Vision-Language Models with Heterogeneous Graph Adapter".

Shapes: B queries, K classes, N cached images, d feature width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from yacs.config import CfgNode

from .cache import cache_sums, moved_keys, shifted_cache_logits
from .graph import (
    NEGATIVE_TO_POSITIVE,
    POSITIVE_TO_NEGATIVE,
    POSITIVE_TO_POSITIVE,
    VISUAL_TO_NEGATIVE,
    VISUAL_TO_POSITIVE,
    EdgeType,
    HeteroGraph,
)
from .heads import text_logits
from .layers import HeteroMessagePassing


class Classifier(NamedTuple):
    """What message passing yields: all that the two heads need.

    Attributes:
        class_features: Refined positive text features `X_p'`, shape `[K, d]`.
        shift: What moves the cached image features of each class, `gamma B`, shape `[K, d]`; None without a
            visual classifier.
    """

    class_features: Tensor
    shift: Tensor | None


class Folded(NamedTuple):
    """A trained adapter without its graph.

    Attributes:
        weights: Of the text classifier, `tau X_p' / |X_p'|`, shape `[K, d]`.
        keys: Unit-norm refined cached image features `F_hat`, shape `[N, d]`; None without a visual classifier.
    """

    weights: Tensor
    keys: Tensor | None


class Logits(NamedTuple):
    """Logits of the two classifiers, each `[B, K]`; `visual` is None without a visual classifier."""

    text: Tensor
    visual: Tensor | None


class HeGraphAdapter(nn.Module):
    """Adapts the classifiers of a frozen CLIP by message passing on a heterogeneous graph.

    Args:
        graph: Positive text, negative text and visual nodes with their six relations.
        cache_keys: Unit-norm features of the fine-tuning images, shape `[N, d]`.
        cache_labels: Their labels, shape `[N]`.
        logit_scale: CLIP's `tau`.
        options: `cfg.TRAINER.HEGRAPHADAPTER`.
    """

    def __init__(
        self, graph: HeteroGraph, cache_keys: Tensor, cache_labels: Tensor, logit_scale: float, options: CfgNode
    ) -> None:
        super().__init__()
        self.num_classes = graph.num_classes
        self.logit_scale = logit_scale
        self.options, self.variant, self.activation = options, options.VARIANT, options.ACTIVATION
        self.gamma, self.beta_c, self.alpha_c = options.GAMMA, options.BETA_C, options.ALPHA_C
        # Not part of a checkpoint: they come from the features
        self.register_buffer("cache_keys", cache_keys, persistent=False)
        self.register_buffer("cache_labels", cache_labels, persistent=False)
        self.register_buffer("x_positive", graph.x_dict["positive"], persistent=False)
        self.layers = None
        if self.variant != "base":
            visual = self.variant == "full"
            self.layers = message_passing(graph, metapath_weights(options), options, options.BIAS, visual)

    def forward(self, features: Tensor, own: Tensor | None = None, products: Tensor | None = None) -> Logits:
        """Logits of unit-norm image features `[B, d]`; `own` and `products` as in `classify`."""
        return self.classify(features, self.adapt(), own, products)

    def adapt(self) -> Classifier:
        """Passes messages. The result holds for every query as long as no parameter changes."""
        if self.layers is None:
            return Classifier(self.x_positive, None)
        adapted = self.layers()
        if adapted.visual_bias is None:
            return Classifier(adapted.positive, None)
        return Classifier(adapted.positive, self.gamma * adapted.visual_bias)

    def classify(
        self,
        features: Tensor,
        classifier: Classifier,
        own: Tensor | None = None,
        products: Tensor | None = None,
    ) -> Logits:
        """Applies the two heads.

        Args:
            features: Unit-norm image features, shape `[B, d]`.
            classifier: From `adapt`.
            own: For queries that are themselves in the cache, their positions there, shape `[B]`; a query
                does not match its own key. None: none of them is.
            products: `features @ cache_keys.t()`, shape `[B, N]`, if they are known.
        """
        text = text_logits(features, classifier.class_features, self.logit_scale)
        if classifier.shift is None:
            return Logits(text, None)
        keys, labels = self.cache_keys, self.cache_labels
        visual = shifted_cache_logits(features, keys, classifier.shift, labels, self.beta_c, own, products)
        return Logits(text, visual)

    def combine(self, logits: Logits) -> Tensor:
        """The prediction `z_t + alpha_c z_v`, shape `[B, K]`; `z_t` alone without a visual classifier."""
        return logits.text if logits.visual is None else logits.text + self.alpha_c * logits.visual

    def parameter_groups(self, lr: float, weight_lr_mult: float, visual_lr: float) -> list[dict]:
        """The trainable parameters with their learning rates, for an optimizer.

        Biases and meta-path weights learn at `lr`, matrices at `lr * weight_lr_mult`, and what belongs to the
        visual relation at `visual_lr`.
        """
        if self.layers is None:
            return []
        rates = {"weights": lr * weight_lr_mult, "biases": lr, "visual": visual_lr}
        groups = self.layers.parameters_by_role()
        return [{"params": parameters, "lr": rates[role]} for role, parameters in groups.items() if parameters]

    @torch.no_grad()
    def fold(self) -> Folded:
        """Passes messages in evaluation mode, once, and keeps what prediction needs."""
        training = self.training
        self.eval()
        classifier = self.adapt()
        self.train(training)
        weights = self.logit_scale * F.normalize(classifier.class_features, dim=-1)
        if classifier.shift is None:
            return Folded(weights, None)
        return Folded(weights, F.normalize(moved_keys(self.cache_keys, classifier.shift, self.cache_labels), dim=-1))

    @torch.no_grad()
    def predict(self, features: Tensor, batch_size: int = 1024, folded: Folded | None = None) -> Logits:
        """Logits of many features `[M, d]` in evaluation mode.

        Args:
            features: Unit-norm image features, shape `[M, d]`.
            batch_size: Of them, that meet the cache at once.
            folded: From `fold`, for several predictions with the same parameters; None: folded now.
        """
        folded = folded or self.fold()
        text = features @ folded.weights.t()
        if folded.keys is None:
            return Logits(text, None)
        labels, count = self.cache_labels, self.num_classes
        visual = [cache_sums(batch, folded.keys, labels, self.beta_c, count) for batch in features.split(batch_size)]
        return Logits(text, torch.cat(visual))


def message_passing(
    graph: HeteroGraph, metapath: dict[EdgeType, float], options: CfgNode, bias: bool, visual: bool
) -> HeteroMessagePassing:
    """The layers of `cfg.TRAINER.HEGRAPHADAPTER`; what the nodes of the graph decide is given beside it."""
    return HeteroMessagePassing(
        graph,
        metapath,
        metapath_np_test=options.ALPHA_NP_TEST,
        activation=options.ACTIVATION,
        weight_per=options.WEIGHT_PER,
        weight_init=options.WEIGHT_INIT,
        bias=bias,
        learn_metapath=options.LEARN_METAPATH,
        visual=visual,
    )


def metapath_weights(options: CfgNode) -> dict[EdgeType, float]:
    """The meta-path weights that a variant uses (Table 2 of the paper); the rest are zero."""
    weights = {
        POSITIVE_TO_NEGATIVE: options.BETA_PN,
        VISUAL_TO_NEGATIVE: options.BETA_VN,
        POSITIVE_TO_POSITIVE: options.ALPHA_PP,
        VISUAL_TO_POSITIVE: options.ALPHA_VP,
        NEGATIVE_TO_POSITIVE: options.ALPHA_NP,
    }
    if options.VARIANT == "T-N":  # messages from the updated negative nodes only
        weights[POSITIVE_TO_POSITIVE] = weights[VISUAL_TO_POSITIVE] = 0.0
    elif options.VARIANT == "T-P":  # relations among positive text and visual nodes only
        weights[NEGATIVE_TO_POSITIVE] = 0.0
    return weights
