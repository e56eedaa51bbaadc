"""Training losses of mini on similarities of images and captions.

Shapes: B images, N captions, L tokens, D feature width.
"""

import torch
import torch.nn.functional as F
from open_clip import CLIP

SHORT_CAPTION = 14  # largest number of tokens of a short caption


def encode_captions(model: CLIP, tokens: torch.Tensor) -> torch.Tensor:
    """Encode captions `[N, L]` as `model.encode_text(tokens, normalize=True)` does, without the padding; `[N, D]`.

    Attention is causal, and the feature is that of the end-of-text token (the largest id), so later tokens have no
    effect. Short and long captions are encoded separately, and each group ends after its longest caption.
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
    """Symmetric InfoNCE loss in which all pairs of the same label are positives.

    Args:
        logits: Logits of images and captions, shape `[B, B]`.
        labels: Labels of the images and of their captions, shape `[B]`.
    """
    same = (labels.unsqueeze(0) == labels.unsqueeze(1)).float()
    target = same / same.sum(1, keepdim=True)  # the mask is symmetric, so the same weights serve both directions
    to_text = -(target * logits.log_softmax(1)).sum(1).mean()
    to_image = -(target * logits.t().log_softmax(1)).sum(1).mean()
    return (to_text + to_image) / 2


def negative_loss(logits: torch.Tensor, absent: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Loss of negative captions such as "no X", which should be nearer to all other images than to images of X.

    A softmax of two compares each other image with the mean image of X. With one softmax over the whole batch, the
    captions did not depend on X: one direction near a few images minimises it for all negative captions.

    Args:
        logits: Logits of negative captions and images, shape `[N, B]`.
        absent: Label that each caption negates, shape `[N]`.
        labels: Labels of the images, shape `[B]`.
    """
    shown = absent.unsqueeze(1) == labels.unsqueeze(0)
    count = shown.sum(1, keepdim=True)
    own = logits.masked_fill(~shown, float("-inf")).logsumexp(1, keepdim=True) - count.log()
    losses = F.softplus(own - logits).masked_fill(shown, 0).sum(1) / (len(labels) - count.squeeze(1))
    return losses.mean()
