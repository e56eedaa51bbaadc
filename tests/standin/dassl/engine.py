"""Trainers: the registry, and the loop that drives them."""

from __future__ import annotations

import json
import os
import sys

import torch
from yacs.config import CfgNode

from dassl.data import DataManager
from dassl.evaluation import Classification
from dassl.utils import Registry, mkdir_if_missing

TRAINER_REGISTRY = Registry("trainer")


def build_trainer(cfg: CfgNode) -> TrainerX:
    return TRAINER_REGISTRY.build(cfg.TRAINER.NAME, cfg)


class TrainerX:
    """Trains on labelled data."""

    def __init__(self, cfg: CfgNode) -> None:
        self._models, self._optims, self._scheds, self._writer = {}, {}, {}, None
        self.check_cfg(cfg)
        self.device = torch.device("cuda" if torch.cuda.is_available() and cfg.USE_CUDA else "cpu")
        self.start_epoch = self.epoch = 0
        self.max_epoch, self.output_dir, self.cfg = cfg.OPTIM.MAX_EPOCH, cfg.OUTPUT_DIR, cfg
        self.build_data_loader()
        self.build_model()
        self.evaluator = Classification(cfg, self.lab2cname)

    def check_cfg(self, cfg: CfgNode) -> None:
        pass

    def build_data_loader(self) -> None:
        self.dm = DataManager(self.cfg)
        for name in ("train_loader_x", "train_loader_u", "val_loader", "test_loader", "num_classes", "lab2cname"):
            setattr(self, name, getattr(self.dm, name))

    def build_model(self) -> None:
        raise NotImplementedError

    def register_model(self, name: str, model=None, optim=None, sched=None) -> None:
        assert name not in self._models
        self._models[name], self._optims[name], self._scheds[name] = model, optim, sched

    def get_current_lr(self) -> float:
        return self._optims[next(iter(self._models))].param_groups[0]["lr"]

    def train(self) -> None:
        self.before_train()
        for epoch in range(self.start_epoch, self.max_epoch):
            self.epoch = epoch
            self.before_epoch()
            self.run_epoch()
            self.after_epoch()
        self.after_train()

    def before_train(self) -> None:
        self.start_epoch = self.resume_model_if_exist(self.cfg.RESUME or self.cfg.OUTPUT_DIR)
        folder = os.path.join(self.output_dir, "tensorboard")
        mkdir_if_missing(folder)
        self._writer = open(os.path.join(folder, "scalars.jsonl"), "a")  # noqa: SIM115 (closed after training)

    def before_epoch(self) -> None:
        pass

    def run_epoch(self) -> None:
        for model in self._models.values():
            model.train()
        self.num_batches = len(self.train_loader_x)
        for number, batch in enumerate(self.train_loader_x):
            self.batch_idx = number
            losses = self.forward_backward(batch)
            rate, step = self.get_current_lr(), self.epoch * self.num_batches + number
            sys.stdout.write(f"epoch [{self.epoch + 1}/{self.max_epoch}] {losses} lr {rate:.4e}\n")
            for name, value in losses.items():
                self.write_scalar(f"train/{name}", value, step)
            self.write_scalar("train/lr", rate, step)

    def after_epoch(self) -> None:
        raise AssertionError("Dassl pickles its scheduler here, which does not run on current torch")

    def after_train(self) -> None:
        if not self.cfg.TEST.NO_TEST:
            self.test()
        self._writer.close()

    @torch.no_grad()
    def test(self, split: str | None = None) -> float:
        for model in self._models.values():
            model.eval()
        self.evaluator.reset()
        split = split or self.cfg.TEST.SPLIT
        loader = self.val_loader if split == "val" and self.val_loader is not None else self.test_loader
        for batch in loader:
            images, labels = self.parse_batch_test(batch)
            self.evaluator.process(self.model_inference(images), labels)
        results = self.evaluator.evaluate()
        for name, value in results.items():
            self.write_scalar(f"{split}/{name}", value, self.epoch)
        return results["accuracy"]

    def parse_batch_test(self, batch: dict) -> tuple[torch.Tensor, torch.Tensor]:
        return batch["img"].to(self.device), batch["label"].to(self.device)

    def write_scalar(self, tag: str, value: float, step: int | None = None) -> None:
        if self._writer is not None:
            self._writer.write(json.dumps([tag, value, step]) + "\n")
