"""What training resumes from and what it leaves; everything that does not fit is refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch.optim import AdamW

from benchmarks.tasks import random_bank
from trainers.hegraph.method.model import HeGraphModel, build_model
from trainers.hegraph.method.options import ModelOptions
from trainers.hegraph.training import loop
from trainers.hegraph.training.loop import Checkpoints
from trainers.hegraph.utils.errors import UserError


def make_model(width: int = 8, shuffle: bool = True) -> HeGraphModel:
    """An adapter of three classes with parameters that are fixed but not trivial."""
    model, generator = build_model(random_bank(3, width, shots=1), ModelOptions()), torch.Generator().manual_seed(0)
    for parameter in model.parameters() if shuffle else ():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator))
    return model


def make_optimizer(model: HeGraphModel, steps: int = 3) -> AdamW:
    optimizer = AdamW(model.parameter_groups(0.1, 0.5, 0.02), weight_decay=0.01, fused=True)
    for _ in range(steps):
        optimizer.zero_grad()
        model(model.cache_keys).text.square().sum().backward()
        optimizer.step()
    return optimizer


@pytest.fixture
def kept(tmp_path) -> Checkpoints:
    """The checkpoints of a run that has saved one after seven epochs."""
    kept, model = Checkpoints(tmp_path / "run", tmp_path / "run", "this run"), make_model()
    kept.save(model, make_optimizer(model), epoch=7, seconds=1.5)
    return kept


def test_a_checkpoint_restores_parameters_optimizer_epoch_and_time_and_is_removed_at_the_end(kept):
    saved, model = make_model(), make_model(shuffle=False)
    saved_optimizer, optimizer = make_optimizer(saved), make_optimizer(model, steps=0)
    assert kept.load(model, optimizer) == (7, 1.5)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in saved.state_dict().items())
    expected, found = saved_optimizer.state_dict()["state"], optimizer.state_dict()["state"]
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[i][name], found[i][name]) for i in expected for name in expected[i])
    kept.remove()
    assert kept.load(model, optimizer) is None and kept.read() is None


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:2000])


def changed(change, checksum: bool = True):
    """Function that changes what a file holds, which has the right checksum afterwards."""

    def damage(path: Path) -> None:
        state = torch.load(path, weights_only=True)
        change(state)
        torch.save(state | ({"checksum": loop._checksum(state)} if checksum else {}), path)

    return damage


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (cut, "is damaged"),
        (lambda path: torch.save({}, path), "is damaged"),
        (changed(lambda state: state["moments"][0]["exp_avg"].add_(1e-3), checksum=False), "is damaged .*has changed"),
        (changed(lambda state: state.update(model=make_model(width=4).state_dict())), "are others"),
        (changed(lambda state: state["moments"][0].update(exp_avg=torch.zeros(2))), "are others"),
        (changed(lambda state: state["moments"][0].update(exp_avg=torch.zeros(8, 8).double())), "are others"),
        (changed(lambda state: state["moments"].update({99: state["moments"][0]})), "are others"),
    ],
)
def test_a_damaged_checkpoint_is_refused_and_it_and_the_model_stay_as_they_are(kept, damage, said):
    damage(kept.path_to_resume)
    content, model = kept.path_to_resume.read_bytes(), make_model(shuffle=False)
    before = [parameter.clone() for parameter in model.parameters()]
    with pytest.raises(UserError, match=rf"checkpoint\.pt {said}.*; delete it to start anew"):
        kept.load(model, make_optimizer(model, 0))
    assert kept.path_to_resume.read_bytes() == content
    assert all(map(torch.equal, before, model.parameters()))


def test_a_checkpoint_of_another_run_is_refused_and_kept(kept, tmp_path):
    content = kept.path_to_resume.read_bytes()
    with pytest.raises(UserError, match="belongs to a run with other settings or data"):
        Checkpoints(tmp_path, kept.folder, "another run").read()
    assert kept.path_to_resume.read_bytes() == content


def test_pickled_code_in_a_checkpoint_is_refused_and_not_executed(kept, tmp_path):
    class Evil:
        def __reduce__(self):
            return Path.touch, (tmp_path / "executed",)

    torch.save({"run_id": "this run", "model": Evil()}, kept.path_to_resume)
    with pytest.raises(UserError, match="is damaged"):
        kept.read()
    assert not (tmp_path / "executed").exists()


def test_an_adapter_holds_trained_parameters_what_they_fit_and_nothing_of_the_features(tmp_path):
    Checkpoints(tmp_path, tmp_path, "a run", ["cat", "dog", "bée"], "a hash").save_adapter(make_model())
    with safe_open(tmp_path / "adapter.safetensors", "pt") as file:
        assert set(file.keys()) == {name for name, _ in make_model().named_parameters()}
        about = json.loads(file.metadata()["adapter"])
    assert about == {"variant": "full", "split_hash": "a hash", "classnames": ["cat", "dog", "bée"]}
