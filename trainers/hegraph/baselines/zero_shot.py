"""Zero-shot CLIP.

Radford, Kim, Hallacy, Ramesh, Goh, Agarwal, Sastry, Askell, Mishkin, Clark, Krueger, Sutskever: Learning Transferable
Visual Models From Natural Language Supervision. ICML 2021.

    z = tau * cos(f, t_k)

`t_k` is the text feature of class k, `tau` CLIP's logit scale. Nothing is trained or chosen, and no training image is
looked at. As in the original; which prompts made the text features is the bank's business.
"""

from __future__ import annotations

from torch import Tensor
from yacs.config import CfgNode

from ..features import FeatureBank
from ..method.heads import text_logits
from .base import Fitted

DEFAULTS: dict = {}


def fit(bank: FeatureBank, options: CfgNode, seed: int) -> Fitted:
    """Needs the text features alone; `options` is empty and `seed` changes nothing."""

    def logits(features: Tensor, bank: FeatureBank = bank) -> Tensor:
        return text_logits(features, bank.text_positive, bank.logit_scale)

    return Fitted(logits, transfer=lambda other: logits(other.test_features, other))
