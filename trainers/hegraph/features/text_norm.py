"""Text features with the norm that the text tower gives them.

TaskRes, GraphAdapter and CLAP train what they add to a text feature, or the text feature itself. How far a step turns
it depends on its norm, and their authors take the text tower's output as it is.

Shapes: K classes, d feature width.
"""

from __future__ import annotations

import logging
import re

from torch import Tensor

from .bank import FeatureBank

logger = logging.getLogger(__name__)

# The mean norm of 1,606 text features of OpenAI's ViT-B/32; their standard deviation is 0.7
OPENAI_VIT_B32_NORM = 9.9
OPENAI_VIT_B32 = re.compile(r"ViT-B[-/]32(-quickgelu)?/openai", re.IGNORECASE)  # how such backbones are called in banks


def text_norms(bank: FeatureBank) -> Tensor:
    """The norm of each class's text feature before it was normalised, shape `[K]`.

    Where the bank does not know it, 9.9 is taken for every class if the backbone is OpenAI's ViT-B/32, and otherwise 1.
    What is taken is logged.
    """
    if bank.text_norms is not None:
        return bank.text_norms
    known = OPENAI_VIT_B32.fullmatch(bank.backbone)
    norm = OPENAI_VIT_B32_NORM if known else 1.0
    why = "the mean of OpenAI's ViT-B/32" if known else f"since that of {bank.backbone!r} is not known"
    logger.info("the bank of %s holds no norms of its text features: %s is taken for all, %s", bank.dataset, norm, why)
    return bank.text_positive.new_full((len(bank.text_positive),), norm)


def text_with_norm(bank: FeatureBank) -> Tensor:
    """The positive text features of the bank, each with its `text_norms`, shape `[K, d]`."""
    return text_norms(bank)[:, None] * bank.text_positive
