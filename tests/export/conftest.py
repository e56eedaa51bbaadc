"""Trained models that the tests of the export share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from trainers.hegraph.method.cache import FoldedClassifier
from trainers.hegraph.models.folder import load_model
from trainers.hegraph.models.saved import Backbone, SavedModel

EARLIER = Path(__file__).parents[1] / "models" / "earlier" / "model"


@pytest.fixture(scope="session")
def random_model(unit_features: Callable[..., Tensor]) -> Callable[..., SavedModel]:
    """Function of the width and of parts of the classifier: a model of 10 classes with random class weights, and with a
    cache of unequal numbers of images for each class unless `cache=False`.
    """

    def make(width: int, cache: bool = True, **parts: Tensor) -> SavedModel:
        if cache:
            labels = torch.tensor([label for label in range(10) for _ in range(1 + label % 4)]).flip(0)
            keys = unit_features(len(labels), width, seed=1).half().float()
            parts = {"keys": keys, "labels": labels, "alpha": 2.0, "beta": 5.5, **parts}
        names = tuple(f"class {number}" for number in range(10))
        changes = {
            "classifier": FoldedClassifier(100 * unit_features(10, width, seed=2), **parts),
            "text_positive": unit_features(10, width, seed=2),
            "classnames": names,
            "class_ids": names,
            "variant": "full" if cache else "T",
            "logit_scale": 100.0,
            "temperature": 1.3,
            "backbone": Backbone(title="random"),
        }
        others = ("preprocessing", "prompts", "known", "transfer", "class_nodes", "labelled")
        return load_model(EARLIER).model_copy(update=dict.fromkeys(others) | {"transfer_rule": "none"} | changes)

    return make
