"""Zero-shot CLIP.

Radford, Kim, Hallacy, Ramesh, Goh, Agarwal, Sastry, Askell, Mishkin, Clark, Krueger, Sutskever: Learning Transferable
Visual Models From Natural Language Supervision. ICML 2021.

    z = tau * cos(f, t_k)

`t_k` is the text feature of class k, `tau` is CLIP's logit scale. Which prompts the text features were made from is
decided where the bank is made.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from ..features.bank import FeatureBank
from ..method.cache import text_logits
from .base import Defaults, FittedMethod, Method, Options, cosine_classifier


class ZeroShot(Method):
    """Compares images with the text features alone."""

    defaults: ClassVar[Defaults] = {}

    def fit(self, bank: FeatureBank, options: Options, seed: int, backbone: object = None) -> FittedMethod:
        """Takes the text features from the bank; there are no options, and `seed` changes nothing."""

        def logits(features: Tensor, bank: FeatureBank = bank) -> Tensor:
            return text_logits(features, bank.text_positive, bank.logit_scale)

        return FittedMethod(
            logits,
            transfer=lambda other: logits(other.features_to_classify, other),
            classifier=cosine_classifier(bank.text_positive, bank.logit_scale),
            transfer_rule="zero-shot",
        )
