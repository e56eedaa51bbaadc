"""The model: graph -> message passing -> two classifiers. It takes features, never images.

Once it is trained, the graph is no longer needed: it folds into `[K, d]` class weights and `[N, d]` keys. What it can
say of classes that it was not trained on is a `TransferableAdapter`.

"HeGraphAdapter: Tuning Multi-Modal Vision-Language Models with Heterogeneous Graph Adapter".

Shapes: B queries, K classes, N cached images, d feature width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..features.bank import FeatureBank
from .cache import FoldedClassifier, Logits, moved_keys, shifted_cache_logits, text_logits
from .closed_form import OMEGA_NEW, ClosedForm, NewClassMessages, class_offsets
from .graph import HeteroGraph, build_graph, class_prototypes
from .layers import Adapted, HeteroMessagePassing
from .options import UNTRAINED, ModelOptions
from .relations import RELATIONS


class HeGraphModel(nn.Module):
    """Adapts the classifiers of a frozen CLIP by message passing on a heterogeneous graph.

    Attributes:
        cache_keys, cache_labels: Unit-norm features of the fine-tuning images, shape `[N, d]`, and their labels.
        logit_scale: CLIP's `tau`.
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
        self.num_classes, self.logit_scale, self.options = graph.num_classes, logit_scale, options
        # Not part of a checkpoint: they come from the features
        self.register_buffer("cache_keys", cache_keys, persistent=False)
        self.register_buffer("cache_labels", cache_labels, persistent=False)
        self.register_buffer("x_positive", graph.x_dict["positive"], persistent=False)
        self.layers = None if options.variant in UNTRAINED else HeteroMessagePassing(graph, options)
        self.closed_form: ClosedForm | None = None
        if options.needs_closed_form:
            text, constants = graph.x_dict["positive"], options.closed_form
            others = shuffled(len(text)).to(text.device)
            sent = text[others] if options.shuffle == "text_to_visual" else text
            receivers = others if options.shuffle == "visual_to_text" else None
            self.closed_form = ClosedForm(cache_keys, cache_labels, sent, constants.kappa, constants.rho, receivers)

    def forward(
        self, features: Tensor, own: Tensor | None = None, products: Tensor | None = None, noisy: Tensor | None = None
    ) -> Logits:
        """Logits of the two classifiers as training sees them, without the messages in closed form.

        Args:
            features: Unit-norm image features, shape `[B, d]`.
            own, products: As of `shifted_cache_logits`.
            noisy: What the text classifier sees in place of `features`, shape `[B, d]`, from `with_noise`.
        """
        adapted, keys, labels, beta = self.adapt(), self.cache_keys, self.cache_labels, self.options.beta_c
        text = text_logits(features if noisy is None else noisy, adapted.positive, self.logit_scale)
        if adapted.visual_bias is None:
            return Logits(text, None)
        return Logits(text, shifted_cache_logits(features, keys, adapted.visual_bias, labels, beta, own, products))

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
        options = self.options
        if options.variant == "free":
            offsets = class_offsets(self.logit_scale * self.cache_keys @ self.x_positive.t(), self.cache_labels)
            folded = FoldedClassifier(self.logit_scale * self.x_positive, offsets)
        else:
            adapted = adapted or self.adapt_to_test()
            folded = FoldedClassifier(self.logit_scale * F.normalize(adapted.positive, dim=-1))
        if self.closed_form is not None and options.has_closed_form:
            strength, messages = options.closed_form.omega * self.logit_scale, self.closed_form.to_text
            folded = folded.plus(strength * messages.weights, strength * messages.bias)
        if adapted is None or adapted.visual_bias is None:
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

        Biases and meta-path weights learn at `lr`, matrices at `lr * weight_lr_mult`, and `W` and bias of the visual
        relation at `visual_lr`.
        """
        rates = {"weights": lr * weight_lr_mult, "biases": lr, "visual": visual_lr}
        groups: dict[str, list[nn.Parameter]] = {role: [] for role in rates}
        moves_cache = {name for r in RELATIONS if not r.weight_key for name in (f"weight.{r.target}", f"bias.{r.name}")}
        for name, parameter in () if self.layers is None else self.layers.named_parameters():
            role = "visual" if name in moves_cache else "weights" if name.startswith("weight.") else "biases"
            groups[role].append(parameter)
        return [{"params": parameters, "lr": rates[role]} for role, parameters in groups.items() if parameters]


def build_model(bank: FeatureBank, options: ModelOptions) -> HeGraphModel:
    """The untrained adapter of a few-shot task, on the device of its features; UserError if a class has no image."""
    keys, negative = bank.cache_keys(), bank.text_negative
    if options.shuffle == "negative":
        negative = negative[shuffled(len(negative)).to(negative.device)]
    graph = build_graph(bank.text_positive, negative, class_prototypes(keys, bank.train_labels, bank.classnames))
    return HeGraphModel(graph, keys, bank.train_labels, bank.logit_scale, options).to(keys.device)


def shuffled(num_classes: int) -> Tensor:
    """Another class for every class, shape `[K]`; always the same ones."""
    order = torch.randperm(num_classes, generator=torch.Generator().manual_seed(0))
    others = torch.empty_like(order)
    others[order] = order.roll(1)
    return others


@dataclass(frozen=True)
class TransferableAdapter:
    """What a trained adapter can carry to classes that it was not trained on (CoCoOp's protocol).

    A bias and a visual node belong to a class that was seen in training. So in the graph of the new classes, positive
    and negative text nodes alone exchange messages, with the trained `W`. In closed form the relation from text to
    visual nodes says what the visual node of a new class should be, and the relation back passes it on.

    Attributes:
        parameters: The matrices `W` between text nodes, each `[d, d]`, and their learned meta-path weights, by the
            names of the layer's state.
        messages: In closed form; None where the model has none.
    """

    options: ModelOptions
    parameters: dict[str, Tensor]
    messages: NewClassMessages | None = None

    @classmethod
    def of(cls, model: HeGraphModel) -> TransferableAdapter:
        """What a trained model can carry to other classes."""
        closed = model.closed_form if model.options.has_closed_form else None
        empty = cls(model.options, {}, None if closed is None else closed.for_new_classes())
        state = {} if model.layers is None else model.layers.state_dict()
        return replace(empty, parameters={name: state[name] for name in empty.missing_parameters()})

    def to(self, device: str | torch.device) -> TransferableAdapter:
        """The adapter with all its tensors on a device."""
        parameters = {name: tensor.to(device) for name, tensor in self.parameters.items()}
        return replace(self, parameters=parameters, messages=self.messages and self.messages.to(device))

    @torch.no_grad()
    def class_features(self, positive: Tensor, negative: Tensor) -> Tensor:
        """Refined text features `X_p'` of new classes, `[K, d]`, from their text nodes, each `[K, d]`."""
        if (layers := self._layers(positive, negative)) is None:
            return positive
        layers.to(positive.device).load_state_dict({name: self.parameters[name] for name in layers.state_dict()})
        return layers.eval()().positive

    def missing_parameters(self) -> list[str]:
        """Names of parameters that the options need and that are not there."""
        layers = self._layers(torch.ones(1, 1), torch.ones(1, 1))  # the names depend on no size
        return [] if layers is None else sorted(layers.state_dict().keys() - self.parameters.keys())

    @torch.no_grad()
    def logits(self, features: Tensor, positive: Tensor, negative: Tensor, logit_scale: float) -> Tensor:
        """Logits `[B, K]` of unit-norm image features `[B, d]` for new classes with text nodes `[K, d]`."""
        logits = text_logits(features, self.class_features(positive, negative), logit_scale)
        if self.messages is None:
            return logits
        return logits + OMEGA_NEW * logit_scale * self.messages.logits(features, positive)

    def _layers(self, positive: Tensor, negative: Tensor) -> HeteroMessagePassing | None:
        """Message passing among text nodes, not trained yet; None without a `W`, since then there are no messages."""
        if self.options.variant in UNTRAINED or not self.options.text_weights:
            return None
        unseen = {r.weight_key: 0.0 for r in RELATIONS if r.source == "visual" and r.weight_key}
        metapath = self.options.variant_metapath | unseen
        options = replace(self.options, variant="T", metapath=metapath, bias=False)
        return HeteroMessagePassing(HeteroGraph({"positive": positive, "negative": negative}), options)
