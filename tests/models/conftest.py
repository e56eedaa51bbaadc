"""A small model with fixed values."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from trainers.hegraph.features.backbones.schema import BackboneConfig
from trainers.hegraph.method.cache import FoldedClassifier
from trainers.hegraph.method.head.closed_form import NewClassMessages
from trainers.hegraph.method.model import TransferableAdapter
from trainers.hegraph.method.options import ClosedFormOptions, ModelOptions
from trainers.hegraph.models.saved import Preprocessing, Prompts, SavedModel, Scores, TrainedOn

CLASSES, WIDTH, IMAGES = 3, 8, 6


@pytest.fixture
def saved_model(unit_features: Callable[..., Tensor]) -> Callable[..., SavedModel]:
    """Function of changed fields that makes a model of 3 classes, 6 cached images and width 8 with all tensors."""

    def make(**changes: object) -> SavedModel:
        cache = unit_features(IMAGES, WIDTH, seed=1), torch.arange(IMAGES) % CLASSES, torch.linspace(0.5, 1.5, IMAGES)
        weights, bias, eye = 20 * unit_features(CLASSES, WIDTH), torch.tensor([0.1, 0.0, -0.1]), torch.eye(WIDTH)
        fields = {
            "classifier": FoldedClassifier(weights, bias, *cache, alpha=2.0, beta=5.5),
            "text_positive": unit_features(CLASSES, WIDTH, seed=2),
            "classnames": ("ant", "bee", "crane"),
            "class_ids": ("n1", "n2", "n3"),
            "method": "HeGraphAdapter",
            "variant": "full",
            "logit_scale": 20.0,
            "temperature": 1.5,
            "backbone": BackboneConfig(title="m/w", model="m", pretrained="w", fingerprint={"weights": "w"}),
            "preprocessing": Preprocessing(size=[32, 32], mean=[0.5] * 3, std=[0.2] * 3, transform="Compose(...)"),
            "prompts": Prompts(positive=[[["an ant"], ["a bee"], ["a crane"]]], negative=[["no ant"], ["no bee"], []]),
            "transfer": TransferableAdapter(
                ModelOptions(closed_form=ClosedFormOptions(omega=0.1)),
                {f"weight.{name}": eye for name in ("positive", "negative", "visual")}
                | {"metapath.ALPHA_PP": torch.tensor(0.25)},
                NewClassMessages(eye, torch.linspace(0, 1, WIDTH), 2 * eye, torch.full((WIDTH,), 0.1)),
            ),
            "transfer_rule": "adapter",
            "class_nodes": unit_features(CLASSES, WIDTH, seed=5),
            "trained_on": TrainedOn(
                dataset="Tiny", shots=2, seed=1, num_train=IMAGES, split_hash="0" * 64, selected_on="last_step",
                selected={}, config={"OPTIM.LR": 0.001}, host="alone", git_commit=None, versions={"torch": "2.4"},
            ),
            "scores": Scores(accuracy=90.0, accuracy_text=80.0, accuracy_zero_shot=70.0, macro_f1=89.0, num_test=10),
        }  # fmt: skip
        return SavedModel(**fields | changes)

    return make
