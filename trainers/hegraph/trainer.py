"""The Dassl trainer: HeGraphAdapter inside CoOp. This is the only file that imports dassl.

Dassl drives: its registry, its DataManager over CoOp's loaders, its epochs, its evaluator and its TensorBoard writer.
It drives the same model as `experiments/run.py`, fed with the same features: where the loaders hand images to other
trainers, they hand features to this one. Schedule, checkpoints and record are ours in both hosts, since Dassl's warm-up
scheduler does not run on current torch, and its checkpoints pickle it.

In CoOp's own `train.py`, two lines are enough (README.md, "Inside CoOp"):

    import trainers.hegraph.trainer             # before all other imports
    trainers.hegraph.trainer.extend_cfg(cfg)    # as the last line of extend_cfg
"""

from __future__ import annotations

import argparse
import copy
import importlib
import importlib.util
import logging
import os
import random
import sys
import time
import types
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from . import config, config_files
from .baselines import METHODS, load_method, method_options
from .baselines.base import FittedMethod
from .config import Config
from .datasets import Dataset, Item, check_trainable, load_dataset
from .datasets.images import open_below
from .datasets.loading import read_coop_sample
from .datasets.registry import stored_datasets
from .datasets.splits import path_from
from .experiments.checks import check_training
from .experiments.evaluation import TrainedMethod
from .experiments.fitting import fit_method, fitted_adapter, new_model, set_random_seed
from .experiments.run import (
    check_configuration,
    draw_seed,
    keep_epochs,
    test_and_finish,
    test_and_write,
)
from .experiments.run_folder import RunFolder, find_model_of_epoch
from .experiments.tasks import ImageTask, Tested
from .features.bank import FeatureBank
from .models.folder import load_model
from .models.saved import SavedModel
from .results.records import read_record
from .training.batches import Batch
from .training.loop import AdapterTraining
from .utils.errors import UserError, command, refuse_several_processes, show_messages
from .utils.files import absolute
from .utils.option import NODE

# Dassl imports `wilds` for data sets that this package never loads, and mutes the logging of the whole process
_level = logging.root.manager.disable
_lacks_wilds = "wilds" not in sys.modules and importlib.util.find_spec("wilds") is None
if _lacks_wilds:
    sys.modules["wilds"] = types.ModuleType("wilds")
    sys.modules["wilds"].__dict__["get_dataset"] = None
try:
    from dassl.data import DataManager
    from dassl.data.datasets import DATASET_REGISTRY
    from dassl.engine import TRAINER_REGISTRY, TrainerX, build_trainer
finally:
    logging.disable(_level)
    if _lacks_wilds:
        del sys.modules["wilds"]

__all__ = ["HeGraphAdapter", "extend_cfg", "run_in_coop"]


