"""Methods for several labels per image: labels of a bank are indicators, booleans `[N, K]`.

Zero-shot CLIP (`class_features.py`) works for several labels as well. Its scores are comparable within a class only
after standardisation, since prompts differ in their mean similarity to images.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from ..features.bank import FeatureBank
from ..method.cache import FoldedClassifier, text_logits
from ..method.head.multilabel import MultiLabelHead
from .base import EPSILON, FittedMethod, Method, NoOptions, groups_to_leave_out
from .options import BaselineOptions, option

NOT_SAVED = "it serves as a comparison for several labels per image"


class ZeroShotStandardised(Method[NoOptions]):
    """Zero-shot CLIP whose cosines are standardised by prompt and by image.

        z_k = (s_k - m_k) / d_k,    logits = (z - mean_k z_k) / std_k z_k

    `m_k` and `d_k` are the mean and the standard deviation of the cosines `s_k` of the training images, without their
    labels.
    """

    not_saved: ClassVar[str] = NOT_SAVED

    def fit(self, bank: FeatureBank, options: NoOptions, seed: int, backbone: object = None) -> FittedMethod:
        reference = text_logits(bank.cache_keys(), bank.text_positive, 1.0)
        mean = reference.mean(dim=0)
        deviation = reference.std(dim=0, correction=0).clamp_min(EPSILON)

        def logits(features: Tensor) -> Tensor:
            by_prompt = (text_logits(features, bank.text_positive, 1.0) - mean) / deviation
            centred = by_prompt - by_prompt.mean(dim=1, keepdim=True)
            return centred / centred.std(dim=1, correction=0, keepdim=True).clamp_min(EPSILON)

        return FittedMethod(logits)


@dataclass(frozen=True)
class OneVsRestOptions(BaselineOptions):
    """Options of `OneVsRest`."""

    inverse_penalty: float = option(1.0, "C", "inverse penalty", above=0)
    most_iterations: int = option(1000, "MAX_ITERATIONS", "maximum number of iterations of L-BFGS", least=1)


class OneVsRest(Method[OneVsRestOptions]):
    """One logistic regression for each class, by scikit-learn, with balanced weights of both answers.

    A class that all or none of the training images have has a constant score.
    """

    options: ClassVar[type] = OneVsRestOptions
    needs_text: ClassVar[bool] = False
    not_saved: ClassVar[str] = NOT_SAVED

    def fit(self, bank: FeatureBank, options: OneVsRestOptions, seed: int, backbone: object = None) -> FittedMethod:
        from sklearn.linear_model import LogisticRegression  # takes a second to import

        keys = bank.cache_keys()
        images = keys.cpu().numpy()
        weight = torch.zeros_like(bank.text_positive)
        bias = keys.new_zeros(len(bank.text_positive))
        for k, answers in enumerate(bank.train_labels.cpu().numpy().T):
            if len(np.unique(answers)) < 2:
                bias[k] = 1.0 if answers.all() else -1.0
                continue
            model = LogisticRegression(
                C=options.inverse_penalty, class_weight="balanced", max_iter=options.most_iterations
            )
            model.fit(images, answers)
            weight[k] = torch.from_numpy(model.coef_[0])
            bias[k] = float(model.intercept_[0])
        return FittedMethod(FoldedClassifier(weight, bias).logits, thresholds=torch.zeros_like(bias))


class Ridge(Method[NoOptions]):
    """Ridge regression of the label indicators without text: `method/head/multilabel.py` with `g = 0`."""

    needs_text: ClassVar[bool] = False
    not_saved: ClassVar[str] = NOT_SAVED

    def fit(self, bank: FeatureBank, options: NoOptions, seed: int, backbone: object = None) -> FittedMethod:
        head = MultiLabelHead.fit(bank.cache_keys(), bank.train_labels, groups=groups_to_leave_out(bank))
        return FittedMethod(head.scores, thresholds=head.thresholds)
