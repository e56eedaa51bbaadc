"""HeGraphAdapter as a trainer of Dassl."""

import time
import warnings
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from ..baselines.hegraph import fitted_adapter, new_model
from ..experiments.evaluation import encode_targets
from ..experiments.run import checkpoints_with_models
from ..experiments.run_folder import no_such_epoch, saved_epochs
from ..method.cache import Logits
from ..method.training.loop import AdapterTraining
from ..results.records import SPLIT
from ..utils.command_line import echo
from ..utils.errors import UserError
from ..utils.reading import read_json
from . import checkpoints
from .base import FeatureTrainer
from .host import TRAINER_REGISTRY, compute_accuracy
from .loaders import TrainLoader, to_batch
from .schedule import WarmCosine


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
        for folder in {self.folder.path, self.folder.checkpoints.resume_from}:
            checkpoints.check_run(folder, self.folder.run_id)
        checkpoints.write_run(self.folder.path, self.folder.run_id)
        super(FeatureTrainer, self).train()
        return self.record

    def resume_model_if_exist(self, directory: str) -> int:
        """Load the checkpoint of either kind with the most epochs, and return their number.

        Raises:
            UserError: If it is damaged, or does not fit the model.
        """
        if self.training is None:
            return 0
        self.training.resume()
        folder = Path(directory)
        found = checkpoints.latest(folder)
        if found is not None and found[0] > self.training.epoch:
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
