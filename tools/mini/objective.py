"""The losses that mini is trained with, on the similarities of images and captions.

Shapes: B images, N captions, L tokens, D feature width.
"""

import torch
import torch.nn.functional as F
from open_clip import CLIP

SHORT_CAPTION = 14  # the most tokens of a caption that is encoded with the short ones


def encode_captions(model: CLIP, tokens: torch.Tensor) -> torch.Tensor:
    """What `model.encode_text(tokens, normalize=True)` gives, `[N, L]` to `[N, D]`, without computing the padding.

    The attention is causal and the feature is read at the end-of-text token (the largest id), so what comes after it
    cannot matter. Short and long captions are encoded separately, and each group is cut after its longest caption.
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
    """Symmetric InfoNCE in which all pairs of the same label are positives.

    Args:
        logits: Of images against captions, shape `[B, B]`.
        labels: Of the images, and so of their captions, shape `[B]`.
    """
    same = (labels.unsqueeze(0) == labels.unsqueeze(1)).float()
    target = same / same.sum(1, keepdim=True)  # the mask is symmetric, so the same weights serve both directions
    to_text = -(target * logits.log_softmax(1)).sum(1).mean()
    to_image = -(target * logits.t().log_softmax(1)).sum(1).mean()
    return (to_text + to_image) / 2


def negative_loss(logits: torch.Tensor, absent: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """How far captions such as "no X" are from preferring every other image to the images of X.

    Each image of another name is compared with the mean image of X in a softmax of two. One softmax over the whole
    batch was tried, and nothing was learnt of X: a single direction for all negative captions, near some images that
    are rarely X, is enough for it.

    Args:
        logits: Of negative captions against images, shape `[N, B]`.
        absent: The label that each caption says is not there, shape `[N]`.
        labels: Of the images, shape `[B]`.
    """
    shown = absent.unsqueeze(1) == labels.unsqueeze(0)
    count = shown.sum(1, keepdim=True)
    own = logits.masked_fill(~shown, float("-inf")).logsumexp(1, keepdim=True) - count.log()
    losses = F.softplus(own - logits).masked_fill(shown, 0).sum(1) / (len(labels) - count.squeeze(1))
    return losses.mean()
