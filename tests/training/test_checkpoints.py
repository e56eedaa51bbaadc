"""What training resumes from and what it leaves; everything that does not fit is refused by name."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch.optim import AdamW

from trainers.hegraph.config_files import load_cfg
from trainers.hegraph.method.graph import build_graph
from trainers.hegraph.method.model import HeGraphModel
from trainers.hegraph.training import checkpoints
from trainers.hegraph.training.checkpoints import Checkpoints, save_adapter
from trainers.hegraph.utils.errors import UserError

NAMES = ["cat", "dog", "bee"]


def make_model(*opts, num_classes: int = 3, width: int = 8, shuffle: bool = True) -> HeGraphModel:
    """An adapter with parameters that are fixed but not trivial."""
    generator = torch.Generator().manual_seed(0)
    nodes = [F.normalize(torch.randn(num_classes, width, generator=generator), dim=-1) for _ in range(3)]
    pairs = [value if i % 2 else f"TRAINER.HEGRAPHADAPTER.{value}" for i, value in enumerate(opts)]
    options = load_cfg(opts=pairs).model
    model = HeGraphModel(build_graph(*nodes), nodes[2], torch.arange(num_classes), 100.0, options)
    if shuffle:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model


def make_optimizer(model: HeGraphModel, steps: int = 3) -> AdamW:
    optimizer = AdamW(model.parameter_groups(0.1, 0.5, 0.02), weight_decay=0.01, fused=True)
    for _ in range(steps):
        optimizer.zero_grad()
        model(model.cache_keys).text.square().sum().backward()
        optimizer.step()
    return optimizer


def of_run(checkpoint: Path, run_id: str = "this run") -> Checkpoints:
    return Checkpoints(checkpoint.parent, checkpoint.parent, run_id)


@pytest.fixture
def adapter(tmp_path) -> Path:
    path = tmp_path / "run" / "adapter.safetensors"
    save_adapter(path, make_model(), NAMES)
    return path


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    path = tmp_path / "run" / "checkpoint.pt"
    model = make_model()
    of_run(path).save(model, make_optimizer(model), epoch=7, seconds=1.5)
    return path


# The checkpoint


def test_a_checkpoint_restores_parameters_optimizer_epoch_and_time(checkpoint):
    saved = make_model()
    saved_optimizer = make_optimizer(saved)
    model = make_model(shuffle=False)
    optimizer = make_optimizer(model, steps=0)
    assert of_run(checkpoint).load(model, optimizer) == (7, 1.5)
    for name, tensor in saved.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor)
    expected, found = saved_optimizer.state_dict()["state"], optimizer.state_dict()["state"]
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[i][name], found[i][name]) for i in expected for name in expected[i])


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flip(content: bytes) -> bytes:
    """Changes bytes in the middle of the tensors' data."""
    middle = len(content) // 2
    return content[:middle] + bytes(255 - byte for byte in content[middle : middle + 200]) + content[middle + 200 :]


@pytest.mark.parametrize("damage", [cut, flip, lambda _: b"", lambda _: b"garbage"])
def test_a_damaged_checkpoint_is_refused_and_left_alone(checkpoint, damage):
    checkpoint.write_bytes(damage(checkpoint.read_bytes()))
    content = checkpoint.read_bytes()
    model = make_model()
    with pytest.raises(UserError, match=r"checkpoint\.pt.*; delete it to start anew"):
        of_run(checkpoint).load(model, make_optimizer(model, 0))
    assert checkpoint.read_bytes() == content


def moments(state: dict) -> dict:
    return next(iter(state["moments"].values()))


def set_moment(value: object):
    return lambda state: moments(state).update(exp_avg=value)


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state["model"]["layers.weight.visual"].add_(1),
        lambda state: moments(state)["exp_avg"].add_(1e-3),
        lambda state: state.update(epoch=8),
    ],
    ids=["parameter", "moment", "epoch"],
)
def test_a_checkpoint_whose_content_has_changed_is_damaged(checkpoint, change):
    state = torch.load(checkpoint, weights_only=True)
    change(state)
    torch.save(state, checkpoint)
    model = make_model()
    with pytest.raises(UserError, match=r"checkpoint\.pt is damaged \(its content has changed"):
        of_run(checkpoint).load(model, make_optimizer(model, 0))


CHANGES = {
    "momenta of another shape": set_moment(torch.zeros(2)),
    "momenta of another type": set_moment(torch.zeros(8, 8, dtype=torch.float64)),
    "momenta of NaN": set_moment(torch.full((8, 8), torch.nan)),
    "momenta that are a word": set_moment("word"),
    "no second moment": lambda state: moments(state).pop("exp_avg_sq"),
    "moments of no parameter": lambda state: state["moments"].update({99: moments(state)}),
    "no parameter": lambda state: state.update(model={}),
    "a parameter of NaN": lambda state: state["model"].update({next(iter(state["model"])): torch.tensor(torch.nan)}),
    "a negative epoch": lambda state: state.update(epoch=-1),
    "an epoch out of range": lambda state: state.update(epoch=2**70),
    "an entry less": lambda state: state.pop("seconds"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_content_that_does_not_fit_is_refused_even_with_the_right_checksum(checkpoint, change):
    state = torch.load(checkpoint, weights_only=True)
    change(state)
    with contextlib.suppress(RuntimeError, NotImplementedError, TypeError):  # of tensors that have no values
        state["checksum"] = checkpoints._checksum(state)
    torch.save(state, checkpoint)
    model = make_model(shuffle=False)
    optimizer = make_optimizer(model, 0)
    before = [parameter.clone() for parameter in model.parameters()]
    with pytest.raises(UserError, match="is damaged.*; delete it to start anew"):
        of_run(checkpoint).load(model, optimizer)
    assert all(map(torch.equal, before, model.parameters()))


@pytest.mark.parametrize("content", [["a list"], torch.zeros(3), {}])
def test_another_object_is_refused(checkpoint, content):
    torch.save(content, checkpoint)
    with pytest.raises(UserError, match="is damaged"):
        of_run(checkpoint).check()


def test_pickled_code_in_a_checkpoint_is_refused_and_not_executed(tmp_path):
    class Evil:
        def __reduce__(self):
            return Path.touch, (tmp_path / "executed",)

    torch.save({"run_id": "this run", "model": Evil()}, tmp_path / "checkpoint.pt")
    model = make_model()
    with pytest.raises(UserError, match="is damaged"):
        of_run(tmp_path / "checkpoint.pt").load(model, make_optimizer(model, 0))
    assert not (tmp_path / "executed").exists()


# The adapter


def test_an_adapter_holds_trained_parameters_and_nothing_of_the_features(adapter):
    assert set(load_file(adapter)) == {name for name, _ in make_model().named_parameters()}
