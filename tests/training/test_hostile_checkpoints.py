"""A checkpoint of the right run whose content does not fit the model is refused before any of it is used."""

from __future__ import annotations

import contextlib

import pytest
import torch
import torch.nn.functional as F

from trainers.hegraph.config_files import load_cfg
from trainers.hegraph.method.graph import build_graph
from trainers.hegraph.method.model import HeGraphModel
from trainers.hegraph.training import checkpoints
from trainers.hegraph.training.adamw import AdamW
from trainers.hegraph.training.checkpoints import Checkpoints
from trainers.hegraph.utils.errors import UserError


def make() -> tuple[HeGraphModel, AdamW]:
    generator = torch.Generator().manual_seed(0)
    nodes = [F.normalize(torch.randn(3, 8, generator=generator), dim=-1) for _ in range(3)]
    model = HeGraphModel(build_graph(*nodes), nodes[2], torch.arange(3), 100.0, load_cfg().model)
    return model, AdamW(model.parameter_groups(0.1, 0.5, 0.02), weight_decay=0.01)


@pytest.fixture
def saved(tmp_path) -> Checkpoints:
    model, optimizer = make()
    model(model.cache_keys).text.square().sum().backward()
    optimizer.step()
    kept = Checkpoints(tmp_path, tmp_path, "this run")
    kept.save(model, optimizer, epoch=2, seconds=1.0)
    return kept


def moments(state: dict) -> dict:
    return next(iter(state["optimizer"]["state"].values()))


def set_moment(value: object):
    return lambda state: moments(state).update(exp_avg=value)


CHANGES = {
    "momenta of another shape": set_moment(torch.zeros(2)),
    "momenta of another type": set_moment(torch.zeros(8, 8, dtype=torch.float64)),
    "momenta that are complex": set_moment(torch.zeros(8, 8, dtype=torch.complex64)),
    "momenta that are sparse": set_moment(torch.eye(8).to_sparse()),
    "momenta without values": set_moment(torch.empty(8, 8, device="meta")),
    "momenta of NaN": set_moment(torch.full((8, 8), torch.nan)),
    "momenta that are a word": set_moment("word"),
    "no second moment": lambda state: moments(state).pop("exp_avg_sq"),
    "moments of no parameter": lambda state: state["optimizer"]["state"].update({99: moments(state)}),
    "another parameter": lambda state: state["model"].update(other=torch.zeros(1)),
    "no parameter": lambda state: state.update(model={}),
    "a parameter of NaN": lambda state: state["model"].update({next(iter(state["model"])): torch.tensor(torch.nan)}),
    "one group less": lambda state: state["optimizer"]["param_groups"].pop(),
    "a parameter twice": lambda state: state["optimizer"]["param_groups"][0].update(params=[0, 0]),
    "a group without a rate": lambda state: state["optimizer"]["param_groups"][0].pop("lr"),
    "decay rates in words": lambda state: state["optimizer"]["param_groups"][0].update(betas=("a", "b")),
    "a group that is a word": lambda state: state["optimizer"].update(param_groups=["word"]),
    "no optimizer": lambda state: state.update(optimizer=None),
    "a negative epoch": lambda state: state.update(epoch=-1),
    "half an epoch": lambda state: state.update(epoch=1.5),
    "an epoch out of range": lambda state: state.update(epoch=2**70),
    "seconds that are no number": lambda state: state.update(seconds=float("nan")),
    "seconds in words": lambda state: state.update(seconds="long"),
    "a further entry": lambda state: state.update(more=1),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_content_that_does_not_fit_is_refused_even_with_the_right_checksum(saved, change):
    state = torch.load(saved.path_to_resume, weights_only=True)
    change(state)
    with contextlib.suppress(RuntimeError, NotImplementedError, TypeError):  # of tensors that have no values
        state["checksum"] = checkpoints._checksum(state)
    torch.save(state, saved.path_to_resume)
    model, optimizer = make()
    before = [parameter.clone() for parameter in model.parameters()]
    with pytest.raises(UserError, match=r"is damaged.*; delete it to start anew"):
        saved.load(model, optimizer)
    assert all(map(torch.equal, before, model.parameters()))


@pytest.mark.parametrize("content", [["a list"], torch.zeros(3), "text", 3, {}])
def test_another_object_is_refused(saved, content):
    torch.save(content, saved.path_to_resume)
    with pytest.raises(UserError, match="is damaged"):
        saved.load(*make())
