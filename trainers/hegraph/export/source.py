"""What is exported: a trained model and, for the full graph, its backbone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..models.folder import load_model
from ..models.images import check_backbone
from ..models.saved import SavedModel
from ..models.schema import Preprocessing
from ..utils.errors import UserError

if TYPE_CHECKING:
    from ..backbones.clip import Backbone


def load_source(folder: Path, part: str, name: str, pretrained: str) -> tuple[SavedModel, Backbone | None]:
    """Loads a model folder and, for the part "full", the backbone of the model in float32 on the CPU.

    Args:
        folder: The model folder, or the output folder of a run.
        part: "head" or "full".
        name, pretrained: The backbone, as `load_backbone` takes it; "" is the one that the model folder names.

    Raises:
        UserError: If the folder is damaged, names no backbone, or its features are not those of the backbone.
    """
    model = load_model(folder)
    if part == "head":
        return model, None
    saved = model.backbone
    if not (name or saved.model):
        raise UserError(
            f"{folder} was trained from a feature bank, which does not say how images are encoded; give --backbone, or "
            "--part head"
        )
    from ..backbones.loading import load_backbone  # imports open_clip

    backbone = load_backbone(name, pretrained or "auto") if name else load_backbone(saved.model, saved.pretrained)
    check_backbone(model, backbone)
    return replace(model, preprocessing=Preprocessing.of(backbone)), backbone
