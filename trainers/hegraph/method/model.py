"""The model: graph -> message passing -> two classifiers. It takes features, never images.

Once it is trained, the graph is no longer needed: it folds into `[K, d]` class weights and `[N, d]` keys.

"HeGraphAdapter: Tuning Multi-Modal Vision-Language Models with Heterogeneous Graph Adapter".

Shapes: B queries, K classes, N cached images, d feature width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache, cached_property
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..features.bank import FeatureBank
from .cache import FoldedClassifier, Logits, moved_keys, shifted_cache_logits, text_logits
from .closed_form import ClosedFormMessages, add_messages, training_free_classifier
from .graph import HeteroGraph, build_graph, class_prototypes
from .layers import HeteroMessagePassing
from .options import UNTRAINED, ModelOptions


class Classifier(NamedTuple):
    """What message passing gives to the two classifiers.

    Attributes:
        class_features: Refined positive text features `X_p'`, shape `[K, d]`.
        shift: What moves the cached image features of each class, `gamma B`, shape `[K, d]`; None without a
            cache classifier.
    """

    class_features: Tensor
    shift: Tensor | None


class HeGraphModel(nn.Module):
    """Adapts the classifiers of a frozen CLIP by message passing on a heterogeneous graph.

    Args:
        graph: Positive text, negative text and visual nodes with their six relations.
        cache_keys: Unit-norm features of the fine-tuning images, shape `[N, d]`.
        cache_labels: Their labels, shape `[N]`.
        logit_scale: CLIP's `tau`.
        options: What the model is asked to be.
        messages: In closed form, as the options ask for them; None works them out.

    Attributes:
        messages: What text nodes receive in closed form, with the noise of training; None where neither is asked for.
    """

    cache_keys: Tensor
    cache_labels: Tensor
    x_positive: Tensor

    def __init__(
        self,
        graph: HeteroGraph,
        cache_keys: Tensor,
        cache_labels: Tensor,
        logit_scale: float,
        options: ModelOptions,
        messages: ClosedFormMessages | None = None,
    ) -> None:
        super().__init__()
        self.num_classes = graph.num_classes
        self.logit_scale = logit_scale
        self.options = options
        # Not part of a checkpoint: they come from the features
        self.register_buffer("cache_keys", cache_keys, persistent=False)
        self.register_buffer("cache_labels", cache_labels, persistent=False)
        self.register_buffer("x_positive", graph.x_dict["positive"], persistent=False)
        self.messages: ClosedFormMessages | None = None
        if options.needs_messages:
            text = graph.x_dict["positive"]
            self.messages = messages or closed_form_messages(
                cache_keys, cache_labels, text, options.closed_form.kappa, options.closed_form.rho, options.shuffle
            )
        self.layers: HeteroMessagePassing | None = None
        if options.variant not in UNTRAINED:
            self.layers = message_passing(graph, options.variant_metapath, options, options.bias, options.has_cache)

    def forward(
        self,
        features: Tensor,
        own: Tensor | None = None,
        products: Tensor | None = None,
        text_queries: Tensor | None = None,
    ) -> Logits:
        """Logits of unit-norm image features `[B, d]` as training sees them, without the messages in closed form; the
        arguments are those of `classify`.
        """
        return self.classify(features, self.adapt(), own, products, text_queries)

    def with_noise(self, features: Tensor, generator: torch.Generator) -> Tensor:
        """Features `[B, d]`, each moved by the deviation of a random cached image, with a random sign, from its class.

            f~ = norm(f + nu q r_j),  q = +-1

        The loss of the text classifier is taken at `f~`; `closed_form.py` has `r_j`.
        """
        if self.messages is None or self.options.noise == 0:
            return features
        noise = self.messages.noise
        drawn = torch.randint(len(noise), (len(features),), generator=generator).to(features.device)
        signs = 2 * torch.randint(2, (len(features), 1), generator=generator).to(features.device) - 1
        return F.normalize(features + self.options.noise * signs * noise.index_select(0, drawn), dim=-1)

    def adapt(self) -> Classifier:
        """Passes messages. The result holds for every query until a parameter changes."""
        if self.layers is None:
            return Classifier(self.x_positive, None)
        adapted = self.layers()
        if adapted.visual_bias is None:
            return Classifier(adapted.positive, None)
        return Classifier(adapted.positive, self.options.gamma * adapted.visual_bias)

    def classify(
        self,
        features: Tensor,
        classifier: Classifier,
        own: Tensor | None = None,
        products: Tensor | None = None,
        text_queries: Tensor | None = None,
    ) -> Logits:
        """Applies the two heads.

        Args:
            features: Unit-norm image features, shape `[B, d]`.
            classifier: From `adapt`.
            own: Positions of the queries in the cache, shape `[B]`, where they are cached images themselves: a query
                then does not match its own key. None where no query is in the cache.
            products: `features @ cache_keys.t()`, shape `[B, N]`, where they are known already.
            text_queries: What the text classifier sees in place of `features`, shape `[B, d]`; see `with_noise`.
        """
        queries = features if text_queries is None else text_queries
        text = text_logits(queries, classifier.class_features, self.logit_scale)
        if classifier.shift is None:
            return Logits(text, None)
        keys, labels = self.cache_keys, self.cache_labels
        visual = shifted_cache_logits(features, keys, classifier.shift, labels, self.options.beta_c, own, products)
        return Logits(text, visual)

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
    def fold(self, classifier: Classifier | None = None) -> FoldedClassifier:
        """Keeps what prediction needs of a classifier from `adapt_to_test`; None passes the messages here."""
        options, closed = self.options, self.options.closed_form
        if options.variant == "free":
            assert self.messages is not None  # see `ModelOptions.needs_messages`
            keys, labels, text = self.cache_keys, self.cache_labels, self.x_positive
            return training_free_classifier(keys, labels, text, self.logit_scale, self.messages, closed)
        classifier = classifier or self.adapt_to_test()
        folded = FoldedClassifier(self.logit_scale * F.normalize(classifier.class_features, dim=-1))
        if self.text_messages is not None:
            folded = add_messages(folded, self.text_messages, closed.omega * self.logit_scale)
        if classifier.shift is None:
            return folded
        keys = F.normalize(moved_keys(self.cache_keys, classifier.shift, self.cache_labels), dim=-1)
        return replace(folded, keys=keys, labels=self.cache_labels, alpha=options.alpha_c, beta=options.beta_c)

    @property
    def text_messages(self) -> ClosedFormMessages | None:
        """What text nodes receive in closed form; None where `messages` are there for the noise of training alone."""
        return self.messages if self.options.has_closed_form else None

    @torch.no_grad()
    def adapt_to_test(self) -> Classifier:
        """`adapt` in evaluation mode."""
        training = self.training
        self.eval()
        classifier = self.adapt()
        self.train(training)
        return classifier


def closed_form_messages(
    keys: Tensor, labels: Tensor, text: Tensor, kappa: float, rho: float, shuffle: str
) -> ClosedFormMessages:
    """The messages in closed form, to wrong classes where `shuffle` says so.

    Args:
        keys, labels, text, kappa, rho: As of `ClosedFormMessages`.
        shuffle: As of `ModelOptions`.
    """
    others = shuffled(len(text)).to(text.device)
    sent = text[others] if shuffle == "text_to_visual" else text
    return ClosedFormMessages(keys, labels, sent, kappa, rho, others if shuffle == "visual_to_text" else None)


def shuffled(num_classes: int) -> Tensor:
    """Another class for every class, shape `[K]`; always the same ones."""
    order = torch.randperm(num_classes, generator=torch.Generator().manual_seed(0))
    others = torch.empty_like(order)
    others[order] = order.roll(1)
    return others


def message_passing(
    graph: HeteroGraph, metapath: Mapping[str, float], options: ModelOptions, bias: bool, visual: bool
) -> HeteroMessagePassing:
    """The layers that the options ask for. What depends on the graph's nodes is given beside them."""
    return HeteroMessagePassing(
        graph,
        metapath,
        activation=options.activation,
        weight_per=options.weight_per,
        weight_init=options.weight_init,
        bias=bias,
        learn_metapath=options.learn_metapath,
        visual=visual,
        text_weights=options.text_weights,
    )


