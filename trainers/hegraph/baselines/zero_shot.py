"""Zero-shot CLIP.

Radford, Kim, Hallacy, Ramesh, Goh, Agarwal, Sastry, Askell, Mishkin, Clark, Krueger, Sutskever: Learning Transferable
Visual Models From Natural Language Supervision. ICML 2021.

    z = tau * cos(f, t_k)

`t_k` is the text feature of class k, `tau` CLIP's logit scale. Nothing is trained or chosen, and no training image is
looked at. As in the original; which prompts made the text features is the bank's business.
"""

from __future__ import annotations

from yacs.config import CfgNode

from ..features import FeatureBank
from ..heads import text_logits
from .base import Fitted

DEFAULTS: dict = {}


def fit(bank: FeatureBank, options: CfgNode, seed: int) -> Fitted:
    """Needs the text features alone; `options` is empty and `seed` changes nothing."""
    return Fitted(lambda features: text_logits(features, bank.text_positive, bank.logit_scale))
