"""The model: graph -> message passing -> two classifiers. It takes features, never images.

Once it is trained, the graph is no longer needed: it folds into `[K, d]` class weights and `[N, d]` keys.

"HeGraphAdapter: Tuning Multi-Modal Vision-Language Models with Heterogeneous Graph Adapter".

Shapes: B queries, K classes, N cached images, d feature width.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..features.bank import FeatureBank
from .cache import FoldedClassifier, Logits, moved_keys, shifted_cache_logits, text_logits
from .closed_form import ClosedForm, add_messages, training_free_classifier
from .graph import HeteroGraph, build_graph, class_prototypes
from .layers import Adapted, HeteroMessagePassing
from .options import UNTRAINED, ModelOptions


class HeGraphModel(nn.Module):
    """Adapts the classifiers of a frozen CLIP by message passing on a heterogeneous graph.

    Args:
        graph: Positive text, negative text and visual nodes with their six relations.
        cache_keys: Unit-norm features of the fine-tuning images, shape `[N, d]`.
        cache_labels: Their labels, shape `[N]`.
        logit_scale: CLIP's `tau`.
        options: What the model is asked to be.

    Attributes:
        layers: Message passing; None for a variant without training.
        closed_form: Of the images and the text; None where neither its messages nor its noise is asked for.
    """

    cache_keys: Tensor
    cache_labels: Tensor
    x_positive: Tensor

    def __init__(
        self, graph: HeteroGraph, cache_keys: Tensor, cache_labels: Tensor, logit_scale: float, options: ModelOptions
    ) -> None:
        super().__init__()
        self.num_classes = graph.num_classes
        self.logit_scale = logit_scale
        self.options = options
        # Not part of a checkpoint: they come from the features
        self.register_buffer("cache_keys", cache_keys, persistent=False)
        self.register_buffer("cache_labels", cache_labels, persistent=False)
        self.register_buffer("x_positive", graph.x_dict["positive"], persistent=False)
        self.closed_form = self._closed_form() if options.needs_closed_form else None
        self.layers: HeteroMessagePassing | None = None
        if options.variant not in UNTRAINED:
            self.layers = HeteroMessagePassing(
                graph,
                options.variant_metapath,
                options.weight_init,
                options.bias,
                options.learn_metapath,
                visual=options.has_cache,
                text_weights=options.text_weights,
            )

    def forward(
        self,
        features: Tensor,
        own: Tensor | None = None,
        products: Tensor | None = None,
        text_queries: Tensor | None = None,
    ) -> Logits:
        """Logits of the two classifiers as training sees them, without the messages in closed form.

        Args:
            features: Unit-norm image features, shape `[B, d]`.
            own: Positions of the queries in the cache, shape `[B]`, where they are cached images themselves: a query
                then does not match its own key. None where no query is in the cache.
            products: `features @ cache_keys.t()`, shape `[B, N]`, where they are known already.
            text_queries: What the text classifier sees in place of `features`, shape `[B, d]`; see `with_noise`.
        """
        adapted = self.adapt()
        queries = features if text_queries is None else text_queries
        text = text_logits(queries, adapted.positive, self.logit_scale)
        if adapted.visual_bias is None:
            return Logits(text, None)
        keys, labels = self.cache_keys, self.cache_labels
        visual = shifted_cache_logits(features, keys, adapted.visual_bias, labels, self.options.beta_c, own, products)
        return Logits(text, visual)

    def adapt(self) -> Adapted:
        """Passes messages. The result holds for every query until a parameter changes."""
        return Adapted(self.x_positive, None) if self.layers is None else self.layers()

    @torch.no_grad()
    def adapt_to_test(self) -> Adapted:
        """`adapt` in evaluation mode."""
        training = self.training
        self.eval()
        adapted = self.adapt()
        self.train(training)
        return adapted

    @torch.no_grad()
    def fold(self, adapted: Adapted | None = None) -> FoldedClassifier:
        """Keeps what prediction needs of the nodes from `adapt_to_test`; None passes the messages here."""
        options, strength = self.options, self.options.closed_form.omega * self.logit_scale
        if options.variant == "free":
            assert self.closed_form is not None  # see `ModelOptions.needs_closed_form`
            omega = options.closed_form.omega
            return training_free_classifier(self.closed_form, self.x_positive, self.logit_scale, omega)
        adapted = adapted or self.adapt_to_test()
        folded = FoldedClassifier(self.logit_scale * F.normalize(adapted.positive, dim=-1))
        if self.closed_form is not None and options.has_closed_form:
            folded = add_messages(folded, self.closed_form.to_text, strength)
        if adapted.visual_bias is None:
            return folded
        keys = F.normalize(moved_keys(self.cache_keys, adapted.visual_bias, self.cache_labels), dim=-1)
        return replace(folded, keys=keys, labels=self.cache_labels, alpha=options.alpha_c, beta=options.beta_c)

    def with_noise(self, features: Tensor, generator: torch.Generator) -> Tensor:
        """Features `[B, d]`, each moved by the deviation of a random cached image, with a random sign, from its class.

            f~ = norm(f + nu q r_j),  q = +-1

        The loss of the text classifier is taken at `f~`; `closed_form.py` has `r_j`.
        """
        if self.closed_form is None or self.options.noise == 0:
            return features
        noise = self.closed_form.noise
        drawn = torch.randint(len(noise), (len(features),), generator=generator).to(features.device)
        signs = 2 * torch.randint(2, (len(features), 1), generator=generator).to(features.device) - 1
        return F.normalize(features + self.options.noise * signs * noise.index_select(0, drawn), dim=-1)

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

    def _closed_form(self) -> ClosedForm:
        """The closed form, with messages to wrong classes where the options say so."""
        text, options = self.x_positive, self.options
        others = shuffled(len(text)).to(text.device)
        sent = text[others] if options.shuffle == "text_to_visual" else text
        receivers = others if options.shuffle == "visual_to_text" else None
        constants = options.closed_form
        return ClosedForm(self.cache_keys, self.cache_labels, sent, constants.kappa, constants.rho, receivers)


def shuffled(num_classes: int) -> Tensor:
    """Another class for every class, shape `[K]`; always the same ones."""
    order = torch.randperm(num_classes, generator=torch.Generator().manual_seed(0))
    others = torch.empty_like(order)
    others[order] = order.roll(1)
    return others


def build_model(bank: FeatureBank, options: ModelOptions) -> HeGraphModel:
    """The untrained adapter of a few-shot task, on the device of its features.

    Raises:
        UserError: If a class has no training image.
    """
    keys, negative = bank.cache_keys(), bank.text_negative
    if options.shuffle == "negative":
        negative = negative[shuffled(len(negative)).to(negative.device)]
    visual = class_prototypes(keys, bank.train_labels, list(bank.classnames))
    graph = build_graph(bank.text_positive, negative, visual)
    return HeGraphModel(graph, keys, bank.train_labels, bank.logit_scale, options).to(keys.device)
