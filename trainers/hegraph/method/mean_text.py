"""Text nodes of classes without names: mean features of their training images.

`FeatureBank.has_text` is False for such a bank. The nodes contain every training image, so a part of the bank needs
nodes of its own (`with_own_nodes`). The training-free variant, whose head is better alone than with these nodes, takes
no text (`FeatureBank.known_text`).

Shapes: N training images, K classes, d feature width.
"""

from dataclasses import replace

import torch.nn.functional as F
from torch import Tensor

from ..features.bank import FeatureBank
from .graph import class_prototypes


def mean_text(bank: FeatureBank) -> Tensor:
    """Normalised mean feature of the training images of each class, shape `[K, d]`.

    Raises:
        UserError: If a class has no training image, with one label per image.
    """
    keys = bank.cache_keys()
    if bank.multilabel:
        return F.normalize(bank.train_labels.t().float() @ keys, dim=-1)
    return class_prototypes(keys, bank.train_labels, bank.classnames)


def without_text(bank: FeatureBank, negative: Tensor | None = None) -> FeatureBank:
    """Return a bank whose positive text nodes are mean features of its training images.

    Args:
        bank: Any bank. Its text is not used.
        negative: Negative text nodes, shape `[K, d]`; None takes the negative of the positive ones.

    Raises:
        UserError: As in `mean_text`.
    """
    positive = mean_text(bank)
    negative = -positive if negative is None else negative
    return replace(bank, text_positive=positive, text_negative=negative, text_norms=None, has_text=False)


def with_own_nodes(part: FeatureBank) -> FeatureBank:
    """Return a part of a bank whose text nodes contain no image of another part; the same object if it has text."""
    if part.has_text:
        return part
    is_mirrored = part.text_negative.equal(-part.text_positive)
    return without_text(part, None if is_mirrored else part.text_negative)
