"""The steps of `run`, one after the other: what is asked of the task, when, and what reaches the record."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from trainers.hegraph.baselines import method_options
from trainers.hegraph.config_files import load_cfg
from trainers.hegraph.experiments import run as run_module
from trainers.hegraph.experiments.folder import RunFolder
from trainers.hegraph.experiments.tasks import BankTask
from trainers.hegraph.utils import processes
from trainers.hegraph.utils.errors import UserError


@pytest.fixture
def cfg(tmp_path):
    """Function of more keys and values: the configuration of a run of zero-shot CLIP."""

    def make(*opts: object, name: str = "ZeroShot"):
        common = ["OUTPUT_DIR", str(tmp_path / "out"), "DATASET.NUM_SHOTS", 2, "SEED", 3, "TRAINER.NAME", name]
        return load_cfg(method=method_options(name), opts=[*common, *opts])

    return make


@pytest.fixture
def done(monkeypatch) -> list:
    """What was asked of the task, which takes five seconds to read, of targets and of the group of processes."""
    asked, clock, bank = [], [100.0], BankTask.bank

    def read(task: BankTask):
        asked.append("bank")
        clock[0] += 5
        return bank(task)

    for name in ("prepare",):
        monkeypatch.setattr(BankTask, name, lambda task, name=name: asked.append(name))
    monkeypatch.setattr(BankTask, "bank", read)
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
    assert run_module.run(cfg(), tiny_bank) == record
    assert done == ["prepare", "bank", "score targets"]
    # Nor where another process has left the record since it was looked for
    assert RunFolder(BankTask(tiny_bank, cfg(), 3)).do(lambda: pytest.fail("done again")) == record


@pytest.mark.parametrize("rank", [0, 1])
def test_without_training_all_processes_encode_and_the_first_writes_the_split(
    cfg, done, tiny_bank, tmp_path, monkeypatch, rank
):
    monkeypatch.setattr(processes, "rank", lambda: rank)
    assert run_module.run(cfg(), tiny_bank, train=False) == {}
    assert done == ["prepare", "bank"]
    assert [path.name for path in tmp_path.glob("out/*")] == ["split.json"][rank:]
    if rank:
        assert run_module.run(cfg(), tiny_bank) == {}
        assert done[2:] == ["prepare", "bank", "encode targets"]
        assert not (tmp_path / "out").exists()


def test_the_first_process_encodes_the_targets_with_the_others_and_goes_on_alone(cfg, done, tiny_bank, monkeypatch):
    monkeypatch.setattr(processes, "world_size", lambda: 2)
    run_module.run(cfg(), tiny_bank)
    assert done == ["prepare", "bank", "encode targets", "stop", "score targets"]


# Seeds and devices


@pytest.mark.parametrize(
    ("seed", "wanted", "there", "seen"),
    [(0, True, False, (0, "cpu")), (7, True, True, (7, "cuda")), (-1, False, True, (2**31 - 1, "cpu"))],
)
def test_a_negative_seed_is_drawn_by_the_first_process_and_a_gpu_used_where_it_is_wanted_and_there(
    cfg, monkeypatch, seed, wanted, there, seen
):
    def opening(cfg, path, seed, device):
        assert torch.equal(torch.rand(1), torch.rand(1, generator=torch.Generator().manual_seed(seed)))
        assert (seed, device) == seen
        raise InterruptedError  # the test has seen what it wanted

    draw = SimpleNamespace(randrange=lambda limit: limit - 1)
    monkeypatch.setattr(run_module.random, "SystemRandom", lambda: draw)
    monkeypatch.setattr(processes, "of_first", lambda draw: draw())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    monkeypatch.setattr(run_module, "open_task", opening)
    with pytest.raises(InterruptedError):
        run_module.run(cfg("SEED", seed, "USE_CUDA", wanted), None)


# Models, thumbnails


def test_thumbnails_need_training_images(cfg, tiny_bank, tmp_path):
    for where in ({"bank_file": tiny_bank}, {"model_dir": tmp_path}):
        with pytest.raises(UserError, match="--keep-thumbnails needs training images"):
            run_module.run(cfg(), **where, keep_thumbnails=True)
