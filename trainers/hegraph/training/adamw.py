"""AdamW, with torch's own function for its step.

`torch.optim.AdamW` computes the same, bit for bit, and its state looks the same. But its base class imports torch's
compiler, which nothing here uses, and that takes longer than all else that a run from a feature bank does before its
first step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

BETAS = (0.9, 0.999)
EPS = 1e-8


class AdamW:
    """Loshchilov and Hutter, "Decoupled weight decay regularization", 2019; fused, on a CPU or a GPU.

    Args:
        groups: Each with its parameters (`params`) and their learning rate (`lr`).
        weight_decay: Per unit of learning rate.

    Attributes:
        param_groups: The groups, with `betas`, `eps` and `weight_decay`. Who trains may change their `lr`.
    """

    def __init__(self, groups: Sequence[dict[str, Any]], weight_decay: float) -> None:
        constants = {"betas": BETAS, "eps": EPS, "weight_decay": weight_decay}
        self.param_groups = [{**group, **constants} for group in groups]
        self._state: dict[Tensor, dict[str, Tensor]] = {}

    def zero_grad(self) -> None:
        """Forgets all gradients."""
        for parameter in self._parameters():
            parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Takes one step along the gradients. A parameter without one is left as it is."""
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            states = [self._state_of(parameter) for parameter in parameters]
            adamw(
                parameters,
                [parameter.grad for parameter in parameters],
                [state["exp_avg"] for state in states],
                [state["exp_avg_sq"] for state in states],
                [],
                [state["step"] for state in states],
                foreach=False,
                fused=True,
                amsgrad=False,
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                lr=group["lr"],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                maximize=False,
            )

    def state_dict(self) -> dict[str, Any]:
        """The moments of each parameter by its number, and the groups, with numbers for parameters."""
        numbers = {parameter: number for number, parameter in enumerate(self._parameters())}
        state = {numbers[parameter]: moments for parameter, moments in self._state.items()}
        groups = [{**group, "params": [numbers[p] for p in group["params"]]} for group in self.param_groups]
        return {"state": state, "param_groups": groups}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over a state from `state_dict` of an optimizer with the same groups."""
        parameters = self._parameters()
        for group, saved in zip(self.param_groups, state["param_groups"]):
            group |= {name: saved[name] for name in ("lr", "betas", "eps", "weight_decay")}
        self._state = {
            parameters[number]: {name: moment.clone().to(parameters[number].device) for name, moment in moments.items()}
            for number, moments in state["state"].items()
        }

    def _parameters(self) -> list[Tensor]:
        return [parameter for group in self.param_groups for parameter in group["params"]]

    def _state_of(self, parameter: Tensor) -> dict[str, Tensor]:
        if parameter not in self._state:
            self._state[parameter] = {
                "step": torch.zeros((), device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
        return self._state[parameter]
