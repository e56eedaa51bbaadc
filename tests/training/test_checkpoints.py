"""What training resumes from and what it leaves; everything that does not fit is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from trainers.hegraph.config_files import load_cfg
from trainers.hegraph.method.graph import build_graph
from trainers.hegraph.method.model import HeGraphModel
from trainers.hegraph.training.adamw import AdamW
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
    optimizer = AdamW(model.parameter_groups(0.1, 0.5, 0.02), weight_decay=0.01)
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
    assert all(torch.equal(expected[i]["exp_avg_sq"], found[i]["exp_avg_sq"]) for i in expected)


def test_a_checkpoint_holds_tensors_and_plain_values_only(checkpoint):
    state = torch.load(checkpoint, weights_only=True)
    assert set(state) == {"run_id", "epoch", "seconds", "model", "optimizer", "checksum"}


def test_a_checkpoint_of_another_run_is_refused(checkpoint):
    model = make_model()
    with pytest.raises(UserError, match=r"checkpoint\.pt belongs to a run with other settings or data"):
        of_run(checkpoint, "another run").load(model, make_optimizer(model, 0))
    assert checkpoint.exists()


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flip(content: bytes) -> bytes:
    """Changes bytes in the middle of the tensors' data."""
    middle = len(content) // 2
    return content[:middle] + bytes(255 - byte for byte in content[middle : middle + 200]) + content[middle + 200 :]


@pytest.mark.parametrize("damage", [cut, flip, lambda _: b"", lambda _: b"garbage", lambda _: bytes(1000)])
def test_a_damaged_checkpoint_is_refused_and_left_alone(checkpoint, damage):
    checkpoint.write_bytes(damage(checkpoint.read_bytes()))
    content = checkpoint.read_bytes()
    model = make_model()
    with pytest.raises(UserError, match=r"checkpoint\.pt is damaged.*delete it to start anew"):
        of_run(checkpoint).load(model, make_optimizer(model, 0))
    assert checkpoint.read_bytes() == content


def in_one_moment(state: dict) -> None:
    state["optimizer"]["state"][0]["exp_avg"][0, 0] += 1e-3


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state["model"]["layers.weight.visual"].zero_(),
        in_one_moment,
        lambda state: state.update(epoch=-1),
        lambda state: state["optimizer"]["param_groups"][0].update(lr=1.0),
    ],
    ids=["zeroed parameter", "one moment", "epoch", "rate"],
)
def test_a_checkpoint_whose_content_has_changed_is_damaged(checkpoint, change):
    state = torch.load(checkpoint, weights_only=True)
    change(state)
    torch.save(state, checkpoint)
    model = make_model()
    with pytest.raises(UserError, match=r"checkpoint\.pt is damaged"):
        of_run(checkpoint).load(model, make_optimizer(model, 0))


@pytest.mark.parametrize("key", ["run_id", "epoch", "seconds", "model", "optimizer", "checksum"])
def test_a_checkpoint_without_a_part_is_damaged(checkpoint, key):
    state = torch.load(checkpoint, weights_only=True)
    del state[key]
    torch.save(state, checkpoint)
    model = make_model()
    with pytest.raises(UserError, match="is damaged"):
        of_run(checkpoint).load(model, make_optimizer(model, 0))


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