class FeatureTrainer(TrainerX):
    """What our trainers share: the images that CoOp's loaders select, as features.

    Attributes:
        settings: Our checked configuration, made of Dassl's.
        folder: The output folder of the run, with its task: the selected images.
        bank: Their features, on the device, once they are encoded.
    """

    cfg: CfgNode  # Dassl's
    settings: Config
    bank: FeatureBank
    fitted: FittedMethod
    record: dict

    def check_cfg(self, cfg: CfgNode) -> None:
        show_messages()  # CoOp's train.py shows none
        refuse_several_processes()
        if obstacles := obstacles_in(from_dassl(cfg)):
            raise UserError(f"{'; '.join(obstacles)}; {command()}, with the same flags, does it without Dassl")

    def build_data_loader(self) -> None:
        """Dassl's and CoOp's loaders select the images, and our loaders hand out their features."""
        self.settings = from_dassl(self.cfg)
        self.seed = self.settings.run.seed
        if self.seed < 0:  # CoOp would draw unseeded, and nobody could draw the same images again
            self.seed = draw_seed()
            self.cfg = self.cfg.clone()
            self.cfg.defrost()
            self.cfg.SEED = self.seed
            set_random_seed(self.seed)
        self.stored = self.load_coops_data()
        self.dataset = dataset_of(self.dm, self.settings, self.stored)
        self.folder = RunFolder(ImageTask(self.dataset, self.settings, self.seed, self.device.type), "dassl")
        self.saved: SavedModel | None = None
        # What is handed out is known when training or testing starts; val images are not used
        self.train_loader_x: list[Batch] | None = None
        self.val_loader = None

    def build_model(self) -> None:
        """Nothing yet: a finished run needs no features, and a test of a trained model none of training images."""

    def encode(self) -> None:
        """Encodes the selected images, or reads what was encoded."""
        started = time.monotonic()
        self.bank = self.folder.task.bank().to(self.device.type)
        self.features_seconds = time.monotonic() - started

    def load_coops_data(self) -> Dataset:
        """Has CoOp's loader select the images, after ours has checked that they are there, and that what CoOp selected
        before holds items of this data set alone. Where there is no split file, ours draws and writes it, and CoOp's
        goes on with the generator that drew it. Returns what ours reads.
        """
        data = self.settings.data
        rng = random.Random(self.seed)
        dataset = load_dataset(data.name, data.root, self.seed, rng)
        # CoOp takes what it selected before as it finds it, even test images, and runs what its pickle holds
        read_coop_sample(dataset, data.shots, self.seed)
        random.setstate(rng.getstate())
        listdir = os.listdir
        os.listdir = lambda *folder: sorted(listdir(*folder))  # type: ignore[assignment]  # CoOp's ImageNet keeps its order
        try:
            super().build_data_loader()
        except (AssertionError, LookupError, OSError, ValueError) as error:
            dataset.check_files()  # CoOp asserts that files are there, and does not name the missing ones
            raise UserError(f"{dataset.name}: CoOp's loader cannot read {dataset.root} ({error!r})") from error
        finally:
            os.listdir = listdir
        return dataset

    def train(self) -> None:
        """Trains, tests and writes the record, unless the run is finished."""
        if self.folder.finished() is None:
            check_trainable(self.stored)
            check_training(self.folder.task)
            self.folder.task.prepare()
            self.folder.do(self.fit_and_test)

    def fit_and_test(self) -> dict:
        """Encodes, fits and tests; returns the record."""
        self.encode()
        self.fit()
        return self.record

    def fit(self) -> None:
        """Fits another method (`baselines/`) in one go, and tests it."""
        self.fitted = fit_method(self.folder.task, self.bank)
        self.test()

    def load_model(self, directory: str, epoch: int | None = None) -> None:
        """Loads the model of a finished run, to test it on the images that were selected here."""
        path = find_model_of_epoch(Path(directory), epoch)
        self.saved = load_model(path)
        check_configuration(self.saved, self.settings)
        tested = replace(self.dataset, train=[], val=[])  # the training images have no part in it
        task = ImageTask(tested, self.settings, self.saved.trained_on.seed, self.device.type)
        self.folder = RunFolder(task, "dassl", path)

    def test(self, split: str | None = None) -> float:
        """Dassl's evaluator on the test images; also writes our record. Returns the accuracy in percent."""
        folder, saved, device = self.folder, self.saved, self.device.type
        if saved is None:
            self.record = test_and_finish(folder, self.bank, self.fitted, self.features_seconds, show=self.judge)
        else:
            trained = TrainedMethod.loaded(saved, device)
            test = partial(test_and_write, folder, saved, trained, device, self.judge)
            self.record = folder.finished() or folder.do(test)
        return self.record["accuracy"]

    def judge(self, tested: Tested) -> None:
        """Shows logits and labels of the test images to Dassl's evaluator, which prints its scores, and notes these."""
        self.evaluator.reset()
        self.evaluator.process(tested.logits, tested.labels)
        for name, score in self.evaluator.evaluate().items():
            self.write_scalar(f"test/{name}", score)


@TRAINER_REGISTRY.register()
class HeGraphAdapter(FeatureTrainer):
    """HeGraphAdapter as Dassl trains it, epoch by epoch; `method/model.py` is the model."""

    training: AdapterTraining  # where the variant has something to train

    def fit(self) -> None:
        task, settings = self.folder.task, self.settings
        self.model = new_model(self.bank, settings, self.seed)
        self.register_model("hegraph", self.model)
        self.checkpoints = keep_epochs(self.folder, self.bank)
        self.max_epoch = 0
        if self.model.layers is not None:
            data = task.batches(self.bank)
            self.training = AdapterTraining(self.model, data, settings.training, self.checkpoints)
            self.training.resume()
            self.max_epoch = self.training.epochs
            self._optims["hegraph"] = self.training.optimizer  # Dassl reads the rate that it prints from there
        TrainerX.train(self)

    def resume_model_if_exist(self, directory: str) -> int:
        """The first epoch; `fit` has read the checkpoint."""
        return 0 if self.model.layers is None else self.training.epoch

    def before_epoch(self) -> None:
        self.training.begin_epoch()
        self.train_loader_x = list(self.training.data.epoch(self.training.epoch))  # features alone, which are small

    def get_current_lr(self, names: str | list[str] | None = None) -> float:
        """The rate that Dassl prints: that of the biases."""
        return self.training.learning_rate

    def forward_backward(self, batch: Batch) -> dict[str, float]:
        self.loss = self.training.step(batch)
        return {"loss": self.loss.item()}

    def after_epoch(self) -> None:
        self.training.end_epoch(self.loss)

    def after_train(self) -> None:
        trained = self.model.layers is not None
        if trained:
            self.checkpoints.save_adapter(self.model)
        self.fitted = fitted_adapter(self.model, self.training.summary if trained else None)
        super().after_train()


