"""Methods for several labels per image: labels of a bank are indicators, booleans `[N, K]`.

Zero-shot CLIP (`class_features.py`) works for several labels as well. Its scores are comparable within a class only
after standardisation, since prompts differ in their mean similarity to images.
"""

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from ..features.bank import FeatureBank
from ..method.cache import FoldedClassifier, text_logits
from ..method.multilabel import MultiLabelHead
from .base import EPSILON, Defaults, FittedMethod, Method, Options, check_number

NOT_SAVED = "it serves as a comparison for several labels per image"


class ZeroShotStandardised(Method):
    """Zero-shot CLIP whose cosines are standardised by prompt and by image.

        z_k = (s_k - m_k) / d_k,    logits = (z - mean_k z_k) / std_k z_k

    `m_k` and `d_k` are the mean and the standard deviation of the cosines `s_k` of the training images, without their
    labels.
    """

    defaults: ClassVar[Defaults] = {}
    not_saved: ClassVar[str] = NOT_SAVED

    def fit(self, bank: FeatureBank, options: Options, seed: int, backbone: object = None) -> FittedMethod:
        reference = text_logits(bank.cache_keys(), bank.text_positive, 1.0)
        mean, deviation = reference.mean(dim=0), reference.std(dim=0, correction=0).clamp_min(EPSILON)

        def logits(features: Tensor) -> Tensor:
            by_prompt = (text_logits(features, bank.text_positive, 1.0) - mean) / deviation
            centred = by_prompt - by_prompt.mean(dim=1, keepdim=True)
            return centred / centred.std(dim=1, correction=0, keepdim=True).clamp_min(EPSILON)

        return FittedMethod(logits)


class OneVsRest(Method):
    """One logistic regression for each class, by scikit-learn, with balanced weights of both answers.

    A class that all or none of the training images have has a constant score.
    """

    defaults: ClassVar[Defaults] = {"C": 1.0, "MAX_ITERATIONS": 1000}  # inverse penalty; iterations of L-BFGS
    not_saved: ClassVar[str] = NOT_SAVED

    def fit(self, bank: FeatureBank, options: Options, seed: int, backbone: object = None) -> FittedMethod:
        from sklearn.linear_model import LogisticRegression  # takes a second to import

        check_number("C", options.C)
        check_number("MAX_ITERATIONS", options.MAX_ITERATIONS, 1, integer=True)
        keys, labels = bank.cache_keys(), bank.train_labels.cpu().numpy()
        weight, bias = torch.zeros_like(bank.text_positive), keys.new_zeros(len(bank.text_positive))
        for k, answers in enumerate(labels.T):
            if len(np.unique(answers)) < 2:
                bias[k] = 1.0 if answers.all() else -1.0
                continue
            model = LogisticRegression(C=options.C, class_weight="balanced", max_iter=options.MAX_ITERATIONS)
            model.fit(keys.cpu().numpy(), answers)
            weight[k], bias[k] = torch.from_numpy(model.coef_[0]), float(model.intercept_[0])
        return FittedMethod(FoldedClassifier(weight, bias).logits, thresholds=torch.zeros_like(bias))


class Ridge(Method):
    """Ridge regression of the label indicators without text: `method/multilabel.py` with `g = 0`."""

    defaults: ClassVar[Defaults] = {}
    not_saved: ClassVar[str] = NOT_SAVED

    def fit(self, bank: FeatureBank, options: Options, seed: int, backbone: object = None) -> FittedMethod:
        head = MultiLabelHead(bank.cache_keys(), bank.train_labels)
        return FittedMethod(head.scores, thresholds=head.thresholds)
