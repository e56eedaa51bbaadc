"""Dassl trainer: HeGraphAdapter inside CoOp. No other file imports dassl.

Dassl provides its registry, its DataManager with CoOp's loaders, its epochs, its evaluator and its TensorBoard writer.
The model and the features are those of `experiments/run.py`: the loaders yield features instead of images. Schedule,
checkpoints and record are the same in both runners, since Dassl's warm-up scheduler does not run on current torch, and
its checkpoints pickle it.

In CoOp's own `train.py`, two lines are enough (README.md, "Inside CoOp"):

    import trainers.hegraph.trainer             # before all other imports
    trainers.hegraph.trainer.extend_cfg(cfg)    # as the last line of extend_cfg
"""

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
from functools import partial
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from . import config, config_files
from .baselines import METHODS, load_method, method_options
from .baselines.base import FittedMethod
from .baselines.hegraph import fitted_adapter, new_model
from .config import Config
from .datasets.base import Dataset
from .datasets.images import open_below
from .datasets.loading import check_trainable, load_dataset, read_coop_sample
from .datasets.registry import stored_datasets
from .datasets.splits import Item, path_from
from .experiments.checks import check_training, check_unseen
from .experiments.evaluation import Predictions
from .experiments.fitting import fit
from .experiments.image_task import ImageTask
from .experiments.run import adapt_and_test, check_configuration, checkpoints_with_models, draw_seed, test_and_finish
from .experiments.run_folder import RunFolder, find_model_of_epoch
from .features.bank import FeatureBank
from .method.training.batches import Batch
from .method.training.loop import AdapterTraining
from .models.folder import load_model
from .models.saved import SavedModel
from .results.records import read_record
from .utils.command_line import command, echo, refuse_several_processes
from .utils.errors import UserError
from .utils.files import absolute
from .utils.logs import show_messages
from .utils.option import NODE
from .utils.seeds import set_random_seed

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
    """Base of the Dassl trainers of this package, which train on features of the images that CoOp's loaders sample.

    Attributes:
        settings: Checked configuration, made from Dassl's.
        folder: Output folder of the run, with its task.
        bank: Features of the sampled images on the device, set by `encode`.
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
        """Have Dassl's and CoOp's loaders sample the images, whose features `train_loader_x` yields."""
        self.settings = from_dassl(self.cfg)
        self.seed = self.settings.run.seed
        if self.seed < 0:  # CoOp would sample without a seed, and the run could not be repeated
            self.seed = draw_seed()
            self.cfg = self.cfg.clone()
            self.cfg.defrost()
            self.cfg.SEED = self.seed
            set_random_seed(self.seed)
        self.stored = self.load_coops_data()
        self.dataset = dataset_of(self.dm, self.settings, self.stored)
        self.folder = RunFolder(ImageTask(self.dataset, self.settings, self.seed, self.device.type), "dassl")
        self.saved: SavedModel | None = None
        # Set when the training starts; val images are not used
        self.train_loader_x: list[Batch] | None = None
        self.val_loader = None

    def build_model(self) -> None:
        """Build nothing: a finished run needs no features, and the test of a model needs no training images."""

    def encode(self) -> None:
        """Encode the sampled images, or read their features."""
        started = time.monotonic()
        self.bank = self.folder.task.bank().to(self.device.type)
        self.features_seconds = time.monotonic() - started

    def load_coops_data(self) -> Dataset:
        """Have CoOp's loader sample the images; return the data set as this package reads it.

        This package reads the data set first. It checks that the images exist and that a sample that CoOp stored holds
        items of this data set alone. Without a split file it splits the data set and writes the file, and CoOp's loader
        continues with the same random generator.
        """
        data = self.settings.data
        rng = random.Random(self.seed)
        dataset = load_dataset(data.name, data.root, self.seed, rng)
        # CoOp does not check a stored sample, which may hold test images, and unpickles it, which can run code
        read_coop_sample(dataset, data.shots, self.seed)
        random.setstate(rng.getstate())
        listdir = os.listdir
        os.listdir = lambda *folder: sorted(listdir(*folder))  # type: ignore[assignment]  # CoOp's ImageNet keeps this order
        try:
            super().build_data_loader()
        except (AssertionError, LookupError, OSError, ValueError) as error:
            dataset.check_files()  # names missing files, which CoOp's assertions do not
            raise UserError(f"{dataset.name}: CoOp's loader cannot read {dataset.root} ({error!r})") from error
        finally:
            os.listdir = listdir
        return dataset

    def train(self) -> None:
        """Train, test and write the record, unless the run is finished."""
        if self.folder.finished() is None:
            check_trainable(self.stored)
            check_training(self.folder.task)
            self.folder.task.prepare()
            self.folder.run_once(self.fit_and_test)

    def fit_and_test(self) -> dict:
        """Encode, fit and test; return the record."""
        self.encode()
        self.fit()
        return self.record

    def fit(self) -> None:
        """Fit and test a method of `baselines/`, without Dassl's loop over epochs, and set `record`."""
        self.fitted = fit(self.folder.task, self.bank)
        echo("Finish training\n")  # as after Dassl's epochs; CoOp's parse_test_res.py reads scores below this line
        self.test()

    def load_model(self, directory: str, epoch: int | None = None) -> None:
        """Load the model of a finished run, to test it on the test images of this run."""
        path = find_model_of_epoch(Path(directory), epoch)
        self.saved = load_model(path)
        check_configuration(self.saved, self.settings)
        task = ImageTask(self.dataset.only_test(), self.settings, self.saved.trained_on.seed, self.device.type)
        check_unseen(path, self.saved, task)
        self.folder = RunFolder(task, "dassl", path)

    def test(self, split: str | None = None) -> float:
        """Test with Dassl's evaluator and write the record; return the accuracy in percent."""
        folder, saved, device = self.folder, self.saved, self.device.type
        if saved is None:
            self.record = test_and_finish(folder, self.bank, self.fitted, self.features_seconds, show=self.show_scores)
        else:
            test = partial(adapt_and_test, folder, saved, device, self.show_scores)
            self.record = folder.finished() or folder.run_once(test)
        return self.record["accuracy"]

    def show_scores(self, predictions: Predictions) -> None:
        """Pass the predictions to Dassl's evaluator, which prints its scores, and write these to TensorBoard."""
        self.evaluator.reset()
        self.evaluator.process(predictions.logits, predictions.labels)
        for name, score in self.evaluator.evaluate().items():
            self.write_scalar(f"test/{name}", score)


