"""The Dassl trainer: HeGraphAdapter inside CoOp. The only file that imports dassl.

Dassl drives: its registry, its DataManager over CoOp's loaders, its epochs, evaluator and TensorBoard writer. What it
drives is the same model, fed with the same features, as `run.py`; the loaders hand it features where they hand other
trainers images. Schedule, checkpoints and record are ours in both hosts: Dassl's warm-up scheduler does not run on
current torch, and its checkpoints pickle it.

In CoOp's own `train.py`, two lines are enough (README.md, "Inside CoOp"):

    import trainers.hegraph.trainer             # first of all imports
    trainers.hegraph.trainer.extend_cfg(cfg)    # at the end of extend_cfg
"""

from __future__ import annotations

import argparse
import importlib
import os
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from torch import Tensor
from yacs.config import CfgNode

from . import config
from .baselines import METHODS, load_method
from .datasets import Dataset, Item, check_trainable, load_dataset
from .datasets.loading import open_image
from .datasets.pickles import path_from
from .datasets.registry import stored_datasets
from .experiments.experiment import Experiment
from .experiments.image_task import ImageTask
from .experiments.provenance import set_random_seed
from .experiments.run import fit_method
from .features import FeatureBank
from .training.batches import Batch
from .training.loop import Fit
from .utils import processes
from .utils.absent import absent_packages_excused
from .utils.errors import UserError, show_messages

with absent_packages_excused("wilds", "pandas"):
    from dassl.data import DataManager
    from dassl.engine import TRAINER_REGISTRY, TrainerX

__all__ = ["HeGraphAdapter", "extend_cfg", "run_in_coop"]


@TRAINER_REGISTRY.register()
class HeGraphAdapter(TrainerX):
    """HeGraphAdapter as Dassl trains it; `trainers/hegraph/model.py` is the model.

    Raises:
        UserError: On anything that the user can mend.
    """

    def check_cfg(self, cfg: CfgNode) -> None:
        show_messages()  # CoOp's train.py shows none
        if from_dassl(cfg).TRAINER.HEGRAPHADAPTER.SELECT_ON != "last_step":
            raise UserError("SELECT_ON val trains more than once, which Dassl does not; give --host alone")
        if cfg.DATASET.TARGET_DOMAINS or cfg.DATASET.TARGET_DATASETS:
            raise UserError("TARGET_DOMAINS and TARGET_DATASETS are not tested through Dassl; give --host alone")

    def build_data_loader(self) -> None:
        """Dassl's and CoOp's loaders select the images; ours hand out their features."""
        cfg = from_dassl(self.cfg)
        seed = cfg.SEED
        if seed < 0:  # CoOp would draw unseeded, and nobody could draw the same again
            seed = random.SystemRandom().randrange(2**31)
            self.cfg = self.cfg.clone()
            self.cfg.defrost()
            self.cfg.SEED = seed
            set_random_seed(seed)
        self.load_coops_data(cfg, seed)
        task = ImageTask(dataset_of(self.dm, cfg), cfg, seed, self.device.type)
        self.experiment = Experiment(cfg, task, seed, self.device.type, host="dassl")
        self.experiment.encode()

    def load_coops_data(self, cfg: CfgNode, seed: int) -> None:
        """Has CoOp's loader select the images, from what ours has found to be there.

        Where there is no split file, ours writes it, and CoOp's goes on with the generator that drew it.

        Raises:
            UserError: If something is missing on disk.
        """
        if processes.rank():
            processes.wait()  # the first process writes files
        rng = random.Random(seed)
        dataset = load_dataset(cfg.DATASET.NAME, cfg.DATASET.ROOT, seed, rng)
        check_trainable(dataset)
        random.setstate(rng.getstate())
        try:
            with sorted_listings():
                super().build_data_loader()
        except (AssertionError, LookupError, OSError, ValueError) as error:
            dataset.check_files()  # CoOp's asserts that they are there, and names none
            raise UserError(f"{dataset.name}: CoOp's loader cannot read {dataset.root} ({error!r})") from error
        if not processes.rank():
            processes.wait()

    def build_model(self) -> None:
        experiment = self.experiment
        experiment.build_model()
        self.model = experiment.model
        self.training: Fit | None = None
        self.register_model("hegraph", self.model)
        self.show_features(experiment.bank)

    def show_features(self, bank: FeatureBank) -> None:
        """Puts features into the loaders, where Dassl's hold images."""
        size = self.experiment.cfg.DATALOADER.TEST.BATCH_SIZE
        self.test_loader = [
            {"img": features, "label": labels}
            for features, labels in zip(bank.test_features.split(size), bank.test_labels.split(size))
        ]
        self.train_loader_x = self.val_loader = None  # the one waits for the training, the other is never used

    def train(self) -> None:
        if self.experiment.finished() is not None:
            return
        self.experiment.write_split()
        self.training = self.experiment.start_training()
        if self.training is None:  # the variant "base" has nothing to train
            self.max_epoch = 0
        else:
            self.max_epoch = self.training.epochs
            self.train_loader_x = EpochBatches(self.training)
            self._optims["hegraph"] = self.training.optimizer  # Dassl reads the rate it prints from there
        super().train()

    def resume_model_if_exist(self, directory: str) -> int:
        """The first epoch; `start_training` has read the checkpoint."""
        return 0 if self.training is None else self.training.epoch

    def before_epoch(self) -> None:
        self.training.begin_epoch()

    def get_current_lr(self, names: str | list[str] | None = None) -> float:
        """The rate that Dassl prints: that of the biases."""
        return self.training.learning_rate

    def forward_backward(self, batch: Batch) -> dict[str, float]:
        self.loss = self.training.step(batch)
        return {"loss": self.loss.item()}

    def after_epoch(self) -> None:
        self.training.end_epoch(self.loss)

    def after_train(self) -> None:
        if self.training is not None:
            self.experiment.end_training(self.training.result)
        super().after_train()

    def load_model(self, directory: str, epoch: int | None = None) -> None:
        """Takes the adapter of a finished run; `epoch` as Dassl counts them, from 1.

        Raises:
            UserError: If no folder is given, or there is no adapter that fits.
        """
        if not directory:
            raise UserError("--eval-only needs --model-dir, the folder of a finished run")
        self.experiment.choose_adapter(Path(directory), epoch)
        if self.experiment.finished() is None:
            self.experiment.load_adapter()

    def test(self, split: str | None = None) -> float:
        """Dassl's evaluator on the test features; also writes our record. Returns the accuracy in percent."""
        record = self.experiment.finished()
        if record is not None:
            return record["accuracy"]
        if self.experiment.adapter is not None:
            self.experiment.write_split()
        self.folded = self.model.fold()
        accuracy = super().test("test")
        self.experiment.record(self.experiment.outcome())
        return accuracy

    def model_inference(self, input: Tensor) -> Tensor:
        """Logits `[B, K]` of image features `[B, d]`."""
        return self.model.combine(self.model.predict(input, folded=self.folded))