class Foundation:
    """What models of one task are built on: features, which no training changes.

    Models whose options differ can share it. Each part is worked out when it is first asked for, and once; the keys are
    the bank's, which keeps them.

    Args:
        bank: The task's features.
    """

    def __init__(self, bank: FeatureBank) -> None:
        self.bank = bank
        self._graph, self._messages = cache(self._build_graph), cache(self._pass_messages)

    @cached_property
    def prototypes(self) -> Tensor:
        """The visual nodes, shape `[K, d]`."""
        return class_prototypes(self.bank.cache_keys(), self.bank.train_labels, list(self.bank.classnames))

    def graph(self, options: ModelOptions) -> HeteroGraph:
        """The graph that the options ask for."""
        return self._graph(options.shuffle == "negative")

    def messages(self, options: ModelOptions) -> ClosedFormMessages | None:
        """The messages in closed form that the options ask for; None where they ask for none."""
        if not options.needs_messages:
            return None
        return self._messages(options.closed_form.kappa, options.closed_form.rho, options.shuffle)

    def _build_graph(self, wrong_negatives: bool) -> HeteroGraph:
        negative = self.bank.text_negative
        if wrong_negatives:
            negative = negative[shuffled(len(negative)).to(negative.device)]
        return build_graph(self.bank.text_positive, negative, self.prototypes)

    def _pass_messages(self, kappa: float, rho: float, shuffle: str) -> ClosedFormMessages:
        text = self._graph(shuffle == "negative").x_dict["positive"]
        return closed_form_messages(self.bank.cache_keys(), self.bank.train_labels, text, kappa, rho, shuffle)


def build_model(bank: FeatureBank, options: ModelOptions, foundation: Foundation | None = None) -> HeGraphModel:
    """The untrained adapter of a few-shot task, on the device of its features.

    Args:
        bank: The task's features.
        options: What the model is asked to be.
        foundation: Of the same bank, where other models share it.

    Raises:
        UserError: If a class has no training image.
    """
    base, keys = foundation or Foundation(bank), bank.cache_keys()
    graph, messages = base.graph(options), base.messages(options)
    return HeGraphModel(graph, keys, bank.train_labels, bank.logit_scale, options, messages).to(keys.device)
