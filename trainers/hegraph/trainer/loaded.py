"""A model folder that `load_model` reads, and the test of it."""

import logging
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from ..config import Config
from ..datasets.base import Dataset
from ..experiments.checks import check_unseen
from ..experiments.evaluation import evaluate
from ..experiments.image_task import ImageTask
from ..experiments.run import adapt_and_test, check_configuration
from ..experiments.run_folder import RunFolder
from ..experiments.tasks import FeatureTask
from ..features.bank import FeatureBank
from ..models.folder import load_model
from ..models.saved import SavedModel
from ..results.records import read_record

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class LoadedModel:
    """A trained model on the classes and test images of a trainer, which may be others than those of its training.

    Attributes:
        saved: The model.
        folder: Output folder of the test.
        device: Device of the computation.
    """

    saved: SavedModel
    folder: RunFolder
    device: str

    @classmethod
    def read(cls, path: Path, dataset: Dataset, cfg: Config, device: str) -> "LoadedModel":
        """Read a model folder, and check that the configuration and the test images fit it.

        Raises:
            UserError: If it cannot be read, was trained with other settings, or a test image was a training image.
        """
        saved = load_model(path)
        check_configuration(saved, cfg)
        task = ImageTask(dataset.only_test(), cfg, saved.trained_on.seed, device)
        check_unseen(path, saved, task)
        task.check_backbone(saved)
        return cls(saved, RunFolder(task, "dassl", path), device)

    @cached_property
    def texts(self) -> FeatureBank:
        """Text features of the classes of the test, without images."""
        task = self.folder.task
        assert isinstance(task, ImageTask)
        no_images = replace(task.dataset, train=[], val=[], test=[])
        return ImageTask(no_images, task.cfg, task.seed, self.device).bank().to(self.device)

    def logits(self, features: Tensor) -> Tensor:
        """Return logits `[B, K]` of features `[B, d]` by the rule of the classes (`evaluation.py`)."""
        task = self.folder.task
        labels = torch.zeros(len(features), dtype=torch.long, device=features.device)
        bank = replace(self.texts, test_features=features, test_labels=labels)
        target = FeatureTask(bank, task.cfg, task.seed, class_ids=task.class_ids)
        predictions = evaluate(self.saved, target, self.device)
        assert predictions.logits is not None  # there are features
        return predictions.logits

    def write_record(self) -> dict:
        """Test on all test images, and write and return the record; {} if the folder holds the record of another run.

        That is the folder of the training, or of another test, into which Dassl's users test as well.
        """
        held = read_record(self.folder.path)
        if held is not None and held["run_id"] != self.folder.run_id:
            logger.info("%s holds the record of another run: this test is printed only", self.folder.path)
            return {}
        if held is not None:
            return held
        return self.folder.run_once(lambda: adapt_and_test(self.folder, self.saved, self.device))
