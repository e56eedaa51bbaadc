"""CoOp: a learned context in place of the prompt's words.

Zhou, Yang, Loy, Liu: Learning to Prompt for Vision-Language Models. International Journal of Computer Vision, 2022.

    z = tau * cos(f, T([v_1] ... [v_M] [class name k] .))

The vectors v are the same for all classes. They stand where the embeddings of a prompt's words would be, start normally
distributed with deviation 0.02, and are trained with cross-entropy through CLIP's text tower T, which is frozen. As in
the released code: M = 16, the class name at the end, SGD, Dassl's cosine by epoch with one warm-up epoch, and 50 to 200
epochs by shots (on ImageNet 50; set EPOCHS [[1, 50]] there), of which the last counts.

Distance from the original: contexts of their own for each class, contexts that start as words, and other places for the
class name are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from ..features.bank import FeatureBank
from ..utils.errors import UserError
from .base import Defaults, Options
from .trained import COOP_TRAINING, Trainable, TrainedClassifier

if TYPE_CHECKING:
    from ..backbones.clip import Backbone

DEVIATION = 0.02  # standard deviation of the context at its start
PLACEHOLDER = "X"  # a word of one token


class CoOp(TrainedClassifier):
    """Trains the vectors that a prompt begins with."""

    defaults: ClassVar[Defaults] = {
        "N_CTX": 16,  # number of vectors in the context
        **COOP_TRAINING,
    }
    needs_backbone: ClassVar[bool] = True  # every step runs the text tower
    trainer_of_coop: ClassVar[bool] = True

    def start(self, bank: FeatureBank, options: Options, seed: int, backbone: Backbone | None) -> Trainable:
        """N_CTX vectors as wide as the embeddings of tokens, which `seed` initialises."""
        if backbone is None:
            raise ValueError("CoOp trains through the text tower, so `fit` needs the backbone")
        if options.N_CTX < 1:
            raise UserError(f"N_CTX must be at least 1, got {options.N_CTX}")
        generator = torch.Generator().manual_seed(seed)
        start = DEVIATION * torch.randn(options.N_CTX, backbone.text_width, generator=generator)
        context = start.to(backbone.device).requires_grad_()

        def tokens_of(bank: FeatureBank) -> Tensor:
            return backbone.context_tokens(placeholder_prompts(bank.classnames, options.N_CTX), options.N_CTX)

        def encode(tokens: Tensor) -> Tensor:
            return backbone.encode_with_context(tokens, context).to(bank.text_positive.device)

        tokens = tokens_of(bank)
        return Trainable([context], lambda: encode(tokens), transfer=lambda other: encode(tokens_of(other)))


def placeholder_prompts(classnames: Sequence[str], length: int) -> list[str]:
    """A sentence for each class, "X X ... X class name.", with `length` placeholders X, none longer than CLIP reads."""
    from ..backbones.clip import CONTEXT_LENGTH, count_tokens  # imports open_clip, which takes seconds

    prompts = [" ".join([PLACEHOLDER] * length + [f"{name.replace('_', ' ')}."]) for name in classnames]
    longest = max(prompts, key=count_tokens)
    if count_tokens(longest) > CONTEXT_LENGTH:
        name = longest.removeprefix(f"{PLACEHOLDER} " * length)
        raise UserError(
            f"N_CTX {length} and the class name {name!r} take {count_tokens(longest)} tokens, but CLIP reads "
            f"{CONTEXT_LENGTH}; lower N_CTX"
        )
    return prompts
