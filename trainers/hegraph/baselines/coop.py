"""CoOp: a learned context in place of the prompt's words.

Zhou, Yang, Loy, Liu: Learning to Prompt for Vision-Language Models. International Journal of Computer Vision, 2022.

    z = tau * cos(f, T([v_1] ... [v_M] [class name k] .))

The vectors v, the same for all classes, stand where a prompt's words would be embedded; T, CLIP's text tower, is
frozen. They start normally distributed, with deviation 0.02, and are trained with cross-entropy through T. As in the
released code: M = 16, the class name at the end, SGD with momentum, learning rate 2e-3, batches of 32, Dassl's cosine
schedule by epoch with one warm-up epoch, 50 epochs at one shot, 100 from two, 200 from eight (on ImageNet 50 at any,
for which set EPOCHS [[1, 50]]); the last counts.

Away from the original: it augments the images anew in each epoch; here each epoch draws one of the bank's views of
every image. Class-specific contexts, contexts that start at words, and other places of the class name are left out.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from yacs.config import CfgNode

from ..backbones.clip import Backbone
from ..backbones.tokens import CONTEXT_LENGTH, count_tokens
from ..features import FeatureBank
from ..method.heads import text_logits
from ..training.batches import Batch
from ..utils.errors import UserError
from .base import Fitted
from .training import batches, by_shots, cosine_by_epoch, train

DEFAULTS = {
    "N_CTX": 16,  # vectors of the context
    "LR": 2e-3,  # SGD's learning rate
    "EPOCHS": [[1, 50], [2, 100], [8, 200]],  # rows [from this many shots, epochs]
    "BATCH_SIZE": 32,  # images per step
    "MOMENTUM": 0.9,
    "WEIGHT_DECAY": 5e-4,
    "WARMUP_EPOCHS": 1,
    "WARMUP_LR": 1e-5,
}

DEVIATION = 0.02  # of the context at its start
PLACEHOLDER = "X"  # one token


def fit(bank: FeatureBank, options: CfgNode, seed: int, backbone: Backbone) -> Fitted:
    """Trains N_CTX vectors; `seed` starts them, orders the batches and draws the views."""
    epochs = by_shots("EPOCHS", options.EPOCHS, bank)
    generator = torch.Generator().manual_seed(seed)
    context = DEVIATION * torch.randn(options.N_CTX, backbone.text_width, generator=generator)
    context = context.to(backbone.device).requires_grad_()

    def tokens_of(bank: FeatureBank) -> Tensor:
        return backbone.context_tokens(placeholder_prompts(bank, options.N_CTX), options.N_CTX)

    def class_features(tokens: Tensor) -> Tensor:
        return backbone.encode_with_context(tokens, context).to(bank.text_positive.device)

    def loss(batch: Batch) -> Tensor:
        return F.cross_entropy(text_logits(batch.features, class_features(tokens), bank.logit_scale), batch.labels)

    @torch.no_grad()
    def transfer(other: FeatureBank) -> Tensor:
        return text_logits(other.test_features, class_features(tokens_of(other)), other.logit_scale)

    tokens = tokens_of(bank)

    optimizer = torch.optim.SGD([context], lr=options.LR, momentum=options.MOMENTUM, weight_decay=options.WEIGHT_DECAY)
    data = batches(bank, options.BATCH_SIZE, seed)
    schedule = cosine_by_epoch(epochs, data.steps_per_epoch, options.WARMUP_EPOCHS, options.WARMUP_LR)
    steps = train(optimizer, loss, data, epochs, schedule)
    with torch.no_grad():
        learned = class_features(tokens)
    return Fitted(
        lambda features: text_logits(features, learned, bank.logit_scale),
        num_parameters=context.numel(),
        epochs=epochs,
        steps=steps,
        transfer=transfer,
    )


def placeholder_prompts(bank: FeatureBank, length: int) -> list[str]:
    """A sentence per class, "X X ... X class name.".

    Raises:
        UserError: If there is no context, or a sentence is longer than CLIP reads.
    """
    if length < 1:
        raise UserError(f"N_CTX must be at least 1, got {length}")
    prompts = [" ".join([PLACEHOLDER] * length + [f"{name.replace('_', ' ')}."]) for name in bank.classnames]
    longest = max(prompts, key=count_tokens)
    if count_tokens(longest) > CONTEXT_LENGTH:
        name = longest.removeprefix(f"{PLACEHOLDER} " * length)
        raise UserError(
            f"N_CTX {length} and the class name {name!r} take {count_tokens(longest)} tokens, but CLIP reads "
            f"{CONTEXT_LENGTH}; lower N_CTX"
        )
    return prompts
