"""Our AdamW is torch's, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from trainers.hegraph.training.adamw import AdamW

Trained = tuple[list[nn.Parameter], Any]  # parameters and their optimizer


def parameters() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((3, 4), (5,), (2, 2))]


def groups(of: list[nn.Parameter]) -> list[dict]:
    return [{"params": of[:2], "lr": 0.1}, {"params": of[2:], "lr": 0.02}]


def step(optimizer, of: list[nn.Parameter], number: int) -> None:
    """One step of a loss that leaves out the second parameter every other time."""
    optimizer.zero_grad()
    optimizer.param_groups[0]["lr"] = 0.1 / (1 + number)
    used = of if number % 2 else [of[0], of[2]]
    torch.stack([(parameter**3).sum() for parameter in used]).sum().backward()
    optimizer.step()


def trained_alike(steps: int) -> Iterator[tuple[Trained, Trained]]:
    """The same parameters, trained by ours and by torch's, after each of so many steps."""
    ours, theirs = parameters(), parameters()
    one = AdamW(groups(ours), weight_decay=0.05)
    other = torch.optim.AdamW(groups(theirs), weight_decay=0.05, fused=True)
    for number in range(steps):
        step(one, ours, number)
        step(other, theirs, number)
        yield (ours, one), (theirs, other)


def same(ours: list[nn.Parameter], theirs: list[nn.Parameter]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(ours, theirs))


def test_steps_are_those_of_torch():
    for (ours, _), (theirs, _) in trained_alike(6):
        assert same(ours, theirs)
    assert not same(ours, parameters())


def test_the_state_is_that_of_torch_and_a_training_goes_on_from_it():
    *_, ((ours, one), (_, other)) = trained_alike(3)
    saved, expected = one.state_dict(), other.state_dict()
    assert saved["state"].keys() == expected["state"].keys() == {0, 1, 2}
    for moments, wanted in zip(saved["state"].values(), expected["state"].values()):
        assert moments.keys() == wanted.keys()
        assert all(torch.equal(moments[name], wanted[name]) for name in wanted)
    for group, wanted in zip(saved["param_groups"], expected["param_groups"]):
        assert group == {name: wanted[name] for name in ("params", "lr", "betas", "eps", "weight_decay")}

    resumed = [nn.Parameter(parameter.detach().clone()) for parameter in ours]
    again = AdamW(groups(resumed), weight_decay=0.0)
    again.load_state_dict(saved)
    for number in range(3, 6):
        step(one, ours, number)
        step(again, resumed, number)
    assert same(ours, resumed)
    assert same_moments(one, again)


def same_moments(one: AdamW, other: AdamW) -> bool:
    def of(optimizer: AdamW) -> list[Tensor]:
        return [moment for moments in optimizer.state_dict()["state"].values() for moment in moments.values()]

    return all(torch.equal(ours, theirs) for ours, theirs in zip(of(one), of(other)))
