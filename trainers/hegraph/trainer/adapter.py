"""HeGraphAdapter as a trainer of Dassl, and the base class of all trainers of this package."""

import time
import warnings
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from yacs.config import CfgNode

from ..baselines.base import FittedMethod
from ..baselines.hegraph import fitted_adapter, new_model
from ..config import Config
from ..datasets.loading import check_trainable
from ..experiments.calibration import calibrate
from ..experiments.checks import check_training
from ..experiments.evaluation import encode_targets
from ..experiments.fitting import fit
from ..experiments.image_task import ImageTask
from ..experiments.record import make_model, save_trained
from ..experiments.run import checkpoints_with_models, draw_seed, test_and_finish
from ..experiments.run_folder import RunFolder, find_model_of_epoch, no_such_epoch, saved_epochs
from ..features.bank import FeatureBank
from ..features.extract import labels_of, training_augmentation
from ..method.cache import Logits
from ..method.training.loop import AdapterTraining
from ..models.saved import NOT_TESTED
from ..results.records import SPLIT
from ..utils.command_line import command, echo, refuse_several_processes
from ..utils.errors import UserError
from ..utils.logs import show_messages
from ..utils.option import OUR_METHOD
from ..utils.reading import read_json
from ..utils.seeds import set_random_seed
from . import checkpoints
from .configuration import from_dassl, obstacles_in, refused_keys
from .host import TRAINER_REGISTRY, TrainerX, compute_accuracy
from .loaded import LoadedModel
from .loaders import TestLoader, TrainLoader, to_batch
from .sampling import load_with_coop, no_images, read_before_coop, sampled_dataset
from .schedule import WarmCosine


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


