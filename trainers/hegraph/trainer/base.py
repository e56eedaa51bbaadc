"""Base class of the trainers of this package: data, test, and loading of models."""

from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from yacs.config import CfgNode

from ..baselines.base import FittedMethod
from ..config import Config
from ..datasets.loading import check_trainable
from ..experiments.calibration import calibrate
from ..experiments.checks import check_training
from ..experiments.image_task import ImageTask
from ..experiments.record import make_model, save_trained
from ..experiments.run import draw_seed, test_and_finish
from ..experiments.run_folder import RunFolder, find_model_of_epoch
from ..features.bank import FeatureBank
from ..features.extract import labels_of, training_augmentation
from ..models.saved import NOT_TESTED
from ..utils.command_line import command, echo, refuse_several_processes
from ..utils.errors import UserError
from ..utils.logs import show_messages
from ..utils.option import OUR_METHOD
from ..utils.seeds import set_random_seed
from . import checkpoints
from .configuration import from_dassl, obstacles_in, refused_keys
from .host import TrainerX
from .loaded import LoadedModel
from .loaders import TestLoader, TrainLoader
from .sampling import load_with_coop, no_images, read_before_coop, sampled_dataset


@dataclass(frozen=True)
class TrainerFolder(RunFolder):
    """Output folder of a run of a trainer, whose name makes the run of a subclass another one.

    Attributes:
        trainer: Value of TRAINER.NAME.
    """

    trainer: str = OUR_METHOD

    @cached_property
    def config(self) -> dict[str, object]:
        return super().config | {"TRAINER.NAME": self.trainer}

    @property
    def can_resume(self) -> bool:
        """Whether there is a checkpoint of either kind."""
        return super().can_resume or checkpoints.latest(self.checkpoints.resume_from) is not None


