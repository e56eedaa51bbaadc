"""HeGraphAdapter: graph, message passing, text classifier and cache classifier on frozen CLIP features.

"HeGraphAdapter: Tuning Multi-Modal Vision-Language Models with Heterogeneous Graph Adapter", arXiv:2410.07854.

A trained model folds into `[K, d]` class weights and `[N, d]` cache keys (`FoldedClassifier`), without the graph.
`TransferableAdapter` is the part of a model that applies to unseen classes.

Shapes: B queries, K classes, N cached images, d feature width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..features.bank import FeatureBank
from .cache import FoldedClassifier, Logits, shifted_cache_logits, shifted_keys, text_logits
from .graph import HeteroGraph, build_graph, class_prototypes
from .head.class_offsets import class_offsets, relative_counts
from .head.closed_form import OMEGA_NEW, ClosedForm, NewClassMessages
from .head.trust import TrustedText, trust_text
from .layers import Adapted, HeteroMessagePassing
from .options import UNTRAINED, ModelOptions
from .relations import RELATIONS


class HeGraphModel(nn.Module):
    """Text and cache classifiers of a frozen CLIP, adapted by message passing on a heterogeneous graph.

    Attributes:
        cache_keys, cache_labels: Unit-norm features of the training images, shape `[N, d]`, and their labels, `[N]`.
        logit_scale: CLIP's `tau`.
        layers: Message passing; None for a variant without training.
        views: Features of all views of the training images, which are images of the closed-form head of the
            training-free variant, shape `[V, N, d]`; None takes `cache_keys`.
        trusted: Text of the classes after `head/trust.py`, in place of the positive text nodes; None without trust in
            text.
        closed_form: Closed-form head, which moves with the model; None if the options use neither its logits nor its
            noise.

    Examples:
        >>> import torch
        >>> from hegraph import HeGraphModel, ModelOptions, build_graph
        >>> text, images, labels = torch.eye(3, 8), torch.eye(3, 8), torch.arange(3)  # one image of each class
        >>> graph = build_graph(positive=text, negative=-text, visual=images)
        >>> model = HeGraphModel(graph, images, labels, logit_scale=100.0, options=ModelOptions())
        >>> text_logits, cache_logits = model(images)  # trainable
        >>> model.fold().logits(images).argmax(dim=1)
        tensor([0, 1, 2])
    """

    cache_keys: Tensor
    cache_labels: Tensor
    views: Tensor | None
    x_positive: Tensor

    def __init__(
        self,
        graph: HeteroGraph,
        cache_keys: Tensor,
        cache_labels: Tensor,
        logit_scale: float,
        options: ModelOptions,
        views: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.num_classes = graph.num_classes
        self.logit_scale = logit_scale
        self.options = options
        text = graph.x_dict["positive"]
        prior_text = text
        self.trusted: TrustedText | None = None
        if options.trusts_text:
            self.trusted = trust_text(cache_keys, cache_labels, text, logit_scale)
            prior_text = self.trusted.replaced
            text = self.trusted.scaled.to(text)
            graph = graph.with_positive(text)
        # Not in the state dict, since they are computed from the features
        self.register_buffer("cache_keys", cache_keys, persistent=False)
        self.register_buffer("cache_labels", cache_labels, persistent=False)
        self.register_buffer("views", views, persistent=False)
        is_free = options.variant == "training_free"  # whose text keeps its norm, as there is no message passing
        self.register_buffer("x_positive", text if is_free else graph.x_dict["positive"], persistent=False)
        self.layers = None if options.variant in UNTRAINED else HeteroMessagePassing(graph, options)
        self.closed_form: ClosedForm | None = None
        if options.needs_closed_form:
            wrong_classes = shuffled(self.num_classes).to(prior_text.device)
            if options.shuffle == "text_to_visual":
                prior_text = prior_text[wrong_classes]
            keys, labels = self.head_images()
            repeats = 1.0 if views is None else len(keys) / distinct_views(views)
            self.closed_form = ClosedForm.fit(
                keys,
                labels,
                prior_text,
                options.closed_form.kappa * (len(keys) // len(cache_keys)),
                options.closed_form.rho * repeats,  # repeated views say no more about the covariance
                permutation=wrong_classes if options.shuffle == "visual_to_text" else None,
                adapt_kappa=options.trusts_text,
            )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> HeGraphModel:
        """Move or convert all tensors, as `to`, `double` and their kin do, and the closed-form head with its keys."""
        super()._apply(fn, recurse)
        if self.closed_form is not None:
            self.closed_form = self.closed_form.with_keys(*self.head_images())
        return self

    def head_images(self) -> tuple[Tensor, Tensor]:
        """Features and labels of the images of the closed-form head: all views, or the means of their views."""
        if self.views is None:
            return self.cache_keys, self.cache_labels
        return self.views.flatten(0, 1), self.cache_labels.repeat(len(self.views))

    def forward(
        self, features: Tensor, own: Tensor | None = None, products: Tensor | None = None, noisy: Tensor | None = None
    ) -> Logits:
        """Logits of both classifiers for training, without the closed-form head.

        Args:
            features: Unit-norm image features, shape `[B, d]`.
            own, products: See `shifted_cache_logits`.
            noisy: Input of the text classifier in place of `features`, shape `[B, d]`; see `with_noise`.
        """
        adapted = self.adapt()
        text = text_logits(features if noisy is None else noisy, adapted.positive, self.logit_scale)
        if adapted.visual_bias is None:
            return Logits(text, None)
        visual = shifted_cache_logits(
            features, self.cache_keys, adapted.visual_bias, self.cache_labels, self.options.beta_c, own, products
        )
        return Logits(text, visual)

    def adapt(self) -> Adapted:
        """Pass messages. The result is the same for every query until a parameter changes."""
        return Adapted(self.x_positive, None) if self.layers is None else self.layers()

    @torch.no_grad()
    def pass_messages_at_test(self) -> Adapted:
        """Pass messages in evaluation mode, with the meta-path weights of test time."""
        training = self.training
        self.eval()
        adapted = self.adapt()
        self.train(training)
        return adapted

    @torch.no_grad()
    def fold(self, adapted: Adapted | None = None) -> FoldedClassifier:
        """Fold the model into a classifier. `adapted` is the result of `pass_messages_at_test`; None computes it."""
        options = self.options
        if options.variant == "training_free":
            logits = self.logit_scale * self.cache_keys @ self.x_positive.t()
            offsets = class_offsets(logits, self.cache_labels, options.class_prior)
            folded = FoldedClassifier(self.logit_scale * self.x_positive, offsets)
        else:
            adapted = adapted or self.pass_messages_at_test()
            folded = FoldedClassifier(self.logit_scale * F.normalize(adapted.positive, dim=-1))
        if self.closed_form is not None and options.has_closed_form:
            strength = options.head_weight(self.logit_scale)
            messages = self.closed_form.to_text
            weights = messages.weights.to(folded.weights.dtype)
            bias = messages.bias.to(folded.weights.dtype)
            folded = folded.plus(strength * weights, strength * bias)
        if adapted is None or adapted.visual_bias is None:
            return folded
        keys = F.normalize(shifted_keys(self.cache_keys, adapted.visual_bias, self.cache_labels), dim=-1)
        return replace(
            folded,
            keys=keys,
            labels=self.cache_labels,
            key_weights=self.key_weights(),
            alpha=options.alpha_c,
            beta=options.beta_c,
        )

    def key_weights(self) -> Tensor | None:
        """Weights `S' / S_y` of the cache keys, shape `[N]`; None if classes have equal numbers `S_c`, of mean `S'`.

        The cache logit of a class is a sum over its images, so without weights it grows with their number. With
        CLASS_PRIOR training, or without trust in text, it does.
        """
        if self.options.class_prior != "balanced" or not self.options.trusts_text:
            return None
        relative = relative_counts(self.cache_labels.bincount().float())
        return None if (relative == 1).all() else (1 / relative)[self.cache_labels]

    def with_noise(self, features: Tensor, generator: torch.Generator) -> Tensor:
        """Add within-class noise to unit-norm features `[B, d]`.

            f~ = norm(f + nu q r_j),  q = +-1

        `r_j` is the deviation of a random cached image from its class mean (`head/closed_form.py`). The loss of the
        text classifier is evaluated at `f~`.
        """
        if self.closed_form is None or self.options.noise == 0:
            return features
        noise = self.closed_form.noise.to(features.dtype)
        images = torch.randint(len(noise), (len(features),), generator=generator).to(features.device)
        signs = 2 * torch.randint(2, (len(features), 1), generator=generator).to(features) - 1
        return F.normalize(features + self.options.noise * signs * noise.index_select(0, images), dim=-1)

    def parameter_groups(self, lr: float, weight_lr_mult: float, visual_lr: float) -> list[dict]:
        """Parameter groups for an optimizer.

        Biases and meta-path weights have the learning rate `lr`, weight matrices `lr * weight_lr_mult`, and the weight
        matrix and bias of the visual relation `visual_lr`.
        """
        rates = {"weights": lr * weight_lr_mult, "biases": lr, "visual": visual_lr}
        groups: dict[str, list[nn.Parameter]] = {role: [] for role in rates}
        for name, parameter in () if self.layers is None else self.layers.named_parameters():
            groups[role_of(name)].append(parameter)
        return [{"params": parameters, "lr": rates[role]} for role, parameters in groups.items() if parameters]


def role_of(name: str) -> str:
    """Role of a parameter of `HeteroMessagePassing` in training, by its name: "weights", "biases" or "visual"."""
    visual = [r for r in RELATIONS if not r.weight_key]  # the relation that moves the cache keys
    if name in {f"weight.{r.target}" for r in visual} | {f"bias.{r.name}" for r in visual}:
        return "visual"
    return "weights" if name.startswith("weight.") else "biases"


def build_model(bank: FeatureBank, options: ModelOptions) -> HeGraphModel:
    """Build the untrained model of a few-shot task on the device of its features; UserError if a class has no image."""
    keys = bank.cache_keys()
    negative = bank.text_negative
    if options.shuffle == "negative":
        negative = negative[shuffled(len(negative)).to(negative.device)]
    # The head of the training-free variant is better alone than with text nodes that are means of images
    positive = bank.known_text if options.variant == "training_free" else bank.text_positive
    graph = build_graph(positive, negative, class_prototypes(keys, bank.train_labels, bank.classnames))
    counts_views = options.variant == "training_free" and options.trust_text and len(bank.train_features) > 1
    views = bank.train_features if counts_views else None
    return HeGraphModel(graph, keys, bank.train_labels, bank.logit_scale, options, views).to(keys.device)


def distinct_views(views: Tensor) -> int:
    """Number of views, of all images together, that differ from every earlier view of their image.

    Images with different numbers of views have been merged by repeating views (`SupportSet.merge`).

    Args:
        views: Features of the views, shape `[V, N, d]`, float32.
    """
    generator = torch.Generator().manual_seed(0)
    factors = torch.randint(1, 2**62, (views.shape[2],), generator=generator).to(views.device)
    bits = [view.float().contiguous().view(torch.int32) for view in views]
    hashes = torch.stack([(view.long() * factors).sum(dim=1) for view in bits]).sort(dim=0).values
    return hashes.shape[1] + int((hashes[1:] != hashes[:-1]).sum())


def shuffled(num_classes: int) -> Tensor:
    """Fixed permutation of the classes without a fixed point, shape `[K]`."""
    order = torch.randperm(num_classes, generator=torch.Generator().manual_seed(0))
    permutation = torch.empty_like(order)
    permutation[order] = order.roll(1)
    return permutation


@dataclass(frozen=True)
class TransferableAdapter:
    """The part of a trained model that applies to unseen classes (CoCoOp's protocol, base to new).

    Biases and visual nodes belong to the classes of the training. In the graph of new classes, positive and negative
    text nodes exchange messages through the trained `W`. The closed-form head takes the text prior as class means.

    Attributes:
        parameters: Weight matrices between text nodes, each `[d, d]`, and learned meta-path weights, by their names in
            the state dict.
        messages: Closed-form head for new classes; None if the model has none.
    """

    options: ModelOptions
    parameters: dict[str, Tensor]
    messages: NewClassMessages | None = None

    @classmethod
    def of(cls, model: HeGraphModel) -> TransferableAdapter:
        """Extract the transferable part of a trained model."""
        closed = model.closed_form if model.options.has_closed_form else None
        empty = cls(model.options, {}, None if closed is None else closed.for_new_classes())
        state = {} if model.layers is None else model.layers.state_dict()
        return replace(empty, parameters={name: state[name] for name in empty.missing_parameters()})

    def to(self, device: str | torch.device) -> TransferableAdapter:
        """Adapter with its tensors moved to a device."""
        parameters = {name: tensor.to(device) for name, tensor in self.parameters.items()}
        return replace(self, parameters=parameters, messages=self.messages and self.messages.to(device))

    @torch.no_grad()
    def class_features(self, positive: Tensor, negative: Tensor) -> Tensor:
        """Updated text features `X_p'` of new classes, shape `[K, d]`, from their text nodes, each `[K, d]`."""
        layers = self._layers(positive, negative)
        if layers is None:
            return positive
        layers.to(positive.device).load_state_dict({name: self.parameters[name] for name in layers.state_dict()})
        return layers.eval()().positive

    def missing_parameters(self) -> list[str]:
        """Names of parameters that the options need and `parameters` lacks."""
        layers = self._layers(torch.ones(1, 1), torch.ones(1, 1))  # the names depend on no size
        return [] if layers is None else sorted(layers.state_dict().keys() - self.parameters.keys())

    def __call__(self, bank: FeatureBank) -> Tensor:
        """Logits of the test images of a bank with other classes, `[M, K]`."""
        return self.logits(bank.features_to_classify, bank.text_positive, bank.text_negative, bank.logit_scale)

    @torch.no_grad()
    def logits(self, features: Tensor, positive: Tensor, negative: Tensor, logit_scale: float) -> Tensor:
        """Logits `[B, K]` of unit-norm image features `[B, d]` for new classes with text nodes `[K, d]` each."""
        logits = text_logits(features, self.class_features(positive, negative), logit_scale)
        if self.messages is None:
            return logits
        return logits + OMEGA_NEW * logit_scale * self.messages.logits(features, positive)

    def _layers(self, positive: Tensor, negative: Tensor) -> HeteroMessagePassing | None:
        """Untrained message passing between text nodes; None without `W`, when there are no messages."""
        if self.options.variant in UNTRAINED or not self.options.text_weights:
            return None
        unseen = {r.weight_key: 0.0 for r in RELATIONS if r.source == "visual" and r.weight_key}
        metapath = self.options.variant_metapath | unseen
        options = replace(self.options, variant="T", metapath=metapath, bias=False)
        return HeteroMessagePassing(HeteroGraph({"positive": positive, "negative": negative}), options)
