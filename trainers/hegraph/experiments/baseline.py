"""Fits another method as a configuration says: with its own options, the seed, and the backbone if it needs one."""

from __future__ import annotations

from ..baselines.base import FittedMethod, Method
from ..config import Config
from ..features.bank import FeatureBank
from ..utils.errors import UserError
from .provenance import set_random_seed
from .tasks import Task


def fit_baseline(method: Method, task: Task, bank: FeatureBank, cfg: Config, seed: int) -> FittedMethod:
    """Fits a method.

    Args:
        method: The method.
        task: The task, for the backbone.
        bank: What the method is fitted to: the task's features without those of test images, or a part of them.
        cfg: The checked configuration.
        seed: Of everything random.

    Raises:
        UserError: If the method needs the backbone, and the task is a feature bank.
    """
    backbone = getattr(task, "backbone", None) if method.needs_backbone else None
    if method.needs_backbone and backbone is None:
        raise UserError(
            f"{method.name} learns prompts through the backbone's text tower; give images instead of --features"
        )
    set_random_seed(seed)
    return method.fit(bank, cfg.method, seed, backbone)