class FeatureTrainer(TrainerX):
    """Base of the trainers of this package: images of Dassl and CoOp, encoded once by the frozen CLIP.

    Attributes:
        method: Name of the method, whose options the configuration has.
        settings: Checked configuration, made from Dassl's.
        task: Sampled images of the run, which encode themselves.
        folder: Output folder of the run.
        loaded: The model of `load_model`; None without one, and once a training begins.
        record: Record of the last finished run or test; {} without one.
    """

    method = OUR_METHOD
    cfg: CfgNode
    settings: Config
    folder: RunFolder
    loaded: LoadedModel | None = None

    def __init__(self, cfg: CfgNode, only_test: bool = False) -> None:
        """Build the trainer; `only_test` encodes no training images, since `load_model` follows."""
        self.only_test = only_test
        self.record: dict = {}
        super().__init__(cfg)

    def check_cfg(self, cfg: CfgNode) -> None:
        """Check the configuration before anything is loaded.

        Raises:
            UserError: If a value is not allowed, or Dassl cannot run the configuration.
        """
        show_messages()  # CoOp's train.py shows none
        refuse_several_processes()
        if refused := refused_keys(cfg):
            raise UserError(f"{type(self).__name__}: {'; '.join(refused)}")
        if obstacles := obstacles_in(from_dassl(cfg, self.method)):
            raise UserError(f"{'; '.join(obstacles)}; {command()}, with the same flags, does it without Dassl")

    def build_data_loader(self) -> None:
        """Have Dassl and CoOp sample the images; the loaders of `dm` yield images, those of the trainer features."""
        self.settings = from_dassl(self.cfg, self.method)
        self.seed = self.settings.run.seed
        if self.seed < 0:  # CoOp would sample without a seed, and the run could not be repeated
            self.seed = draw_seed()
            self.cfg = self.cfg.clone()
            self.cfg.defrost()
            self.cfg.SEED = self.seed
            set_random_seed(self.seed)
        stored = read_before_coop(self.settings, self.seed)
        self.stored = stored
        self.dm = load_with_coop(self.cfg, self.settings, stored, **self.transforms())
        self.dataset = sampled_dataset(self.dm, self.settings, stored)
        self.task = ImageTask(self.dataset, self.settings, self.seed, self.device.type)
        self.folder = TrainerFolder(self.task, "dassl", trainer=type(self).__name__)
        self.num_classes = self.dm.num_classes
        self.num_source_domains = self.dm.num_source_domains
        self.lab2cname = self.dm.lab2cname
        self.train_loader_x: TrainLoader | None = None
        self.train_loader_u = None
        self.val_loader = self.test_loader_of("val") if self.dataset.val else None
        self.test_loader = self.test_loader_of("test")

    def transforms(self) -> dict[str, Any]:
        """Return CLIP's own transforms for Dassl's DataManager, which are those of the features, and print them."""
        backbone = ImageTask(no_images(self.settings), self.settings, self.seed, self.device.type).backbone
        training = training_augmentation(backbone, self.settings.encoding)
        echo(f"CLIP: {backbone.name}, {backbone.precision}\n* transform of training images: {training}\n")
        echo(f"* transform of test images: {backbone.preprocess}\n")
        return {"custom_tfm_train": training, "custom_tfm_test": backbone.preprocess}

    def test_loader_of(self, split: str) -> TestLoader:
        """Return the loader of the features of "val" or "test"."""
        items = self.dataset.splits[split]
        encode = partial(self.task.encode, self.dataset, items, split)
        return TestLoader(encode, labels_of(self.dataset, items), self.settings.encoding.batch_size)

    def bank_of(self, *splits: str) -> FeatureBank:
        """Return the features of the text and of some splits on the device, encoding those that are not on disk."""
        left_out: dict[str, Any] = {split: [] for split in self.dataset.splits if split not in splits}
        part = replace(self.dataset, **left_out)
        return ImageTask(part, self.settings, self.seed, self.device.type).bank().to(self.device.type)

    def check_before_training(self) -> None:
        """Raise UserError if there is nothing to train on, or as in `check_training`; nothing is encoded."""
        if self.stored is not None:
            check_trainable(self.stored)
        check_training(self.task)
        self.task.prepare()

    def parse_batch_train(self, batch: dict) -> tuple[Tensor, Tensor]:
        """Return features `[B, d]` and labels `[B]` on the device."""
        return batch["img"].to(self.device), batch["label"].to(self.device)

    def encode(self, images: Tensor) -> Tensor:
        """Return features `[B, d]` of images `[B, 3, H, W]` that a loader of `dm` transformed; features stay."""
        features = self.task.backbone.encode_images(images) if images.dim() == 4 else images
        return features.to(self.device)

    def classify(self, features: Tensor) -> Tensor:
        """Return the logits `[B, K]` of the method that was trained, from features `[B, d]`."""
        raise NotImplementedError

    def model_inference(self, images: Tensor) -> Tensor:
        """Return the logits `[B, K]` of images `[B, 3, H, W]`, or of features `[B, d]` of this trainer's loaders."""
        features = self.encode(images)
        return self.classify(features) if self.loaded is None else self.loaded.logits(features)

    def train(self) -> None:
        """Train, test and write the record, unless the folder holds the record of this run: then load its model."""
        if (record := self.folder.finished()) is not None:
            self.record = record
            self.load_finished()
            return
        self.check_before_training()
        self.loaded = None
        self.record = self.folder.run_once(self.train_in_folder)

    def train_in_folder(self) -> dict:
        """Train and test in the locked folder; return the record, or {} with TEST.NO_TEST."""
        raise NotImplementedError

    def load_finished(self) -> None:
        """Load the model of the finished run, so that it can be tested; nothing if the method saves none."""
        if self.folder.model_folder.is_dir():
            self.load_model(self.output_dir)

    def finish(self, fitted: FittedMethod, seconds: float) -> dict:
        """Write model, predictions and record of a fitted method; with TEST.NO_TEST the model only, and return {}."""
        if not self.cfg.TEST.NO_TEST:
            bank = self.task.bank().to(self.device.type)
            return test_and_finish(self.folder, bank, fitted, seconds)
        bank = self.bank_of("train", "val")
        model = make_model(self.folder, bank, calibrate(fitted, self.task, bank))
        save_trained(self.folder, model, NOT_TESTED)
        self.folder.checkpoints.remove()
        return {}

    def load_model(self, directory: str, epoch: int | None = None) -> None:
        """Load the model folder of a run, to test it on the test images of this trainer.

        Args:
            directory: Output folder of a run, or a model folder.
            epoch: Number of epochs after which the model was saved; None for the last.

        Raises:
            UserError: If there is no such model, or as in `LoadedModel.read`.
        """
        if not directory:
            echo("load_model() is skipped, as no directory is given\n")
            return
        path = find_model_of_epoch(Path(directory), epoch)
        self.loaded = LoadedModel.read(path, self.dataset, self.settings, self.device.type)

    @torch.no_grad()
    def test(self, split: str | None = None) -> float:
        """Test with Dassl's evaluator, and return the accuracy in percent; the test of a loaded model is recorded."""
        accuracy = super().test(split)
        if self.loaded is not None and split != "val":
            self.record = self.loaded.write_record()
        return accuracy
