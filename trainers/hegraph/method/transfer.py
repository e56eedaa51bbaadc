"""The model on classes that it was not trained on (CoCoOp's protocol: cross-dataset, base to new).

The matrices `W` and learned meta-path weights transfer. A class-wise bias and a visual node belong to a class that was
seen in training, so the graph of the new classes has neither: only positive and negative text nodes exchange messages.
In closed form the relation from text to visual nodes says what the visual node of a new class should be, and the
relation back passes it on (`NewClassMessages`).
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from .cache import text_logits
from .closed_form import OMEGA_NEW, NewClassMessages
from .graph import HeteroGraph
from .layers import HeteroMessagePassing
from .model import HeGraphModel
from .options import UNTRAINED, ModelOptions
from .relations import RELATIONS


@dataclass(frozen=True)
class TransferableAdapter:
    """What a trained adapter can carry to other classes.

    Attributes:
        options: Options of the model.
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
        messages = self.messages
        if messages is not None:
            moved = {field.name: getattr(messages, field.name).to(device) for field in fields(messages)}
            messages = replace(messages, **moved)
        parameters = {name: tensor.to(device) for name, tensor in self.parameters.items()}
        return replace(self, parameters=parameters, messages=messages)

    @torch.no_grad()
    def class_features(self, positive: Tensor, negative: Tensor) -> Tensor:
        """Refined positive text features of classes that were not trained on.

        Args:
            positive, negative: Text nodes of the new classes, each `[K, d]`.

        Returns:
            `X_p'`, shape `[K, d]`.
        """
        if not self._passes_messages:
            return positive
        layers = self._layers(positive, negative).to(positive.device)
        layers.load_state_dict({name: self.parameters[name] for name in layers.state_dict()})
        return layers.eval()().positive

    def missing_parameters(self) -> list[str]:
        """Names of parameters that the options need and that are not there."""
        if not self._passes_messages:
            return []
        one = torch.ones(1, 1)  # the names depend on no size
        return sorted(self._layers(one, one).state_dict().keys() - self.parameters.keys())

    @torch.no_grad()
    def logits(self, features: Tensor, positive: Tensor, negative: Tensor, logit_scale: float) -> Tensor:
        """Logits of image features `[B, d]` for classes that were not trained on, shape `[B, K]`.

        Args:
            features: Unit-norm image features, shape `[B, d]`.
            positive, negative: Text nodes of the new classes, each `[K, d]`.
            logit_scale: CLIP's `tau`.
        """
        logits = text_logits(features, self.class_features(positive, negative), logit_scale)
        if self.messages is None:
            return logits
        return logits + OMEGA_NEW * logit_scale * self.messages.logits(features, positive)

    @property
    def _passes_messages(self) -> bool:
        """Whether new classes receive messages along the relations: without a `W` there are none."""
        return self.options.text_weights and self.options.variant not in UNTRAINED

    def _layers(self, positive: Tensor, negative: Tensor) -> HeteroMessagePassing:
        """Message passing among text nodes, not trained yet."""
        graph = HeteroGraph({"positive": positive, "negative": negative})
        unseen = {relation.weight_key for relation in RELATIONS if relation.source == "visual"}
        metapath = {key: weight for key, weight in self.options.variant_metapath.items() if key not in unseen}
        learned = self.options.learn_metapath
        return HeteroMessagePassing(graph, metapath, bias=False, learn_metapath=learned, visual=False)
