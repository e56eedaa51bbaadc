"""CoOp: a learned context in place of the prompt's words.

Zhou, Yang, Loy, Liu: Learning to Prompt for Vision-Language Models. International Journal of Computer Vision, 2022.

    z = tau * cos(f, T([v_1] ... [v_M] [class name k] .))

The vectors v are the same for all classes. They stand where the embeddings of a prompt's words would be, start normally
distributed with deviation 0.02, and are trained with cross-entropy through CLIP's text tower T, which is frozen. As in
the released code: M = 16, the class name at the end, SGD with momentum and learning rate 2e-3, batches of 32, Dassl's
cosine schedule by epoch with one warm-up epoch, and 50 epochs at one shot, 100 from two shots, 200 from eight (on
ImageNet it is 50 for any number of shots; set EPOCHS [[1, 50]] there). The vectors after the last epoch count.

Distance from the original: it augments the images anew in each epoch; here each epoch draws one of the bank's views of
every image. It leaves out the last batch of an epoch if that is not full, here it is a step as well. Contexts of their
own for each class, contexts that start as words, and other places for the class name are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from yacs.config import CfgNode

from ..features.bank import FeatureBank
from ..method.cache import text_logits
from ..training.batches import Batch
from ..utils.errors import UserError
from .base import Defaults, FittedMethod, Method, cosine_classifier
from .training import by_shots, train_with_warmup

if TYPE_CHECKING:
    from ..backbones.clip import Backbone

DEVIATION = 0.02  # standard deviation of the context at its start
PLACEHOLDER = "X"  # a word of one token
# The options of the training, CLIP-Adapter's too
RECIPE: Defaults = {
    "LR": 2e-3,  # SGD's learning rate
    "EPOCHS": [[1, 50], [2, 100], [8, 200]],  # rows [from this many shots, epochs]
    "BATCH_SIZE": 32,  # images per step
    "MOMENTUM": 0.9,
    "WEIGHT_DECAY": 5e-4,
    "WARMUP_EPOCHS": 1,
    "WARMUP_LR": 1e-5,
}


class CoOp(Method):
    """Trains the vectors that a prompt begins with."""

    defaults: ClassVar[Defaults] = {
        "N_CTX": 16,  # number of vectors in the context
        **RECIPE,
    }
    needs_backbone: ClassVar[bool] = True  # every step runs the text tower
    trainer_of_coop: ClassVar[bool] = True

    def fit(self, bank: FeatureBank, options: CfgNode, seed: int, backbone: Backbone | None = None) -> FittedMethod:
        """Trains N_CTX vectors; `seed` initialises them, orders the batches and draws the views."""
        if backbone is None:
            raise ValueError("CoOp trains through the text tower, so `fit` needs the backbone")
        prompts = LearnedPrompts(backbone, options.N_CTX, seed)
        tokens = prompts.tokens(bank)
        epochs = by_shots("EPOCHS", options.EPOCHS, bank)

        def class_features(tokens: Tensor) -> Tensor:
            return prompts.encode(tokens).to(bank.text_positive.device)

        def loss(batch: Batch) -> Tensor:
            return F.cross_entropy(text_logits(batch.features, class_features(tokens), bank.logit_scale), batch.labels)

        @torch.no_grad()
        def transfer(other: FeatureBank) -> Tensor:
            return text_logits(other.features_to_classify, class_features(prompts.tokens(other)), other.logit_scale)

        optimizer = torch.optim.SGD(
            [prompts.context], lr=options.LR, momentum=options.MOMENTUM, weight_decay=options.WEIGHT_DECAY
        )
        steps = train_with_warmup(optimizer, loss, bank, options, epochs, seed)
        with torch.no_grad():
            learned = class_features(tokens)
        return FittedMethod(
            lambda features: text_logits(features, learned, bank.logit_scale),
            num_parameters=prompts.context.numel(),
            epochs=epochs,
            steps=steps,
            transfer=transfer,
            classifier=cosine_classifier(learned, bank.logit_scale),
        )


class LearnedPrompts:
    """The prompts "[v_1] ... [v_M] class name.", whose vectors v are trained.

    Args:
        backbone: Gives the text tower.
        length: Number of vectors, M.
        seed: Draws the vectors that training starts from.

    Attributes:
        context: The vectors, shape `[M, width of the token embeddings]`.

    Raises:
        UserError: If there are no vectors.
    """

    def __init__(self, backbone: Backbone, length: int, seed: int) -> None:
        if length < 1:
            raise UserError(f"N_CTX must be at least 1, got {length}")
        generator = torch.Generator().manual_seed(seed)
        start = DEVIATION * torch.randn(length, backbone.text_width, generator=generator)
        self.backbone, self.context = backbone, start.to(backbone.device).requires_grad_()

    def tokens(self, bank: FeatureBank) -> Tensor:
        """A prompt for each class of the bank as tokens, shape `[K, 77]`; placeholders are where the vectors go.

        Raises:
            UserError: If a prompt is longer than CLIP reads.
        """
        length = len(self.context)
        return self.backbone.context_tokens(placeholder_prompts(bank.classnames, length), length)

    def encode(self, tokens: Tensor) -> Tensor:
        """The unit-norm text features of the prompts, shape `[K, d]`, differentiable in the vectors."""
        return self.backbone.encode_with_context(tokens, self.context)


def placeholder_prompts(classnames: Sequence[str], length: int) -> list[str]:
    """A sentence for each class, "X X ... X class name.", with `length` placeholders X.

    Raises:
        UserError: If a sentence is longer than CLIP reads.
    """
    from ..backbones.tokens import CONTEXT_LENGTH, count_tokens  # imports open_clip, which takes seconds

    prompts = [" ".join([PLACEHOLDER] * length + [f"{name.replace('_', ' ')}."]) for name in classnames]
    longest = max(prompts, key=count_tokens)
    if count_tokens(longest) > CONTEXT_LENGTH:
        name = longest.removeprefix(f"{PLACEHOLDER} " * length)
        raise UserError(
            f"N_CTX {length} and the class name {name!r} take {count_tokens(longest)} tokens, but CLIP reads "
            f"{CONTEXT_LENGTH}; lower N_CTX"
        )
    return prompts
