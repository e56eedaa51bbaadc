"""What an ONNX file says about itself. Every value is JSON, in ASCII."""

from __future__ import annotations

import json
import re
from typing import Any

from ..models.saved import Preprocessing, SavedModel

Shapes = dict[str, list[int | str]]  # of inputs or outputs, by name; a string stands for any number


def describe_model(model: SavedModel, inputs: Shapes, outputs: Shapes) -> dict[str, str]:
    """The metadata of an ONNX file, from name to JSON."""
    values = {
        "inputs": inputs,
        "outputs": outputs,
        "classes": list(model.classnames),
        "class_ids": list(model.class_ids),
        "tau": model.logit_scale,
        "temperature": model.temperature,
        "known": None if model.known is None else model.known.model_dump(mode="json"),
        "preprocessing": None if model.preprocessing is None else describe_preprocessing(model.preprocessing),
        "backbone": model.backbone.title,
        "method": model.method,
        "variant": model.variant,
        "trained_on": {"dataset": model.trained_on.dataset, "shots": model.trained_on.shots},
    }
    return {name: json.dumps(value) for name, value in values.items()}


def describe_preprocessing(preprocessing: Preprocessing) -> dict[str, Any]:
    """The test transform in plain values.

    Returns:
        A dict of:

        - `size`: `[H, W]`.
        - `resize`: "shortest" (the shorter edge becomes `H`, which equals `W`, and the longer one is rounded down),
          "squash" (both edges become `size`), or "other" (only `transform` says what).
        - `interpolation`: a name of Pillow's in lower case; None if it is not known.
        - `crop`: "center".
        - `mean`, `std`: of the normalisation, which comes after pixels have been divided by 255.
        - `transform`: the text of all of it.
    """
    transform = preprocessing.transform
    resize = re.search(r"\bResize\(size=(\(?)\d+.*?interpolation=(\w+)", transform)
    interpolation = resize or re.search(r"interpolation=InterpolationMode\.()(\w+)", transform)
    return {
        "size": preprocessing.size,
        "resize": "other" if resize is None else "squash" if resize[1] else "shortest",
        "interpolation": interpolation[2].lower() if interpolation else None,
        "crop": "center",
        "mean": preprocessing.mean,
        "std": preprocessing.std,
        "transform": transform,
    }
