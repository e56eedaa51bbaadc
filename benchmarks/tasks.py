"""Tasks of any size with random features of unit norm, for measurements of time but not of accuracy."""

import torch
import torch.nn.functional as F
from torch import Tensor

from trainers.hegraph.config import Config
from trainers.hegraph.config_files import load_cfg
from trainers.hegraph.features.bank import FeatureBank
from trainers.hegraph.method.model import build_model
from trainers.hegraph.method.training.batches import BankBatches
from trainers.hegraph.method.training.loop import AdapterTraining


def unit_features(*shape: int, seed: int = 0) -> Tensor:
    """Sample random vectors of unit norm along the last dimension."""
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def random_bank(num_classes: int, width: int, shots: int = 16, views: int = 1, test: int = 0) -> FeatureBank:
    """Create a feature bank of random features of unit norm.

    Args:
        num_classes: Number of classes K.
        width: Feature width d.
        shots: Number of training images per class.
        views: Number of augmented views of each training image.
        test: Number of test images; 0 for a bank without test images.
    """
    return FeatureBank(
        train_features=unit_features(views, num_classes * shots, width),
        train_labels=torch.arange(num_classes).repeat_interleave(shots),
        text_positive=unit_features(num_classes, width, seed=1),
        text_negative=unit_features(num_classes, width, seed=2),
        test_features=unit_features(test, width, seed=3) if test else None,
        test_labels=torch.arange(test) % num_classes if test else None,
        classnames=[str(k) for k in range(num_classes)],
        dataset="Random",
        backbone="none",
        logit_scale=100.0,
    )


def layer_of_the_paper() -> Config:
    """Configuration with a `W` in all six relations, and with neither noise nor the closed-form head."""
    node = "TRAINER.HEGRAPHADAPTER"
    layer = [f"{node}.TEXT_W", True, f"{node}.WEIGHT_INIT", "identity"]
    plain = [f"{node}.NOISE", 0.0, f"{node}.CLOSED_FORM.OMEGA", 0.0, f"{node}.TRUST_TEXT", False]
    return load_cfg(opts=[*layer, *plain])


def start_training(bank: FeatureBank, cfg: Config | None = None) -> AdapterTraining:
    """Create a training on a bank, by default with the default recipe, at the start of the epoch after warm-up."""
    cfg = cfg or load_cfg()
    data = BankBatches(bank.train_features, bank.train_labels, cfg.data.batch_size, seed=1)
    training = AdapterTraining.start(build_model(bank, cfg.model), data, cfg.training)
    training.epoch = 1
    training.begin_epoch()
    training.model.train()
    return training
