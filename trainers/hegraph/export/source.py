"""What is exported: a trained model and, for the full graph, its backbone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..models.folder import load_model
from ..models.images import backbone_to_load, check_backbone
from ..models.saved import Preprocessing, SavedModel
from ..utils.errors import UserError

if TYPE_CHECKING:
    from ..backbones.clip import Backbone


def load_source(folder: Path, part: str, name: str, pretrained: str) -> tuple[SavedModel, Backbone | None]:
    """Loads a model folder and, for the part "full", the backbone of the model in float32 on the CPU.

    Args:
        folder: The model folder, or the output folder of a run.
        part: "head" or "full".
        name, pretrained: The backbone and its weights; "" is what the model folder names.

    Raises:
        UserError: If the folder is damaged, nothing names the backbone and its weights, or its features are not those
            of the backbone.
    """
    model = load_model(folder)
    if part == "head":
        return model, None
    try:
        named = backbone_to_load(model, name, pretrained)
    except UserError as error:
        raise UserError(f"{error}, or export --part head") from error
    from ..backbones.loading import load_backbone  # imports open_clip

    backbone = load_backbone(*named)
    check_backbone(model, backbone)
    return model.model_copy(update={"preprocessing": Preprocessing.of(backbone)}), backbone
