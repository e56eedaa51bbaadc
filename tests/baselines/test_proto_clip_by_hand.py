"""Proto-CLIP's loss, steps, adapter and choices on val, with numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from by_hand import AXES, IMAGES, LABELS, PROBES, TEXT, Array, adam, bank_of, cross_entropy, softmax, tensor, unit
from yacs.config import CfgNode

from trainers.hegraph.baselines import proto_clip

PROTO = {
    "RATIO": 0.0,  # the adapter adds nothing, so that only the two memories are left to train
    "TEMPERATURE": 0.5,
    "BETA": 3.0,
    "LR": 0.02,
    "WEIGHT_DECAY": 0.4,
    "EPS": 0.05,
    "BATCH_SIZE": 256,
}


def prototypes(images: Array) -> Array:
    return unit([sum(unit(image) for image, label in zip(images, LABELS) if label == k) for k in range(3)])


def probabilities(features: Array, images: Array, text: Array, alpha: float, beta: float) -> Array:
    by_image, by_text = (
        softmax(-beta * ((features[:, None] - of[None]) ** 2).sum(axis=2)) for of in (prototypes(images), unit(text))
    )
    return alpha * by_image + (1 - alpha) * by_text


def loss_of_memories(images: Array, text: Array, alpha: float, beta: float) -> float:
    """The negative log of the class's probability, and the alignment of the prototypes in both directions."""
    p = probabilities(IMAGES, images, text, alpha, beta)
    classify = -np.log(p[np.arange(5), LABELS]).mean()
    pairs = prototypes(images) @ unit(text).T / 0.5
    return classify + cross_entropy(pairs, range(3)) + cross_entropy(pairs.T, range(3))


def test_proto_clip_trains_both_memories_on_the_posterior_and_the_alignment_at_a_constant_rate(fit):
    trained = adam(
        lambda *memories: loss_of_memories(*memories, 0.3, 3.0), [IMAGES, TEXT], [0.02] * 3, 0.4, True, eps=0.05
    )
    shots = {"ALPHA_WITHOUT_VAL": [[1, 0.9], [2, 0.3]], "EPOCHS_WITHOUT_VAL": [[1, 9], [2, 3]]}
    fitted = fit("ProtoCLIP", bank_of(IMAGES, LABELS, TEXT), **PROTO, **shots, EPOCHS=9)
    assert (fitted.epochs, fitted.steps, fitted.selected) == (3, 3, {})
    expected = np.log(probabilities(PROBES, *trained, 0.3, 3.0))
    np.testing.assert_allclose(fitted.logits(tensor(PROBES)).numpy(), expected, rtol=0, atol=2e-4)


def test_rows_of_norm_1_have_the_gradient_that_differences_show():
    rows = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(4), requires_grad=True)
    assert torch.autograd.gradcheck(proto_clip.unit, rows)
    torch.testing.assert_close(proto_clip.unit(rows), torch.nn.functional.normalize(rows, dim=-1))


def test_a_probability_of_zero_has_a_finite_log():
    query, images = tensor([[1.0, 0.0]]), tensor(AXES)
    found = proto_clip.mixture(query @ images.t(), query @ images.t(), 0.5, 500.0)
    assert found.tolist() == [[0.0, pytest.approx(math.log(torch.finfo(torch.float32).tiny))]]


def test_the_adapter_adds_the_normalised_output_of_its_layers_to_the_feature():
    # Both matrices are the identity. (0.8, 0.6) less its mean 0.7 is (0.1, -0.1), over its deviation 0.1: (1, -1),
    # which the second normalisation keeps. Over the root of the width it is (0.7071, -0.7071). A quarter of it and
    # three quarters of the feature: (0.776777, 0.273223), of norm 0.823425.
    model = proto_clip.Prototypes(bank_of(AXES, [0, 1], AXES), CfgNode({"RATIO": 0.25, "REDUCTION": 1}), 1)
    for layer in (model.layers[0], model.layers[2]):
        torch.nn.init.eye_(layer.weight)
    found = model.adapt(tensor([[0.8, 0.6]]))
    torch.testing.assert_close(found, tensor([[0.943349, 0.331813]]), rtol=0, atol=2e-4)
    narrow = proto_clip.Prototypes(bank_of(IMAGES, LABELS, TEXT), CfgNode({"RATIO": 0.25, "REDUCTION": 3}), 1)
    assert [tuple(p.shape) for p in narrow.layers.parameters()] == [(1, 4), (1,), (1,), (4, 1), (4,), (4,)]


