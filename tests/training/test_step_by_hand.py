"""One step of the adapter's training and its prediction, with numbers worked out by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from trainers.hegraph.method.cache import Logits
from trainers.hegraph.training.batches import BankBatches, Batch
from trainers.hegraph.training.loop import AdapterTraining, train_to_end
from trainers.hegraph.training.options import TrainingOptions

IMAGES = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
LABELS = torch.tensor([0, 0, 1])
TEXT = torch.tensor([[0.8, 0.6], [0.6, 0.8]])


def options_of(**changed: object) -> TrainingOptions:
    return TrainingOptions(
        **{"learning_rate": 0.0, "lr_width": 0, "lr_tau": 0, "visual_lr": 0.0, "weight_decay": 0.0, **changed}
    )


def data_of(labels: torch.Tensor = LABELS, batch_size: int = 3) -> BankBatches:
    return BankBatches(IMAGES[None], labels, batch_size, seed=1)


class FixedModel(nn.Module):
    """Says the same logits whatever it is asked, and remembers what it was asked.

    Its parameters count in the loss, so that a step can move them, but have no gradient.
    """

    logit_scale = 4.0

    def __init__(self, text: list[list[float]], visual: list[list[float]] | None) -> None:
        super().__init__()
        self.x_positive = TEXT
        self.kept = nn.ParameterDict({name: nn.Parameter(torch.full((2,), 4.0)) for name in ("w", "b", "v")})
        self.text, self.visual = torch.tensor(text), None if visual is None else torch.tensor(visual)
        self.asked: list[tuple] = []

    def parameter_groups(self, lr: float, weight_lr_mult: float, visual_lr: float) -> list[dict]:
        rates = {"w": lr * weight_lr_mult, "b": lr, "v": visual_lr}
        return [{"params": [self.kept[name]], "lr": rate} for name, rate in rates.items()]

    def with_noise(self, *arguments: object) -> str:
        return "noise"

    def forward(self, *arguments: object) -> Logits:
        self.asked.append(arguments)
        nothing = 0 * sum(parameter.sum() for parameter in self.parameters())
        return Logits(self.text + nothing, None if self.visual is None else self.visual + nothing)


def test_a_steps_loss_is_the_texts_and_lambda_times_that_of_the_scaled_visual_logits():
    # Of the text: (log(1 + e^-1) + log 2) / 2 = 0.503204. The visual logits (0, 0.5) and (0, 0.5), times 4, are (0, 2):
    # (log(1 + e^2) + log(1 + e^-2)) / 2 = 1.126928
    model = FixedModel([[1.0, 0.0], [0.0, 0.0]], [[0.0, 0.5], [0.0, 0.5]])
    training = AdapterTraining(model, data_of(), options_of(visual_weight=3.0, visual_scale=4.0))
    loss = training.step(Batch(IMAGES[:2], torch.tensor([0, 1]), torch.tensor([0, 1])))
    assert loss.item() == pytest.approx(0.503204 + 3 * 1.126928, abs=1e-5) and not loss.requires_grad


@pytest.mark.parametrize("leave_one_out", [True, False])
def test_a_step_tells_the_model_where_its_images_lie_in_the_cache_only_to_leave_them_out(leave_one_out):
    model = FixedModel([[1.0, 0.0], [0.0, 0.0]], None)
    positions, products = torch.tensor([2, 0]), torch.ones(2, 3)
    training = AdapterTraining(model, data_of(), options_of(leave_one_out=leave_one_out))
    training.step(Batch(IMAGES[:2], torch.tensor([0, 1]), positions, products))
    [(features, own, given, noise)] = model.asked
    assert torch.equal(features, IMAGES[:2]) and given is products and noise == "noise"
    assert own is (positions if leave_one_out else None)


def test_without_a_gradient_adamw_only_shrinks_each_parameter_by_its_rate_times_the_decay():
    # Rates 0.5 * 0.1 (matrices), 0.5 (biases) and 0.2 (visual), decay 0.4: a step keeps 0.98, 0.8 and 0.92
    model = FixedModel([[1.0, 0.0], [0.0, 0.0]], None)
    rates = {"learning_rate": 0.5, "weight_lr_mult": 0.1, "visual_lr": 0.2, "weight_decay": 0.4}
    training = AdapterTraining(model, data_of(), options_of(**rates))
    batch = Batch(IMAGES[:2], torch.tensor([0, 1]), torch.tensor([0, 1]))
    for step in (1, 2):
        training.step(batch)
        found = [parameter[0].item() for parameter in model.kept.values()]
        expected = dict(zip("bvw", (4 * 0.8**step, 4 * 0.92**step, 4 * 0.98**step)))
        assert dict(zip(model.kept, found)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("least", "epochs"), [(0, 4), (8, 4), (9, 5), (11, 6)])
def test_the_epochs_are_those_asked_for_or_enough_for_the_least_steps(least, epochs):
    # Three images in batches of two are two steps in an epoch
    model = FixedModel([[1.0, 0.0]], None)
    training = AdapterTraining(model, data_of(batch_size=2), options_of(epochs=4, min_steps=least))
    assert training.epochs == epochs


def test_training_to_the_end_takes_every_step_of_every_epoch_in_training_mode():
    model, modes = FixedModel([[1.0, 0.0]], None).eval(), []
    model.register_forward_pre_hook(lambda module, _: modes.append(module.training))

    summary = train_to_end(AdapterTraining(model, data_of(batch_size=1), options_of(epochs=2)))
    assert (summary.epochs, summary.steps, modes) == (2, 6, [True] * 6)
