"""What the mini backbone is trained for: losses on CLIP's image-by-caption similarities."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

SHORT_CAPTION = 14  # tokens


def encode_captions(model: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """``model.encode_text(tokens, normalize=True)``, [N, L] to [N, D], without computing the padding.

    The attention is causal and the feature is read at the end-of-text token (the largest id), so what
    follows it cannot matter: short and long captions are encoded apart, each cut after its longest.
    """
    lengths = tokens.argmax(dim=1) + 1
    features = torch.empty(len(tokens), model.text_projection.shape[1])
    for chosen in (lengths <= SHORT_CAPTION, lengths > SHORT_CAPTION):
        rows = chosen.nonzero().squeeze(1)
        if len(rows):
            length = int(lengths[rows].max())
            states = model.token_embedding(tokens[rows, :length]) + model.positional_embedding[:length]
            states = model.transformer(states, attn_mask=model.attn_mask[:length, :length])
            ends = model.ln_final(states)[torch.arange(len(rows)), lengths[rows] - 1]
            features = features.index_copy(0, rows, ends @ model.text_projection)
    return F.normalize(features, dim=-1)


def positive_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Symmetric InfoNCE of [B, B] image-by-caption logits; pairs of the same label [B] all count."""
    same = (labels.unsqueeze(0) == labels.unsqueeze(1)).float()
    target = same / same.sum(1, keepdim=True)  # symmetric mask: the same weights serve both directions
    to_text = -(target * logits.log_softmax(1)).sum(1).mean()
    to_image = -(target * logits.t().log_softmax(1)).sum(1).mean()
    return (to_text + to_image) / 2


def negative_loss(logits: torch.Tensor, absent: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """How far "no X" is from preferring every other image to the images of X.

    ``logits`` [N, B] of N negative captions against B images; ``absent`` [N] and ``labels`` [B] are labels.
    Each image of another name is held against the (mean) image of X in a softmax of two. One softmax over
    the whole batch would be met by a single direction for all negative captions, near some images that
    are rarely X: it was tried, and nothing was learnt of X.
    """
    shown = absent.unsqueeze(1) == labels.unsqueeze(0)
    count = shown.sum(1, keepdim=True)
    own = logits.masked_fill(~shown, float("-inf")).logsumexp(1, keepdim=True) - count.log()
    losses = F.softplus(own - logits).masked_fill(shown, 0).sum(1) / (len(labels) - count.squeeze(1))
    return losses.mean()
