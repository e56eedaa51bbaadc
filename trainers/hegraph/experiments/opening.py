"""Opening of the task of a run. Nothing is encoded yet."""

from pathlib import Path

from ..baselines import TRANSDUCTIVE_METHODS
from ..config import Config
from ..config_files import with_values
from ..datasets.base import Dataset
from ..datasets.loading import load_few_shot, load_test_images
from ..datasets.readable import Unreadable
from ..datasets.registry import find_entry
from ..datasets.shots import SHOTS_PER_CLASS
from ..models.saved import TrainedOn
from ..utils.errors import UserError
from .bank_task import BankTask, bank_to_test, shared_bank
from .checks import check_multilabel
from .image_task import ImageTask
from .tasks import NO_POOL, POOL, TEST_SET, Task


def open_task(cfg: Config, bank_file: Path | None, seed: int, device: str, trained_on: TrainedOn | None = None) -> Task:
    """Return the task of a run: rows of a feature bank, or images of `DATASET.NAME`. Nothing is encoded yet.

    Args:
        seed: Seed of the few-shot sample and the run.
        device: Device of the backbone.
        trained_on: Training of a model to test, whose numbers of shots determine with `seed` the pool of
            `--unlabelled pool`; the task has no training images. None for a training.

    Raises:
        UserError: If bank, data set or weights are missing, a transductive method lacks `--unlabelled test`, or further
            data sets are combined with it.
    """
    what = cfg.data.unlabelled
    method = cfg.run.trainer
    if method in TRANSDUCTIVE_METHODS and what != TEST_SET:
        raise UserError(f"{method} predicts all test images together: give --unlabelled {TEST_SET}, got {what!r}")
    if what == TEST_SET and (cfg.data.target_domains or cfg.data.target_datasets):
        raise UserError(f"--unlabelled {TEST_SET} reaches no other data set; leave out the targets, or give {POOL}")
    if bank_file is None:
        task: Task = load_image_task(cfg, seed, device, trained_on)
    elif trained_on is None:
        task = BankTask(bank_file, cfg, seed)
    else:
        pool = None
        if what == POOL:
            pool = BankTask(bank_file, with_shots(cfg, trained_on), seed).unlabelled
        task = bank_to_test(shared_bank(bank_file, cfg), cfg.data.classes, cfg, seed, pool)
    check_multilabel(task)
    return task


def with_shots(cfg: Config, trained_on: TrainedOn) -> Config:
    """Return a configuration with the numbers of shots of a training."""
    return with_values(cfg, {"DATASET.NUM_SHOTS": trained_on.shots, SHOTS_PER_CLASS: trained_on.shots_per_class})


def load_image_task(cfg: Config, seed: int, device: str, trained_on: TrainedOn | None = None) -> ImageTask:
    """Return the task that CoOp's protocol samples from a data set on disk; arguments and errors as in `open_task`."""
    return ImageTask(load_dataset(cfg, seed, trained_on), cfg, seed, device)


def load_dataset(cfg: Config, seed: int, trained_on: TrainedOn | None = None) -> Dataset:
    """Return the images that CoOp's protocol samples from a data set on disk; arguments and errors as in `open_task`.

    Nothing depends on the backbone.
    """
    pool = cfg.data.unlabelled == POOL
    data = with_shots(cfg, trained_on).data if pool and trained_on is not None else cfg.data
    if not data.name:
        raise UserError("no data: give --dataset-config-file NAME, such as digits, or --features BANK")
    unreadable: Unreadable = "refuse" if data.strict else "leave out"
    shots = (data.shots, seed, data.classes, pool, data.shots_per_class, data.group_pattern, unreadable)
    if trained_on is None:
        return load_few_shot(data.name, data.root, *shots)
    if not pool:
        which = data.classes, data.group_pattern, unreadable
        return load_test_images(data.name, data.root, max(cfg.run.seed, 0), *which)
    if (entry := find_entry(data.name)) and entry.train_on:  # a data set of test images alone
        raise UserError(NO_POOL.format(data.name))
    return load_few_shot(data.name, data.root, *shots).only_test()