@TRAINER_REGISTRY.register()
class HeGraphAdapter(FeatureTrainer):
    """HeGraphAdapter, trained epoch by epoch by Dassl; `method/model.py` has the model."""

    training: AdapterTraining  # not set for a training-free variant

    def fit(self) -> None:
        task, settings = self.folder.task, self.settings
        self.model = new_model(self.bank, settings, self.seed)
        self.register_model("hegraph", self.model)
        self.checkpoints = checkpoints_with_models(self.folder, self.bank)
        self.max_epoch = 0
        if self.model.layers is not None:
            data = task.batches(self.bank)
            self.training = AdapterTraining.start(self.model, data, settings.training, self.checkpoints)
            self.max_epoch = self.training.epochs
            self._optims["hegraph"] = self.training.optimizer  # Dassl prints its learning rate
        TrainerX.train(self)

    def resume_model_if_exist(self, directory: str) -> int:
        """Return the first epoch; `fit` has read the checkpoint."""
        return 0 if self.model.layers is None else self.training.epoch

    def before_epoch(self) -> None:
        self.training.begin_epoch()
        self.train_loader_x = list(self.training.data.epoch(self.training.epoch))  # features, which are small

    def get_current_lr(self, names: str | list[str] | None = None) -> float:
        """Return the learning rate of the biases, which Dassl prints."""
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
    """Return the images that Dassl's DataManager sampled, with paths relative to the data root.

    CoOp stores samples as pickles, whose paths may be of another folder or machine. `stored` is the data set as this
    package reads it, which has the ids of the classes.

    Raises:
        UserError: If an image is missing.
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
    """Return the settings of a configuration that only the runner without Dassl supports, as phrases of an error."""
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
    """Add the keys of this package to a configuration of Dassl."""
    config.extend_cfg(cfg)
    known = config_files.flatten(cfg)
    for name in METHODS:
        for key, value in config_files.method_values(method_options(name), known).items():
            config.set_key(cfg, key, copy.deepcopy(value))


def from_dassl(cfg: CfgNode) -> Config:
    """Return the checked configuration of a Dassl configuration, with the options of its method."""
    return config_files.from_dassl(cfg, method_options(cfg.TRAINER.NAME))


def configure_coop(root: Path, *layers: Any) -> tuple[Config, CfgNode]:
    """Make a CoOp checkout importable; return the configuration of this package and the frozen one of Dassl.

    Arguments and errors are those of `load_cfg`; `layers` may set keys of Dassl and CoOp as well.
    """
    sys.path.insert(0, str(root))
    coop = importlib.import_module("train")
    tree = coop.get_cfg_default()
    coop.extend_cfg(tree)
    config.extend_cfg(tree)
    ours = {key: value for key, value in config.default_values().items() if key not in config.BACKBONE_KEYS}
    for key, value in config_files.load_cfg(*layers, known=config_files.flatten(tree) | ours).values.items():
        config.set_key(tree, config.WEIGHTS_IN_DASSL if key == config.WEIGHTS else key, value)
    tree.freeze()
    return from_dassl(tree), tree


def run_in_coop(args: argparse.Namespace, cfg: CfgNode) -> dict:
    """Run CoOp's unedited `train.py` with the configuration of `configure_coop`; return the record or {}."""
    if args.no_train:
        build_trainer(cfg).encode()
        return {}
    coop = importlib.import_module("train")
    coop.__dict__["setup_cfg"] = lambda args: cfg
    coop.main(args)
    return read_record(Path(cfg.OUTPUT_DIR)) or {}