def search_options(**changed: object) -> CfgNode:
    return CfgNode({"SEARCH": True, "ALPHA": 0.52, "BETA": 9.3, "ALPHA_WITHOUT_VAL": [[1, 0.1], [2, 0.4]], **changed})


def test_the_search_lists_its_candidates_by_their_distance_from_the_start_and_takes_what_is_best_on_val():
    # |alpha - 0.52| + |beta - 9.3| / 20, over alphas 0, 0.1 ... 1 and betas 0.1, 0.2 ... 0.9, 1, 2 ... 20
    bank = bank_of(AXES, [0, 1], AXES, val=(AXES, [0, 1]), test=(AXES, [1, 0]))
    chosen, entry = proto_clip.search(bank, search_options(), lambda features: (torch.zeros(2, 2), torch.zeros(2, 2)))
    values = [value for value, _ in entry["candidates"]]
    assert len(values) == 11 * 29 + 1
    # At 0, 0.02 + 0.015, 0.02 + 0.035, 0.02 + 0.065 and 0.08 + 0.015
    assert values[:5] == [(0.52, 9.3), (0.5, 9.0), (0.5, 10.0), (0.5, 8.0), (0.6, 9.0)]
    assert {beta for _, beta in values} == {i / 10 for i in range(1, 10)} | {float(i) for i in range(1, 21)} | {9.3}
    assert {alpha for alpha, _ in values} == {0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1, 0.52}
    assert chosen == (0.52, 9.3)  # all are equally good
    assert {accuracy for _, accuracy in entry["candidates"]} == {50.0}
    # The images are right and weak, the text is wrong and strong. For both val images the difference of the two
    # probabilities is alpha tanh(0.1 beta) - (1 - alpha) tanh(0.3 beta). At beta 9.3 it is above 0 from alpha 0.576 on,
    # at beta 9 from 0.581, at 10 from 0.567 and at 11 from 0.555: the nearest candidate is (0.6, 9).
    weak, strong = tensor([[0.1, 0.0], [0.0, 0.1]]), tensor([[0.0, 0.3], [0.3, 0.0]])
    chosen, entry = proto_clip.search(bank, search_options(), lambda features: (weak, strong))
    assert chosen == entry["value"] == (0.6, 9.0)


@pytest.mark.parametrize("search", [True, False])
def test_without_a_search_alpha_is_that_of_the_shots(search):
    val = None if search else (AXES, [0, 1])
    bank = bank_of([*AXES, AXES[0]], [0, 1, 0], AXES, val=val)
    assert proto_clip.search(bank, search_options(SEARCH=search), lambda *_: pytest.fail("asked")) == ((0.4, 9.3), {})


def test_val_is_looked_at_every_so_many_epochs_and_the_numbers_are_chosen_before_and_after(fit):
    bank = bank_of(IMAGES, LABELS, TEXT, val=(PROBES, [0, 1, 2, 0, 1, 2]))
    asked = {"EPOCHS": 7, "ASK_EVERY": 3, "EPOCHS_WITHOUT_VAL": [[1, 1]], "ALPHA": 0.5}
    fitted = fit("ProtoCLIP", bank, **PROTO, **asked)
    assert (fitted.epochs, fitted.steps) == (7, 7)
    assert list(fitted.selected) == ["ALPHA, BETA in training", "EPOCH", "ALPHA, BETA at last"]
    assert [epoch for epoch, _ in fitted.selected["EPOCH"]["candidates"]] == [3, 6]
    # The loss holds the numbers chosen before training, the prediction those chosen after it
    before, after = (fitted.selected[f"ALPHA, BETA {when}"]["value"] for when in ("in training", "at last"))
    rates = [0.02] * fitted.selected["EPOCH"]["value"]
    trained = adam(lambda *memories: loss_of_memories(*memories, *before), [IMAGES, TEXT], rates, 0.4, True, eps=0.05)
    expected = np.log(probabilities(PROBES, *trained, *after))
    np.testing.assert_allclose(fitted.logits(tensor(PROBES)).numpy(), expected, rtol=0, atol=1e-3)
