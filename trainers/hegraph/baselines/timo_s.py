"""TIMO-S: TIMO that searches how far text and images guide each other.

Li, Guo, Qi, Li, Shi: Text and Image Are Mutually Beneficial: Enhancing Training-Free Few-Shot Classification with CLIP.
AAAI 2025.

The equations are those of `timo.py`. First gamma is chosen on val, by the accuracy of the text alone; then alpha
together with beta, which is how many prompts of each class count as images: the beta prompts that are most like the
images or, beyond P, all of them and the best ones twice. As in the released code: beta is at most 2 P, and of equally
good candidates the smallest beta and then the smallest alpha are taken.

Distance from the original: that of `timo.py`. As a bank holds one text feature for each class, gamma changes nothing
and is not searched, and beta is 1 or 2. Without val images they are those of TIMO.
"""

from __future__ import annotations

from typing import ClassVar

from yacs.config import CfgNode

from ..features.bank import FeatureBank
from ..method.cache import FoldedClassifier
from ..training.choice import check_candidates, choose, has_val, val_accuracy
from ..utils.errors import UserError
from .base import Defaults, FittedMethod, Method
from .timo import TIMO, text_guided_classifier, with_text


class TIMOS(Method):
    """TIMO, with the number of text features that count as images chosen on val."""

    defaults: ClassVar[Defaults] = {
        "ALPHA": TIMO.defaults["ALPHA"],  # weight of the text where nothing is chosen
        "BETA": 1,  # how often each text feature counts as an image where nothing is chosen
        "SEARCH": True,  # choose ALPHA and BETA on val, if there are val images
        "BETAS": [1, 2],  # candidates for BETA; of equally good ones the first is taken
        "CANDIDATES": TIMO.defaults["CANDIDATES"],  # for ALPHA
    }

    def fit(self, bank: FeatureBank, options: CfgNode, seed: int, backbone: object = None) -> FittedMethod:
        """Trains nothing; `seed` changes nothing."""
        check_candidates("CANDIDATES", options.CANDIDATES)
        betas = [options.BETA, *options.BETAS]
        if len(betas) < 2 or not all(type(beta) is int and beta >= 1 for beta in betas):
            raise UserError(f"BETA and BETAS must be whole numbers from 1, got {options.BETA} and {options.BETAS}")
        gaussians = {beta: text_guided_classifier(bank, times=beta) for beta in betas}

        def classifier(values: tuple[int, float]) -> FoldedClassifier:
            beta, alpha = values
            return with_text(bank, *gaussians[beta], alpha)

        values, selected = (options.BETA, options.ALPHA), {}
        if options.SEARCH and has_val(bank):
            candidates = [(beta, alpha) for beta in options.BETAS for alpha in options.CANDIDATES]
            values, entry = choose(candidates, lambda v: val_accuracy(classifier(v).logits, bank))
            selected = {"BETA, ALPHA": entry}
        fitted = classifier(values)
        return FittedMethod(fitted.logits, selected=selected, classifier=fitted)