class Method(HeGraphAdapter):
    """Another method (`baselines/`): it is fitted in one go where HeGraphAdapter trains by epochs.

    Raises:
        UserError: As HeGraphAdapter.
    """

    def build_model(self) -> None:
        experiment = self.experiment
        experiment.bank = experiment.bank.to(self.device.type)
        self.show_features(experiment.bank)

    def train(self) -> None:
        if self.experiment.finished() is not None:
            return
        self.experiment.write_split()
        self.outcome = fit_method(self.experiment)
        self.test()

    def test(self, split: str | None = None) -> float:
        """Dassl's evaluator on the test logits; also writes our record. Returns the accuracy in percent."""
        self.evaluator.reset()
        self.evaluator.process(self.outcome.logits, self.experiment.bank.test_labels)
        self.evaluator.evaluate()
        return self.experiment.record(self.outcome)["accuracy"]

    def load_model(self, directory: str, epoch: int | None = None) -> None:
        raise UserError(f"{self.cfg.TRAINER.NAME} is fitted anew in every run: --eval-only is HeGraphAdapter's")


for _name in METHODS:
    if _name != "CoOp":  # CoOp's own is registered under that name
        TRAINER_REGISTRY.register()(type(_name, (Method,), {}))


class EpochBatches:
    """The batches of the epoch that is under way, as a loader of Dassl's."""

    def __init__(self, training: Fit) -> None:
        self.training = training

    def __len__(self) -> int:
        return self.training.data.steps_per_epoch

    def __iter__(self) -> Iterator[Batch]:
        return self.training.data.epoch(self.training.epoch)


@contextmanager
def sorted_listings() -> Iterator[None]:
    """CoOp's ImageNet lists folders in the order of the file system; inside the block it is that of the names."""
    listdir = os.listdir
    os.listdir = lambda *arguments: sorted(listdir(*arguments))
    try:
        yield
    finally:
        os.listdir = listdir


def dataset_of(manager: DataManager, cfg: CfgNode) -> Dataset:
    """What Dassl's DataManager selected, with paths relative to the data root.

    The paths in a pickle of CoOp's may be those of another folder or machine.

    Raises:
        UserError: If an image is missing.
    """
    root, folder = Path(cfg.DATASET.ROOT).expanduser().absolute(), stored_datasets()[cfg.DATASET.NAME].folder

    def items(data: list | None) -> list[Item]:
        return [Item(path_from(folder, datum.impath), datum.label, datum.classname) for datum in data or ()]

    source = manager.dataset
    train, val, test = items(source.train_x), items(source.val), items(source.test)
    dataset = Dataset(cfg.DATASET.NAME, source.classnames, train, val, test, partial(open_image, root), root)
    dataset.check_files()
    return dataset


def extend_cfg(cfg: CfgNode) -> None:
    """Adds our keys to a configuration of Dassl's."""
    config.extend_cfg(cfg)
    for name in METHODS:
        config.add_method(cfg, name, load_method(name).DEFAULTS)


def from_dassl(cfg: CfgNode) -> CfgNode:
    """`config.from_dassl`, with the options of the method that runs."""
    name = cfg.TRAINER.NAME
    return config.from_dassl(cfg, (name, load_method(name).DEFAULTS) if name in METHODS else None)


def import_coop(root: Path) -> CfgNode:
    """Makes CoOp's `train.py` and its loaders importable; returns the defaults of Dassl, CoOp and ours together."""
    sys.path.insert(0, str(root))
    coop = importlib.import_module("train")
    cfg = coop.get_cfg_default()
    coop.extend_cfg(cfg)
    return config.within_dassl(cfg)


def run_in_coop(args: argparse.Namespace, cfg: CfgNode) -> None:
    """Runs CoOp's own `train.py`, unedited.

    Of several processes all encode, and the first trains.

    Args:
        args: CoOp's flags, as `__main__` parses them.
        cfg: From `import_coop`, with files, flags and options.
    """
    coop = importlib.import_module("train")
    coop.setup_cfg = lambda args: cfg
    if processes.rank():
        args.eval_only, args.no_train = False, True
        coop.setup_logger = lambda folder: None
    coop.main(args)
