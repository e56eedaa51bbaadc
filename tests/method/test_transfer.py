"""Transfer to classes that were not trained on: W goes along, class-wise biases and visual nodes stay behind."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from test_layers import edges, message

from trainers.hegraph.method.graph import build_graph
from trainers.hegraph.method.model import HeGraphModel, TransferableAdapter
from trainers.hegraph.method.options import ClosedFormOptions

WIDTH, SOURCE, TARGET = 16, 5, 7


@pytest.fixture
def trained(model_options, unit_features):
    """Function of options: an adapter of five classes whose every parameter has moved from where it started."""

    def make(**values) -> HeGraphModel:
        nodes = [unit_features(SOURCE, WIDTH, seed=seed) for seed in range(3)]
        keys, labels = unit_features(2 * SOURCE, WIDTH, seed=9), torch.arange(SOURCE).repeat(2)
        model = HeGraphModel(build_graph(*nodes), keys, labels, 100.0, model_options(**values))
        generator = torch.Generator().manual_seed(4)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
        return model

    return make


@pytest.fixture
def target(unit_features):
    return unit_features(TARGET, WIDTH, seed=20), unit_features(TARGET, WIDTH, seed=21)


def by_hand(positive, negative, weight_n, weight_p, beta_pn, alpha_pp, alpha_np):
    """Eq. 1-4 with two kinds of nodes and no bias."""

    def send(target, source, values, weight, diagonal):
        return message(edges(target, source, diagonal), target, values, weight, torch.zeros_like(target))

    updated = negative + beta_pn * send(negative, positive, positive, weight_n, -1.0)
    moved = positive + alpha_pp * send(positive, positive, positive, weight_p, 0.0)
    return moved + alpha_np * send(positive, negative, updated, weight_p, -1.0)


@pytest.mark.parametrize(
    ("variant", "paths"),
    [
        ("full", ("BETA_PN", "ALPHA_PP", "ALPHA_NP_TEST")),
        ("T-N", ("BETA_PN", None, "ALPHA_NP_TEST")),
        ("T-P", (None, "ALPHA_PP", None)),
    ],
)
def test_the_target_graph_has_text_nodes_only_and_no_bias(trained, target, variant, paths):
    model = trained(variant=variant)
    w_p, metapath = model.layers.weight["positive"], model.options.metapath
    w_n = model.layers.weight["negative"] if variant != "T-P" else w_p
    expected = by_hand(*target, w_n, w_p, *(metapath[key] if key else 0.0 for key in paths))
    found = TransferableAdapter.of(model).class_features(*target)
    assert not found.requires_grad
    torch.testing.assert_close(found, expected.detach(), atol=1e-6, rtol=1e-5)
    with torch.no_grad():
        for bias in model.layers.bias.values():
            bias += 1.0
    assert torch.equal(TransferableAdapter.of(model).class_features(*target), found)


def test_learned_weights_of_the_meta_paths_go_along(trained, target):
    model = trained(learn_metapath=True)
    before = TransferableAdapter.of(model).class_features(*target)
    with torch.no_grad():
        model.layers.metapath["positive_to_positive"] += 0.5
    assert not torch.allclose(TransferableAdapter.of(model).class_features(*target), before)


@pytest.mark.parametrize("values", [{"text_weights": False}, {"text_weights": True}, {"variant": "free"}])
def test_new_classes_receive_messages_in_closed_form_at_their_own_weight(trained, target, unit_features, values):
    model = trained(closed_form=ClosedFormOptions(kappa=3.0, omega=0.2), **values)
    adapter, queries = TransferableAdapter.of(model), unit_features(6, WIDTH, seed=30)
    text = 50.0 * queries @ F.normalize(adapter.class_features(*target), dim=-1).t()
    messages = model.closed_form.for_new_classes().logits(queries, target[0])
    found = adapter.logits(queries, *target, 50.0)
    torch.testing.assert_close(found, text + 0.05 * 50.0 * messages, rtol=1e-4, atol=1e-4)
    if values != {"text_weights": True}:  # biases stay behind, and there is no W
        assert adapter.class_features(*target).equal(target[0])
