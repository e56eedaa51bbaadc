"""Task of the rows of a feature bank, which the few-shot protocol samples."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache
from pathlib import Path

import torch
from torch import Tensor

from ..config import Config
from ..datasets.base import check_classes
from ..datasets.groups import SharedGroups
from ..datasets.shots import shots_of_classes
from ..datasets.splits import FewShotSample, sample_few_shot, subsample_labels
from ..features.bank import BankFile, FeatureBank, label_list, sample_bank
from ..method.mean_text import without_text
from ..utils.errors import UserError
from ..utils.files import file_version
from .prompt_source import with_prompt_source
from .tasks import NO_POOL, POOL, FeatureTask, Split, Task, Unlabelled, features_of_rows, ids_of_names, names_of


class BankTask(Task):
    """Task of the rows that the few-shot protocol samples from a feature bank; other training rows are not read.

    Raises:
        UserError: If the bank cannot be used, the configuration names another data set or mode, or it asks for prompts
            and the bank has no text.
    """

    def __init__(self, path: Path, cfg: Config, seed: int) -> None:
        if cfg.data.features == "online":
            raise UserError("FEATURES.MODE online encodes images, and --features has none; use FEATURES.MODE bank")
        file = shared_bank(path, cfg)
        self.file = file
        cfg = with_prompt_source(cfg, images_only_bank(file))
        labels = {name: label_list(file.labels[name]) if name in file.labels else [] for name in ("train", "val")}
        groups = [file.groups[name].tolist() if name in file.groups else None for name in ("train", "val")]
        rng = random.Random(seed)
        shots = shots_of_classes(cfg.data.shots, cfg.data.shots_per_class, len(file.classnames), rng)
        self.selection = sample_few_shot(labels["train"], labels["val"], shots, rng, *groups)
        # With all classes, a class without images stays, and a later check refuses it
        of_all = cfg.data.classes == "all" or file.multilabel  # `check_multilabel` refuses a part of the classes
        sampled = range(len(file.classnames)) if of_all else {labels["train"][row] for row in self.selection.train}
        # Labels in the file of the classes of this task
        self.file_labels = subsample_labels(sampled, "all" if of_all else cfg.data.classes)
        classnames = select(file.classnames, self.file_labels)
        new_labels = {label: position for position, label in enumerate(self.file_labels)}
        split: Split = {"train": [], "val": []}
        for part, rows in self.selection._asdict().items():
            for row in rows:
                label = labels[part][row]
                if of_all or label in new_labels:
                    new = label if of_all else new_labels[label]
                    split[part].append([row, new, names_of(file.classnames, label)])
        ids = select(ids_of_names(file.classnames), self.file_labels)
        super().__init__(cfg, seed, file.dataset, classnames, ids, split, (path,), file.multilabel)

    @cached_property
    def identity(self) -> dict:
        return bank_identity(self.file, lambda: self._bank)

    @property
    def images_only(self) -> str:
        return images_only_bank(self.file)

    @property
    def has_test(self) -> bool:
        return "test" in self.file.labels and (self.multilabel or bool(self._in_classes("test").any()))

    @property
    def shared_groups(self) -> SharedGroups | None:
        groups = self.file.groups
        if not groups:
            return None
        of_split = {"val": []}  # type: dict[str, list[int]]
        for name, rows in self.split.items():
            of_split[name] = [int(groups[name][row]) for row, *_ in rows]
        return SharedGroups.of(of_split["train"], of_split["val"], self.test_groups or [])

    @property
    def test_groups(self) -> list[int] | None:
        if "test" not in self.file.groups:
            return None
        groups = self.file.groups["test"]
        return (groups if self.multilabel else groups[self._in_classes("test")]).tolist()

    @cached_property
    def _bank(self) -> FeatureBank:
        bank = sample_bank(self.file, self.selection)
        if len(self.file_labels) < len(bank.classnames):
            bank = bank.of_classes(torch.tensor(self.file_labels))
        return bank if self.cfg.encoding.has_prompts else without_text(bank)

    def bank(self) -> FeatureBank:
        """Return the sampled rows and the test images."""
        return self._bank

    @cached_property
    def unlabelled(self) -> Unlabelled:
        if self.cfg.data.unlabelled != POOL:
            return super().unlabelled
        pool = {part: self._in_classes(part) for part in self.file.labels if part != "test"}
        pool["train"][self.selection.train] = False
        rows = {part: selected.nonzero().flatten().tolist() for part, selected in pool.items()}
        if not any(rows.values()):
            raise UserError(NO_POOL.format(self.name))
        return Unlabelled(lambda: self.file.digest, lambda: features_of_rows(self.file, rows))

    def _in_classes(self, part: str) -> Tensor:
        """Return whether each image of a part of the file has a class of this task, shape `[N]`."""
        return torch.isin(self.file.labels[part], torch.tensor(self.file_labels))

    def target(self, name: str, same_classes: bool) -> Task:
        """Return the test images of a half of the bank's classes, the only further data sets of a bank."""
        halves = [f"{self.name}:{which}" for which in ("base", "new")]
        if same_classes or name not in halves:
            raise UserError(f"a feature bank has no data set {name!r}: --target-datasets may be {', '.join(halves)}")
        task = bank_to_test(self.file, name.rpartition(":")[2], self.cfg, self.seed)
        check_classes(len(task.class_ids), name)
        return task


def select(names: Sequence[str], labels: Sequence[int]) -> list[str]:
    """Return the names of the classes with these labels."""
    return [names[label] for label in labels]


@lru_cache(maxsize=1)
def _opened(path: Path, version: object) -> BankFile:
    return BankFile(path)


def images_only_bank(file: BankFile) -> str:
    """Return the path of a feature bank without text, else ""."""
    return "" if file.has_text else str(file.path)


def shared_bank(path: Path, cfg: Config) -> BankFile:
    """Return a feature bank of the configured data set, shared by the runs of a process while its file is unchanged.

    Raises:
        UserError: If the bank cannot be read, or is of another data set.
    """
    file = _opened(path, file_version(path) if os.path.isfile(path) else None)
    file.check_dataset(cfg.data.name)
    return file


def bank_to_test(file: BankFile, which: str, cfg: Config, seed: int, pool: Unlabelled | None = None) -> FeatureTask:
    """Return the test images of a bank, of "all" classes or of the half "base" or "new"; UserError without any.

    `pool` has the images of `--unlabelled pool`, if there are some.
    """
    cfg = with_prompt_source(cfg, images_only_bank(file))
    bank = sample_bank(file, FewShotSample([], []))
    ids: Sequence[str] = ids_of_names(file.classnames)  # of all classes, since half of them may have a repeated name
    if which != "all":
        half = subsample_labels(set(file.labels["train"].tolist()), which)
        bank = bank.of_classes(torch.tensor(half, dtype=torch.long))
        ids = select(ids, half)
    identity = bank_identity(file, lambda: bank)
    task = FeatureTask(bank, cfg, seed, identity=identity, class_ids=ids, bank_files=(file.path,), pool=pool)
    if not task.has_test:
        images = "test images" if which == "all" else f"test images of the {which} classes"
        raise UserError(f"{file.path} has no {images}, so no model can be tested on it")
    return task


def bank_identity(file: BankFile, take: Callable[[], FeatureBank]) -> dict:
    """Return plain values that change whenever the part of a bank that `take` returns changes."""
    identity = {"bank": file.digest_of(take)}
    if file.encoder.precision != "fp32":  # older banks, without a precision, are fp32
        identity["precision"] = file.encoder.precision
    return identity
