"""Trainers: the registry, the loop that drives them, and the accuracy on test."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from yacs.config import CfgNode

from dassl.data import DataManager
from dassl.utils import Registry

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

    check_cfg = before_epoch = lambda self, *arguments: None  # for trainers to fill

    def build_data_loader(self) -> None:
        self.dm = DataManager(self.cfg)
        for name in ("train_loader_x", "val_loader", "test_loader", "num_classes", "lab2cname"):
            setattr(self, name, getattr(self.dm, name))

    def register_model(self, name: str, model=None, optim=None, sched=None) -> None:
        assert name not in self._models
        self._models[name], self._optims[name], self._scheds[name] = model, optim, sched

    def get_model_names(self) -> list[str]:
        return list(self._models)

    def set_model_mode(self, mode: str) -> None:
        for model in self._models.values():
            model.train(mode == "train")

    def get_current_lr(self) -> float:
        return self._optims[next(iter(self._models))].param_groups[0]["lr"]

    def update_lr(self) -> None:
        for schedule in self._scheds.values():
            schedule.step()

    def model_backward_and_update(self, loss: torch.Tensor) -> None:
        for optimizer in self._optims.values():
            optimizer.zero_grad()
        self.detect_anomaly(loss)
        loss.backward()
        for optimizer in self._optims.values():
            optimizer.step()

    def save_model(self, epoch: int, directory: str, is_best: bool = False, val_result=None, model_name="") -> None:
        for name, model in self._models.items():
            parts = {"optimizer": self._optims[name], "scheduler": self._scheds[name]}
            state = {key: part and part.state_dict() for key, part in parts.items()}
            state |= {"state_dict": model.state_dict(), "epoch": epoch + 1, "val_result": val_result}
            file = Path(directory) / name / (model_name or f"model.pth.tar-{epoch + 1}")
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.save(state, file)
            (file.parent / "checkpoint").write_text(f"{file.name}\n")

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
        file = Path(self.output_dir) / "tensorboard" / "scalars.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        self._writer = file.open("a")

    def run_epoch(self) -> None:
        self.set_model_mode("train")
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
        every = self.cfg.TRAIN.CHECKPOINT_FREQ
        if self.epoch + 1 == self.max_epoch or (every > 0 and (self.epoch + 1) % every == 0):
            self.save_model(self.epoch, self.output_dir)

    def after_train(self) -> None:
        sys.stdout.write("Finish training\n")
        if not self.cfg.TEST.NO_TEST:
            self.test()
        self._writer.close()

    @torch.no_grad()
    def test(self, split: str | None = None) -> float:
        self.set_model_mode("eval")
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
        if self._writer is not None and not self._writer.closed:
            self._writer.write(json.dumps([tag, value, step]) + "\n")


class Classification:
    """Collects predictions, then scores them; percent."""

    def __init__(self, cfg: CfgNode, lab2cname: dict[int, str]) -> None:
        self.cfg, self.lab2cname = cfg, lab2cname

    def reset(self) -> None:
        self.predicted, self.true = torch.empty(0), torch.empty(0)

    def process(self, logits: torch.Tensor, labels: torch.Tensor) -> None:
        self.predicted, self.true = torch.cat([self.predicted, logits.max(1)[1]]), torch.cat([self.true, labels])

    def evaluate(self) -> dict[str, float]:
        right = (self.predicted == self.true).double()
        accuracy = 100 * right.mean().item()
        sys.stdout.write(f"* total: {len(right)}\n* accuracy: {accuracy:.1f}%\n")
        if self.cfg.TEST.PER_CLASS_RESULT:
            for label, name in sorted(self.lab2cname.items()):
                of_class = 100 * right[self.true == label].mean().item()
                sys.stdout.write(f"* class: {label} ({name})\tacc: {of_class:.1f}%\n")
        if self.cfg.TEST.COMPUTE_CMAT:
            torch.save(torch.stack([self.predicted, self.true]), Path(self.cfg.OUTPUT_DIR) / "cmat.pt")
        return {"accuracy": accuracy}
