"""Text nodes of the classes of a project, encoded once for each class."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ...config import Config
from ...estimator.training import NO_NAME
from ...features.backbones.base import Backbone
from ...features.extract import encode_prompts


class ClassText:
    """Text nodes of the classes that a backbone has encoded."""

    def __init__(self, backbone: Backbone) -> None:
        self._backbone = backbone
        self._nodes: dict[tuple[str, str], tuple[Tensor, Tensor]] = {}  # (data set, class) -> text nodes

    def nodes(self, names: Sequence[str], cfg: Config) -> tuple[Tensor, Tensor]:
        """Positive and negative text nodes of classes, each `[K, d]`; new classes are encoded."""
        dataset = cfg.data.name or NO_NAME
        new = [name for name in names if (dataset, name) not in self._nodes]
        if new:
            text = encode_prompts(self._backbone, dataset, new, cfg.encoding)
            self._nodes |= zip([(dataset, name) for name in new], zip(text["positive"], text["negative"]))
        of_names = [self._nodes[dataset, name] for name in names]
        positive = torch.stack([of_class for of_class, _ in of_names])
        negative = torch.stack([of_class for _, of_class in of_names])
        return positive, negative
