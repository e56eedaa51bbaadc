"""Message passing and its gradients against the equations, written out here in double precision."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from trainers.hegraph.method.graph import HeteroGraph, build_graph
from trainers.hegraph.method.layers import Adapted, HeteroMessagePassing
from trainers.hegraph.method.options import ModelOptions
from trainers.hegraph.method.relations import RELATIONS

P, N, V = "positive", "negative", "visual"
METAPATH = {"BETA_PN": 0.7, "BETA_VN": -0.4, "ALPHA_PP": 0.3, "ALPHA_VP": 0.9, "ALPHA_NP": 0.6, "ALPHA_NP_TEST": 0.25}
WIDTH = 4
EVERYTHING = {row.name for row in RELATIONS}
TO_NEGATIVE = {"positive_to_negative", "visual_to_negative"}


def make_graph(unit_features, num_classes: int) -> HeteroGraph:
    return build_graph(*(unit_features(num_classes, WIDTH, seed=seed).double() for seed in range(3)))


def make_layer(graph: HeteroGraph, seed: int = 5, without: tuple = (), **options) -> HeteroMessagePassing:
    """A layer in the graph's precision whose weights and biases are all random and non-zero."""
    metapath = METAPATH | dict.fromkeys(without, 0.0)
    layer = HeteroMessagePassing(graph, ModelOptions(metapath=metapath, **options)).to(graph.x_dict[P].dtype)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if not name.startswith("metapath."):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / 2)
    return layer


# --- the method in plain equations; they know nothing of the package


def edges(target: Tensor, source: Tensor, diagonal: float) -> Tensor:
    r = F.normalize(target, dim=1) @ F.normalize(source, dim=1).t()
    return r - (1 - diagonal) * r.diag().diag() if len(target) == len(source) else r


def message(r: Tensor, x_target: Tensor, x_source: Tensor, weight: Tensor, bias: Tensor, self_loop=True) -> Tensor:
    """m_i = tanh( x_i W / (deg_i + 1) + sum_j r_ij / sqrt((deg_i + 1)(deg_j + 1)) x_j W + b_i )."""
    of_target, of_source = r.abs().sum(dim=1, keepdim=True) + 1, r.abs().sum(dim=0) + 1
    h = (r / (of_target * of_source).sqrt()) @ x_source + (x_target / of_target if self_loop else 0)
    return torch.tanh(h @ weight + bias)


def method(graph: HeteroGraph, layer: HeteroMessagePassing, alpha_np: float) -> Adapted:
    """Eq. 1-6."""
    p, n, v = (graph.x_dict[node_type] for node_type in (P, N, V))

    def send(
        target: str, source: str, x_target: Tensor, x_source: Tensor, diagonal: float, values=None, **kw
    ) -> Tensor:
        name = f"{source}_to_{target}"
        bias = layer.bias[name] if name in layer.bias else torch.zeros_like(x_target)
        r = edges(x_target, x_source, diagonal)
        return message(r, x_target, x_source if values is None else values, layer.weight[target], bias, **kw)

    updated = n + 0.7 * send(N, P, n, p, -1.0) - 0.4 * send(N, V, n, v, -1.0)
    # The updated negative nodes send, along edges of the initial ones
    positive = p + 0.3 * send(P, P, p, p, 0.0) + 0.9 * send(P, V, p, v, 1.0)
    positive = positive + alpha_np * send(P, N, p, n, -1.0, values=updated)
    return Adapted(positive, send(V, V, v, v, 0.0, self_loop=False))


def gradients(adapted: Adapted, layer: HeteroMessagePassing) -> dict[str, Tensor]:
    """Of a sum that weighs every entry differently."""
    generator = torch.Generator().manual_seed(11)
    factors = [torch.randn(x.shape, generator=generator).to(x.dtype) for x in adapted]
    layer.zero_grad()
    sum((factor * x).sum() for factor, x in zip(factors, adapted)).backward()
    return {name: parameter.grad.clone() for name, parameter in layer.named_parameters()}


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("num_classes", [WIDTH, WIDTH + 1])  # with a dense matrix and without
def test_the_layer_and_its_gradients_are_the_methods_in_training_and_in_evaluation(unit_features, num_classes, bias):
    graph = make_graph(unit_features, num_classes)
    layer = make_layer(graph, bias=bias)
    for mode, alpha_np in ((True, 0.6), (False, 0.25)):
        ours, expected = layer.train(mode)(), method(graph, layer, alpha_np)
        for one, other in zip(ours, expected):
            assert_close(one, other, rtol=0, atol=1e-6)  # unit features are made in float32
        ours, expected = gradients(ours, layer), gradients(expected, layer)
        for name, gradient in expected.items():
            assert_close(ours[name], gradient, rtol=1e-5, atol=1e-6, msg=name)


