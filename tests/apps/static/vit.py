"""A ViT-B/32 with random weights, and a model with its features."""

import torch
from torch import Tensor

from trainers.hegraph import Backbone
from trainers.hegraph.features.backbones.open_clip_models import as_backbone, create_model
from trainers.hegraph.features.backbones.schema import BackboneConfig
from trainers.hegraph.method.cache import FoldedClassifier
from trainers.hegraph.models.saved import NOT_TESTED, Preprocessing, SavedModel, TrainedOn


def random_backbone() -> Backbone:
    """A random ViT-B/32, which decodes large photos at a reduced scale."""
    torch.manual_seed(0)
    built = create_model("ViT-B-32")
    built[0].eval().requires_grad_(False)
    return as_backbone("ViT-B-32", built, {"preprocess": repr(built[1])}).with_decoding("auto")


def model_of(backbone: Backbone, weights: Tensor) -> SavedModel:
    """Model with ten class weights `[10, d]` of unit norm."""
    names = tuple("abcdefghij")
    trained_on = TrainedOn(
        dataset="Photos", shots=1, seed=1, num_train=10, split_hash="0" * 64, selected_on="last_step", selected={},
        config={}, host="alone", git_commit=None, versions={},
    )  # fmt: skip
    return SavedModel(
        classifier=FoldedClassifier(100 * weights), text_positive=weights, classnames=names, class_ids=names,
        method="HeGraphAdapter", variant="full", logit_scale=100.0, temperature=2.0,
        backbone=BackboneConfig(title="ViT-B-32", fingerprint=backbone.fingerprint, decode="auto"),
        preprocessing=Preprocessing.of(backbone), prompts=None, transfer=None, transfer_rule="none",
        trained_on=trained_on, scores=NOT_TESTED,
    )  # fmt: skip
