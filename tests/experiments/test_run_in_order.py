"""The steps of `run`, one after the other: what is asked of the task, when, and what reaches the record."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from trainers.hegraph.baselines import method_options
from trainers.hegraph.config_files import load_cfg
from trainers.hegraph.experiments import image_task
from trainers.hegraph.experiments import run as run_module
from trainers.hegraph.experiments.folder import RunFolder
from trainers.hegraph.experiments.image_task import open_task
from trainers.hegraph.experiments.tasks import BankTask, Opened
from trainers.hegraph.utils import processes
from trainers.hegraph.utils.errors import UserError


class Watched(BankTask):
    """A task of a bank that says in `done` what is asked of it, and that takes five seconds to read."""

    def __init__(self, path: Path, cfg, seed: int, done: list, clock: list[float]) -> None:
        super().__init__(path, cfg, seed)
        self.done, self.clock = done, clock

    def prepare(self) -> None:
        assert not (Path(self.cfg.run.output_dir) / "split.json").exists()
        self.done.append("prepare")

    def encode(self) -> None:
        self.done.append("encode")

    def bank(self):
        self.done.append("bank")
        self.clock[0] += 5
        return super().bank()


class WithPictures(Watched):
    """A task that also has pictures to show."""

    def training_images(self):
        return iter([Image.new("RGB", (8, 8), (200, 30, 40)) for _ in self.split["train"]])


@pytest.fixture
def cfg(tmp_path):
    """Function of more keys and values: the configuration of a run of zero-shot CLIP."""

    def make(*opts: object, name: str = "ZeroShot"):
        common = ["OUTPUT_DIR", str(tmp_path / "out"), "DATASET.NUM_SHOTS", 2, "SEED", 3, "TRAINER.NAME", name]
        return load_cfg(method=method_options(name), opts=[*common, *opts])

    return make


@pytest.fixture
def done(monkeypatch) -> list:
    """What was asked of the task, of targets, and of the group of processes, in order. The clock stands still."""
    asked, clock = [], [100.0]
    watched = lambda cfg, path, seed, *_: WithPictures(path, cfg, seed, asked, clock)  # noqa: E731
    monkeypatch.setattr(run_module, "open_task", watched)
    monkeypatch.setattr(run_module, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(run_module, "encode_targets", lambda task: asked.append("encode targets"))
    monkeypatch.setattr(run_module, "score_targets", lambda *_: asked.append("score targets") or {"X": {}})
    monkeypatch.setattr(processes, "stop", lambda: asked.append("stop"))
    return asked


def test_a_run_prepares_encodes_and_leaves_its_record_and_is_not_done_again(cfg, done, tiny_bank, tmp_path):
    record = run_module.run(cfg(), tiny_bank)
    assert done == ["prepare", "bank", "score targets"]
    assert record == json.loads((tmp_path / "out" / "result.json").read_text())
    assert (record["trainer"], record["seed"], record["shots"], record["num_train"]) == ("ZeroShot", 3, 2, 10)
    assert record["accuracy"] == record["accuracy_zero_shot"]
    assert (record["host"], record["targets"], record["seconds"]["features"]) == ("alone", {"X": {}}, 5)
    assert (tmp_path / "out" / "model" / "config.json").exists()
    assert not (tmp_path / "out" / "model" / "thumbnails").exists()
    done.clear()
    assert run_module.run(cfg(), tiny_bank) == record
    assert done == []
    # Nor where another process has left the record since it was looked for
    assert RunFolder(BankTask(tiny_bank, cfg(), 3)).do(lambda: pytest.fail("done again")) == record


def test_without_training_the_features_are_encoded_and_the_split_is_written(cfg, done, tiny_bank, tmp_path):
    assert run_module.run(cfg(), tiny_bank, train=False) == {}
    assert done == ["prepare", "encode"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["split.json"]


@pytest.mark.parametrize("train", [True, False])
def test_another_process_helps_to_encode_and_writes_nothing(cfg, done, tiny_bank, tmp_path, monkeypatch, train):
    monkeypatch.setattr(processes, "rank", lambda: 1)
    assert run_module.run(cfg(), tiny_bank, train=train) == {}
    assert done == ["prepare", "encode", *(["encode targets"] if train else [])]
    assert not (tmp_path / "out").exists()


def test_the_first_process_encodes_the_targets_with_the_others_and_goes_on_alone(cfg, done, tiny_bank, monkeypatch):
    monkeypatch.setattr(processes, "world_size", lambda: 2)
    run_module.run(cfg(), tiny_bank)
    assert done == ["prepare", "bank", "encode targets", "stop", "score targets"]


# Seeds and devices


class Stop(Exception):
    """Ends a run once the test has seen what it wanted."""


@pytest.fixture
def opened(monkeypatch) -> list[tuple]:
    """What a task was opened with: the seed and the device; the run then stops."""
    seen: list[tuple] = []

    def opening(cfg, path, seed, device, *_):
        seen.append((seed, device))
        raise Stop

    monkeypatch.setattr(run_module, "open_task", opening)
    return seen


@pytest.mark.parametrize(
    ("seed", "wanted", "there", "seen"),
    [(0, True, False, (0, "cpu")), (7, True, True, (7, "cuda")), (-1, False, True, (2**31 - 1, "cpu"))],
)
def test_a_negative_seed_is_drawn_by_the_system_and_a_gpu_used_where_it_is_wanted_and_there(
    cfg, opened, monkeypatch, seed, wanted, there, seen
):
    draw = SimpleNamespace(randrange=lambda limit: limit - 1)
    monkeypatch.setattr(run_module.random, "SystemRandom", lambda: draw)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    with pytest.raises(Stop):
        run_module.run(cfg("SEED", seed, "USE_CUDA", wanted), None)
    assert opened == [seen]


def test_the_first_process_draws_the_seed_of_all_and_the_generators_are_seeded_before_a_task_is_opened(
    cfg, opened, monkeypatch
):
    monkeypatch.setattr(processes, "of_first", lambda draw: 40 if 0 <= draw() < 2**31 else None)
    with pytest.raises(Stop):
        run_module.run(cfg("SEED", -1), None)
    assert opened == [(40, "cpu")]
    found = torch.rand(1)
    torch.manual_seed(40)
    assert torch.equal(found, torch.rand(1))


def test_a_task_is_a_banks_where_there_is_one_and_else_that_of_the_images(cfg, tiny_bank, monkeypatch):
    monkeypatch.setattr(image_task, "load_image_task", lambda *arguments: arguments)
    configured, opened = cfg(), Opened()
    assert open_task(configured, None, 3, "cuda", opened, True) == (configured, 3, "cuda", opened, True)
    task = open_task(configured, tiny_bank, 3, "cpu", opened)
    assert isinstance(task, BankTask)
    assert (task.seed, task.file) == (3, opened.bank(tiny_bank))
    assert open_task(configured, tiny_bank, 4, "cpu", only_test=True).seed == 4
    with pytest.raises(UserError, match=r"holds 'Tiny' but DATASET\.NAME is 'Digits'"):
        open_task(cfg("DATASET.NAME", "Digits"), tiny_bank, 3, "cpu", only_test=True)


# Testing a model, thumbnails


def test_a_model_is_tested_instead_of_training_one_and_thumbnails_need_training_images(
    cfg, done, tiny_bank, tmp_path, monkeypatch
):
    monkeypatch.setattr(run_module, "test_model", lambda *arguments: arguments)
    configured = cfg()
    asked = (configured, tiny_bank, tmp_path / "model", 4, "cpu", None)
    assert run_module.run(configured, tiny_bank, tmp_path / "model", 4) == asked
    for where in ({"bank_file": tiny_bank}, {"model_dir": tmp_path}):
        with pytest.raises(UserError, match="--keep-thumbnails needs training images"):
            run_module.run(configured, **where, keep_thumbnails=True)
    assert done == []


@pytest.mark.parametrize(("trainer", "says"), [("ZeroShot", ""), ("CLIPAdapter", "changes the feature"), ("Spy", "")])
def test_a_method_that_does_not_fold_says_that_it_leaves_no_model(
    cfg, tiny_bank, tmp_path, caplog, monkeypatch, trainer, says
):
    if trainer == "Spy":
        method, trainer, says = run_module.load_method("ZeroShot"), "ZeroShot", "it returns no classifier"
        fit = run_module.fit
        monkeypatch.setattr(run_module, "fit", lambda *words: replace(fit(*words), classifier=None))
        assert not method.not_saved
    with caplog.at_level("INFO", "trainers.hegraph"):
        run_module.run(cfg(name=trainer), tiny_bank)
    assert [says in message for message in caplog.messages if "no model folder" in message] == ([True] if says else [])
    assert (tmp_path / "out" / "model").exists() != bool(says)