# --- parameters


@pytest.mark.parametrize(
    ("without", "variant", "weights", "biases"),
    [
        ((), "full", {P, N, V}, EVERYTHING),
        ((), "T-N", {P, N}, TO_NEGATIVE | {"negative_to_positive"}),
        # Without messages from them, the negative nodes are not updated either
        ((), "T-P", {P}, {"positive_to_positive", "visual_to_positive"}),
        (("ALPHA_NP",), "T", {P}, {"positive_to_positive", "visual_to_positive"}),
        (("BETA_PN", "BETA_VN"), "full", {P, V}, EVERYTHING - TO_NEGATIVE),
        (("ALPHA_PP", "ALPHA_VP", "ALPHA_NP"), "full", {V}, {"visual_to_visual"}),
    ],
)
def test_a_relation_of_weight_zero_owns_no_parameter_and_every_parameter_gets_a_gradient(
    unit_features, without, variant, weights, biases
):
    graph = make_graph(unit_features, 5)
    layer = make_layer(graph, without=without, variant=variant, learn_metapath=True)
    assert (set(layer.weight), set(layer.bias), set(layer.metapath)) == (weights, biases, biases - {"visual_to_visual"})
    assert set(layer.state_dict()) == {name for name, _ in layer.named_parameters()}
    assert [r for r in RELATIONS if r in layer.relations] == list(layer.relations)
    adapted = layer()
    assert (adapted.visual_bias is not None) == (variant == "full")
    if weights == {V}:
        assert adapted.positive.equal(graph.x_dict[P])
    else:  # text and visual steps share no parameter
        adapted.positive.square().sum().backward()
        untouched = {name for name, parameter in layer.named_parameters() if parameter.grad is None}
        assert untouched == ({"bias.visual_to_visual", "weight.visual"} if V in weights else set())
    if V in weights:
        adapted.visual_bias.square().sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("weight_init", ["identity", "xavier", "zero"])
def test_how_parameters_start(unit_features, weight_init):
    torch.manual_seed(0)
    layer = HeteroMessagePassing(make_graph(unit_features, 5), ModelOptions(weight_init=weight_init))
    assert all(bias.eq(0).all() for bias in layer.bias.values())
    for weight in layer.weight.values():
        if weight_init == "xavier":  # Glorot and Bengio's uniform bound, sqrt(6 / (fan_in + fan_out))
            bound = math.sqrt(6 / (2 * WIDTH))
            assert bound / 2 < weight.abs().max() <= bound
        else:
            assert weight.equal(torch.eye(WIDTH) if weight_init == "identity" else torch.zeros(WIDTH, WIDTH))


def test_learned_metapath_weights_start_at_the_given_values_and_hold_in_evaluation(unit_features):
    graph = make_graph(unit_features, 5)
    layer = make_layer(graph, learn_metapath=True)
    assert layer.metapath["visual_to_negative"].item() == pytest.approx(-0.4)
    assert_close(layer().positive, make_layer(graph)().positive, rtol=0, atol=1e-6)  # made from float32
    before = layer.eval()().positive
    with torch.no_grad():
        layer.metapath["negative_to_positive"].fill_(0.8)
    assert layer().positive.equal(layer.train()().positive)
    assert not torch.allclose(layer().positive, before)


def test_without_w_each_message_is_the_tanh_of_its_bias_and_weighs_the_same_at_test_time(unit_features):
    graph = make_graph(unit_features, 5)
    layer = make_layer(graph, text_weights=False)
    assert set(layer.weight) == {V} and set(layer.bias) == EVERYTHING - TO_NEGATIVE  # negative nodes tell nothing
    sent = {"visual": 0.9, "positive": 0.3, "negative": 0.6}
    expected = graph.x_dict[P] + sum(a * torch.tanh(layer.bias[f"{s}_to_positive"]) for s, a in sent.items())
    for mode in (True, False):
        assert_close(layer.train(mode)().positive, expected)