@TRAINER_REGISTRY.register()
class HeGraphAdapter(FeatureTrainer):
    """HeGraphAdapter in the methods of CoOp's own trainer; `method/model.py` has the model.

    CLIP is frozen, so images are encoded once and not in every epoch: `build_model` encodes ten augmented views of each
    training image, or reads them from FEATURES.DIR, and `train_loader_x` yields one view of each image in an epoch.
    `val_loader` and `test_loader` yield features as well, encoded at the first test. `model_inference` takes images,
    such as those of `dm.test_loader`. NUM_SHOTS -1, as in CoOp's tests, builds the model when `train` begins.

    A subclass overrides `loss`, `build_scheduler`, or any method of Dassl.
    """

    model: Any = None  # HeGraphModel, once it is built
    training: AdapterTraining | None = None  # None for a variant without training, as are these
    optim: Any = None
    sched: Any = None

    def build_model(self) -> None:
        """Build and register the model, unless it is only tested or would need all images of a data set."""
        trainable = self.stored is None or bool(self.stored.train)
        if trainable and self.settings.data.shots > 0 and not self.only_test:
            self.build_adapter()

    def build_adapter(self) -> None:
        """Encode the training images, and register the model with its optimizer and schedule as "hegraph"."""
        self.check_before_training()
        started = time.monotonic()
        bank = self.bank_of("train")
        self.features_seconds = time.monotonic() - started
        self.model = new_model(bank, self.settings, self.seed)
        self.checkpoints = checkpoints_with_models(self.folder, bank)
        self.max_epoch = 0
        if self.model.layers is not None:
            data = self.task.batches(bank)
            self.training = AdapterTraining.start(self.model, data, self.settings.training)
            self.training.checkpoints = self.checkpoints  # from which `resume_model_if_exist` resumes
            self.train_loader_x = TrainLoader(data)
            self.max_epoch = self.training.epochs
            self.optim = self.training.optimizer
            self.shown_group = self.training.peak_rates.index(self.training.peak_rate)
            self.sched = self.build_scheduler(self.optim)
        self.register_model(checkpoints.NAME, self.model, self.optim, self.sched)

    def build_scheduler(self, optim: Optimizer) -> Any:
        """Return the schedule of the learning rates, which takes a step after each epoch."""
        return WarmCosine(optim, self.max_epoch, self.settings.training)

    def loss(self, logits: Logits, labels: Tensor) -> Tensor:
        """Return the loss of a batch from the logits of text and cache, `[B, K]` each; those of a cache may be None."""
        assert self.training is not None
        return self.training.loss(logits, labels)

    def train_in_folder(self) -> dict:
        if self.model is None:
            self.build_adapter()
        encode_targets(self.task)  # before the training, so that an unreadable image ends the run early
        wanted = self.settings.training.epochs
        if self.max_epoch > wanted:
            echo(f"{self.max_epoch} epochs instead of OPTIM.MAX_EPOCH {wanted}, to take MIN_STEPS steps\n")
        checkpoints.write_run(self.folder.path, self.folder.run_id)
        super(FeatureTrainer, self).train()
        return self.record

    def resume_model_if_exist(self, directory: str) -> int:
        """Load the checkpoint of either kind with the most epochs, and return their number.

        Raises:
            UserError: If it is damaged, or of another run.
        """
        if self.training is None:
            return 0
        self.training.resume()
        folder = Path(directory)
        found = checkpoints.latest(folder)
        if found is not None and found[0] > self.training.epoch:
            checkpoints.check_run(folder, self.folder.run_id)
            self.load_state(found[1], resume=True)
            echo(f"resuming from {found[1]} after epoch {self.training.epoch} of {self.max_epoch}\n")
        elif self.sched is not None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about steps of a schedule without steps of the optimizer
                for _ in range(self.training.epoch):
                    self.sched.step()
        return self.training.epoch

    def load_state(self, path: Path, resume: bool = False) -> None:
        """Load the parameters of a checkpoint of Dassl; to resume, also its optimizer, schedule and epoch.

        Raises:
            UserError: If the file is damaged or does not fit the model.
        """
        state = checkpoints.read_state(path)
        if not checkpoints.fits(state["state_dict"], self.model):
            raise UserError(f"the tensors of {path} do not fit this model, which has other classes or another variant")
        self.model.load_state_dict(state["state_dict"])
        if resume and self.training is not None:
            self.optim.load_state_dict(state["optimizer"])
            self.sched.load_state_dict(state["scheduler"])
            self.training.epoch = state["epoch"]

    def before_epoch(self) -> None:
        assert self.training is not None and self.train_loader_x is not None
        self.training.seed_noise()
        self.train_loader_x.set_epoch(self.epoch)

    def get_current_lr(self, names: str | list[str] | None = None) -> float:
        """Return the learning rate of the biases, which Dassl prints."""
        return self.optim.param_groups[self.shown_group]["lr"]

    def forward_backward(self, batch: dict) -> dict[str, float]:
        """Take one step, and return loss and accuracy in percent of the text classifier on the batch."""
        assert self.training is not None
        features, labels = self.parse_batch_train(batch)
        logits = self.training.logits(to_batch(batch)._replace(features=features, labels=labels))
        self.last_loss = self.loss(logits, labels)
        self.model_backward_and_update(self.last_loss)
        if self.batch_idx + 1 == self.num_batches:
            self.update_lr()
        return {"loss": self.last_loss.item(), "acc": compute_accuracy(logits.text, labels)[0].item()}

    def detect_anomaly(self, loss: Tensor) -> None:
        """Raise UserError if the loss is not finite."""
        if not loss.isfinite().all():
            rate = self.settings.training.learning_rate
            raise UserError(f"the loss is {loss.item()} in epoch {self.epoch + 1}; lower OPTIM.LR ({rate})")

    def after_epoch(self) -> None:
        """Save Dassl's checkpoint and that of this package, if they are due."""
        assert self.training is not None
        super().after_epoch()
        self.training.end_epoch(self.last_loss.detach())

    def after_train(self) -> None:
        """Test as Dassl does, then write adapter, model folder and record."""
        if self.training is not None:
            self.checkpoints.save_adapter(self.model)
        super().after_train()
        summary = None if self.training is None else self.training.summary
        self.record = self.finish(fitted_adapter(self.model, summary), self.features_seconds)

    def classify(self, features: Tensor) -> Tensor:
        if self.model is None:
            self.build_adapter()
        return self.model.fold().logits(features)

    def load_model(self, directory: str, epoch: int | None = None) -> None:
        """Load the model of a run, from its model folder, a checkpoint `hegraph/model.pth.tar-N`, or both.

        The model folder can be tested on other classes and domains. A checkpoint has the parameters of `model`, if that
        was built for the same training images.

        Args:
            directory: Output folder of a run, or a model folder.
            epoch: Number of epochs after which the model was saved; None for the last.

        Raises:
            UserError: If there is no such model, which lists the epochs that exist, or as in `LoadedModel.read`.
        """
        if not directory:
            super().load_model(directory, epoch)
            return
        folder = Path(directory)
        states = checkpoints.epochs_in(folder)
        state = states.get(max(states, default=0) if epoch is None else epoch)
        in_folders = saved_epochs(folder)
        has_folder = epoch in in_folders or (epoch is None and (state is None or (folder / "model").is_dir()))
        if not has_folder and state is None:
            raise no_such_epoch(folder, epoch, {*in_folders, *states})
        self.loaded = None
        if has_folder:
            super().load_model(directory, epoch)
        elif self.model is None:
            self.build_adapter()
        if state is not None and self.model is not None and self.has_images_of(folder):
            self.load_state(state)
        elif not has_folder:
            raise UserError(f"{state} was trained on other images than those of this trainer; load its model folder")

    def has_images_of(self, folder: Path) -> bool:
        """Whether a run in a folder was trained on the images of this trainer, as far as the folder tells."""
        split = folder / SPLIT
        return not split.is_file() or read_json(split) == self.task.split


class BaselineTrainer(FeatureTrainer):
    """Base of the trainers of the methods in `baselines/`, which fit themselves without Dassl's loop over epochs."""

    fitted: FittedMethod | None = None

    def build_model(self) -> None:
        """Build nothing: `train` fits the method."""

    def train_in_folder(self) -> dict:
        started = time.monotonic()
        bank = self.task.bank().to(self.device.type)
        seconds = time.monotonic() - started
        encode_targets(self.task)
        self.fitted = fit(self.task, bank)
        echo("Finish training\n")  # as after Dassl's epochs; CoOp's parse_test_res.py reads scores below this line
        if not self.cfg.TEST.NO_TEST:
            self.test()
        return self.finish(self.fitted, seconds)

    def classify(self, features: Tensor) -> Tensor:
        if self.fitted is None:
            raise UserError(f"{self.method} is not fitted yet: call train() or load_model() first")
        return self.fitted.logits(features)


def baseline_trainer(name: str) -> type[BaselineTrainer]:
    """Return the trainer class of a method of `baselines/`; nothing is registered."""
    return type(name, (BaselineTrainer,), {"method": name})