for _name in METHODS:
    if not load_method(_name).trainer_of_coop:  # Dassl keeps CoOp's own trainer of that name
        TRAINER_REGISTRY.register()(type(_name, (FeatureTrainer,), {}))


def dataset_of(manager: DataManager, cfg: Config, stored: Dataset) -> Dataset:
    """What Dassl's DataManager selected, with paths relative to the data root; UserError if an image is missing.

    CoOp keeps selections as pickles, whose paths may be those of another folder or machine. `stored` is the data set as
    ours reads it, which knows the ids of the classes.
    """
    root, folder = absolute(cfg.data.root), stored_datasets()[cfg.data.name].folder

    def items(data: list | None) -> list[Item]:
        return [Item(path_from(folder, datum.impath), datum.label, datum.classname) for datum in data or ()]

    source = manager.dataset
    train, val, test = items(source.train_x), items(source.val), items(source.test)
    ours = stored.subsample(cfg.data.classes)
    ids = ours.class_ids if list(ours.classnames) == list(source.classnames) else ()
    opened = partial(open_below, root, as_stored=True)
    dataset = Dataset(cfg.data.name, source.classnames, train, val, test, opened, root, ids)
    dataset.check_files()
    return dataset


def obstacles_in(cfg: Config) -> list[str]:
    """What a configuration asks for that Dassl or CoOp cannot do, and the package alone can."""
    data, of_coop = cfg.data, {*DATASET_REGISTRY.registered_names()} & stored_datasets().keys()
    targets = "DATASET.TARGET_DOMAINS and DATASET.TARGET_DATASETS are not tested through Dassl"
    checks = {
        f"{data.name or 'no data set'} is none of CoOp's": data.name not in of_coop,
        targets: data.target_domains or data.target_datasets,
        "DATASET.UNLABELLED names images that Dassl does not load": data.unlabelled,
        f"{NODE}.SELECT_ON val trains more than once, which Dassl does not": cfg.run.select_on != "last_step",
    }
    return [obstacle for obstacle, holds in checks.items() if holds]


def extend_cfg(cfg: CfgNode) -> None:
    """Adds our keys to a configuration of Dassl's."""
    config.extend_cfg(cfg)
    known = config_files.flatten(cfg)
    for name in METHODS:
        for key, value in config_files.method_values(method_options(name), known).items():
            config.set_key(cfg, key, copy.deepcopy(value))


def from_dassl(cfg: CfgNode) -> Config:
    """`config_files.from_dassl`, with the options of the method that runs."""
    return config_files.from_dassl(cfg, method_options(cfg.TRAINER.NAME))


def configure_coop(root: Path, *layers: Any) -> tuple[Config, CfgNode]:
    """Makes a CoOp checkout importable; gives our configuration and the frozen tree of Dassl, CoOp and this package.
    Arguments and errors are those of `load_cfg`; keys of Dassl's and CoOp's may be set as well.
    """
    sys.path.insert(0, str(root))
    coop = importlib.import_module("train")
    tree = coop.get_cfg_default()
    coop.extend_cfg(tree)
    config.extend_cfg(tree)
    ours = {key: value for key, value in config.default_values().items() if key not in config.BACKBONE_KEYS}
    for key, value in config_files.load_cfg(*layers, known=config_files.flatten(tree) | ours).values.items():
        config.set_key(tree, key, value)
    tree.freeze()
    return from_dassl(tree), tree


def run_in_coop(args: argparse.Namespace, cfg: CfgNode) -> dict:
    """Runs CoOp's own `train.py`, unedited, with its flags and the tree of `configure_coop`; gives the record or {}."""
    if args.no_train:
        build_trainer(cfg).encode()
        return {}
    coop = importlib.import_module("train")
    coop.__dict__["setup_cfg"] = lambda args: cfg
    coop.main(args)
    return read_record(Path(cfg.OUTPUT_DIR)) or {}
