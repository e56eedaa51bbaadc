"""The graph and message passing: numbers worked out by hand, and the equations written out in double precision.

Transfer to classes that were not trained on: W goes along, class-wise biases and visual nodes stay behind.
"""

import math
from collections.abc import Mapping

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from benchmarks.tasks import unit_features
from trainers.hegraph.method import graph as module
from trainers.hegraph.method.graph import HeteroGraph, build_graph, class_prototypes
from trainers.hegraph.method.layers import Adapted, HeteroMessagePassing
from trainers.hegraph.method.model import HeGraphModel, TransferableAdapter
from trainers.hegraph.method.options import ClosedFormOptions, ModelOptions
from trainers.hegraph.method.relations import NODE_TYPES, RELATIONS, RelationType
from trainers.hegraph.utils.errors import UserError

# In the plane; a cosine is that of the difference of two angles. Rows are targets, columns sources
NODES = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.6, 0.8], [-0.8, 0.6]], [[0.8, 0.6], [0.6, 0.8]]])
EDGES = {
    ("positive", "to", "positive"): [[0.0, 0.0], [0.0, 0.0]],
    ("visual", "to", "positive"): [[0.8, 0.6], [0.6, 0.8]],
    ("negative", "to", "positive"): [[-0.6, -0.8], [0.8, -0.6]],
    ("positive", "to", "negative"): [[-0.6, 0.8], [-0.8, -0.6]],
    ("visual", "to", "negative"): [[-0.96, 1.0], [-0.28, -0.0]],
    ("visual", "to", "visual"): [[0.0, 0.96], [0.96, 0.0]],
}


def test_edge_weights_of_two_classes_by_hand():
    features = (3 * NODES).requires_grad_()
    before = features.detach().clone()
    graph = build_graph(*features)
    assert (graph.num_classes, graph.width) == (2, 2)
    assert features.equal(before)  # the inputs are unchanged
    assert {relation.edge_type for relation in RELATIONS} == set(EDGES)
    for relation in RELATIONS:
        assert_close(graph.edge_weights(relation), torch.tensor(EDGES[relation.edge_type]), msg=relation.name)
    for found, expected in zip((graph.x_dict[name] for name in NODE_TYPES), NODES):
        assert_close(found, expected)
        assert not found.requires_grad


@pytest.mark.parametrize(("negative", "message"), [
    (unit_features(2, 4), r"one shape \[K, d\], got \[\(3, 4\), \(2, 4\), \(3, 4\)\]"),
    (torch.full((3, 4), math.nan), "must be finite numbers"),
], ids=["shape", "NaN"])  # fmt: skip
def test_unusable_nodes_are_refused(negative, message):
    with pytest.raises(ValueError, match=message):
        build_graph(unit_features(3, 4), negative, unit_features(3, 4))


def test_nodes_of_one_class_need_two_dimensions():
    with pytest.raises(ValueError, match=r"one shape \[K, d\], got \[\(4,\), \(4,\), \(4,\)\]"):
        build_graph(*unit_features(3, 4))


@pytest.mark.parametrize(("options", "message"), [
    ({"variant": "training-free"}, "did you mean 'training_free'"),
    ({"beta_c": -1.0}, "BETA_C must be at least 0, got -1.0"),
    ({"metapath": {"BETA_PN": 0.1}}, "metapath must have the keys .*, got BETA_PN"),
])  # fmt: skip
def test_invalid_options_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        ModelOptions(**options)


def test_invalid_constants_of_the_head_are_refused():
    with pytest.raises(UserError, match="KAPPA must be above 0, got 0"):
        ClosedFormOptions(kappa=0.0)


@pytest.mark.parametrize("size", [1, 4])
def test_degrees_are_sums_of_absolute_weights(monkeypatch, size):
    monkeypatch.setattr(module, "EDGE_ROWS", size)
    graph = HeteroGraph({"positive": unit_features(6, 4, seed=1), "visual": unit_features(6, 4, seed=2)})
    relation = RelationType("visual", "positive", diagonal=-1.0)
    weight = graph.edge_weights(relation)
    assert_close(graph.edge_weights(relation, slice(2, 5)), weight[2:5])
    target, source = graph.degrees(relation)
    assert_close(target, weight.abs().sum(dim=1, keepdim=True) + 1)
    assert_close(source, weight.abs().sum(dim=0).unsqueeze(1) + 1)


def test_class_prototypes_of_unequal_unsorted_classes():
    features = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.6, 0.8], [1.0, 0.0], [0.0, 1.0], [0.8, 0.6]])
    labels = torch.tensor([2, 0, 1, 2, 0, 0])
    # Class 0: (1,0), (0,1), (.8,.6), sum (1.8, 1.6); class 1: one image; class 2: (0,1), (1,0)
    expected = torch.tensor([[1.8, 1.6], [0.6, 0.8], [1.0, 1.0]])
    assert_close(class_prototypes(features, labels, ["a", "b", "c"]), expected / expected.norm(dim=1, keepdim=True))


@pytest.mark.parametrize(("names", "output"), [
    (["cat", "dog", "ant", "eel"], "2 of 4 have none: cat, eel$"), (list("abcdefghijklmno"), r"a, d, .*, l, \.\.\.$"),
])  # fmt: skip
def test_classes_without_an_image_are_named(names, output):
    with pytest.raises(UserError, match=output):
        class_prototypes(torch.eye(2), torch.tensor([1, 2]), names)


def test_hetero_data_edges_rebuild_the_matrices():
    pytest.importorskip("torch_geometric", reason="torch_geometric is an extra")
    data = build_graph(*NODES).to_hetero_data()
    assert data.validate() and set(data.edge_types) == set(EDGES)
    for node_type, x in zip(NODE_TYPES, NODES):
        assert_close(data[node_type].x, x)
    for (source, _, target), matrix in EDGES.items():
        edges, rebuilt = data[source, "to", target], torch.zeros(2, 2)
        # An edge of weight zero is an edge still; none goes from a node to itself
        assert edges.edge_index.shape == (2, 2 if source == target else 4)
        rebuilt.index_put_(tuple(edges.edge_index.flip(0)), edges.edge_weight, accumulate=True)
        assert_close(rebuilt, torch.tensor(matrix))


# --- layers


P, N, V = "positive", "negative", "visual"
METAPATH = {"BETA_PN": 0.7, "BETA_VN": -0.4, "ALPHA_PP": 0.3, "ALPHA_VP": 0.9, "ALPHA_NP": 0.6, "ALPHA_NP_TEST": 0.25}
WIDTH = 4
EVERYTHING = {row.name for row in RELATIONS}
TO_NEGATIVE = {"positive_to_negative", "visual_to_negative"}


def make_graph(num_classes: int = 5) -> HeteroGraph:
    return build_graph(*(unit_features(num_classes, WIDTH, seed=seed).double() for seed in range(3)))


GRAPH = make_graph()


def make_layer(graph: HeteroGraph = GRAPH, without: tuple = (), **options) -> HeteroMessagePassing:
    """A layer in double precision whose weights and biases are all random and non-zero."""
    layer = HeteroMessagePassing(graph, ModelOptions(metapath=METAPATH | dict.fromkeys(without, 0.0), **options))
    generator = torch.Generator().manual_seed(5)
    for name, parameter in layer.double().named_parameters():
        if not name.startswith("metapath."):
            parameter.data = torch.randn(parameter.shape, generator=generator).double() / 2
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


def method(nodes: dict[str, Tensor], layer: HeteroMessagePassing, bias: Mapping, paths: dict[str, float]) -> Adapted:
    """Eq. 1-6 with the weights `paths` of the meta-paths; a relation without weight or source nodes is absent."""

    def send(source: str, target: str, key: str, diagonal: float, values: Tensor | None = None, **options):
        if source not in nodes or key not in paths:
            return 0
        r = edges(nodes[target], nodes[source], diagonal)
        b = bias.get(f"{source}_to_{target}", torch.tensor(0.0))
        values = nodes[source] if values is None else values
        return paths[key] * message(r, nodes[target], values, layer.weight[target], b, **options)

    updated = nodes[N] + send(P, N, "BETA_PN", -1.0) + send(V, N, "BETA_VN", -1.0)
    # The updated negative nodes send, along edges of the initial ones
    positive = nodes[P] + send(P, P, "ALPHA_PP", 0.0) + send(V, P, "ALPHA_VP", 1.0)
    positive = positive + send(N, P, "ALPHA_NP", -1.0, values=updated)
    return Adapted(positive, send(V, V, "", 0.0, self_loop=False))


def gradients(adapted: Adapted, layer: HeteroMessagePassing) -> dict[str, Tensor]:
    """Of a sum that weighs every entry differently."""
    generator = torch.Generator().manual_seed(11)
    factors = [torch.randn(x.shape, generator=generator).to(x.dtype) for x in adapted]
    layer.zero_grad()
    sum((factor * x).sum() for factor, x in zip(factors, adapted)).backward()
    return {name: parameter.grad.clone() for name, parameter in layer.named_parameters()}


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("num_classes", [WIDTH, WIDTH + 1])  # with a dense matrix and without
def test_layer_and_gradients_equal_the_equations(num_classes, bias):
    graph = make_graph(num_classes)
    layer = make_layer(graph, bias=bias)
    for mode, alpha_np in ((True, 0.6), (False, 0.25)):
        paths = METAPATH | {"ALPHA_NP": alpha_np, "": 1.0}
        ours, expected = layer.train(mode)(), method(graph.x_dict, layer, layer.bias, paths)
        for one, other in zip(ours, expected):
            assert_close(one, other, rtol=0, atol=1e-6)  # unit features are made in float32
        ours, expected = gradients(ours, layer), gradients(expected, layer)
        for name, gradient in expected.items():
            assert_close(ours[name], gradient, rtol=1e-5, atol=1e-6, msg=name)


# --- parameters


@pytest.mark.parametrize(("without", "variant", "weights", "biases"), [
    ((), "full", {P, N, V}, EVERYTHING),
    ((), "T-N", {P, N}, TO_NEGATIVE | {"negative_to_positive"}),
    # Without messages from them, the negative nodes are not updated either
    ((), "T-P", {P}, {"positive_to_positive", "visual_to_positive"}),
    (("ALPHA_NP",), "T", {P}, {"positive_to_positive", "visual_to_positive"}),
    (("BETA_PN", "BETA_VN"), "full", {P, V}, EVERYTHING - TO_NEGATIVE),
    (("ALPHA_PP", "ALPHA_VP", "ALPHA_NP"), "full", {V}, {"visual_to_visual"}),
])  # fmt: skip
def test_relations_of_weight_zero_have_no_parameters(without, variant, weights, biases):
    layer = make_layer(without=without, variant=variant, learn_metapath=True)
    assert (set(layer.weight), set(layer.bias), set(layer.metapath)) == (weights, biases, biases - {"visual_to_visual"})
    assert set(layer.state_dict()) == {name for name, _ in layer.named_parameters()}
    assert [r for r in RELATIONS if r in layer.relations] == list(layer.relations)
    adapted = layer()
    assert (adapted.visual_bias is not None) == (variant == "full")
    if weights == {V}:
        assert adapted.positive.equal(GRAPH.x_dict[P])
    else:  # text and visual steps share no parameter
        adapted.positive.square().sum().backward()
        untouched = {name for name, parameter in layer.named_parameters() if parameter.grad is None}
        assert untouched == ({"bias.visual_to_visual", "weight.visual"} if V in weights else set())
    if V in weights:
        adapted.visual_bias.square().sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("weight_init", ["identity", "xavier", "zero"])
def test_initial_parameters(weight_init):
    torch.manual_seed(0)
    layer = HeteroMessagePassing(GRAPH, ModelOptions(weight_init=weight_init))
    assert all(bias.eq(0).all() for bias in layer.bias.values())
    for weight in layer.weight.values():
        if weight_init == "xavier":  # Glorot and Bengio's uniform bound, sqrt(6 / (fan_in + fan_out))
            bound = math.sqrt(6 / (2 * WIDTH))
            assert bound / 2 < weight.abs().max() <= bound
        else:
            assert weight.equal(torch.eye(WIDTH) if weight_init == "identity" else torch.zeros(WIDTH, WIDTH))


def test_learned_metapath_weights_hold_in_evaluation():
    layer = make_layer(learn_metapath=True)
    assert layer.metapath["visual_to_negative"].item() == pytest.approx(-0.4)
    assert_close(layer().positive, make_layer()().positive, rtol=0, atol=1e-6)  # made from float32
    before = layer.eval()().positive
    with torch.no_grad():
        layer.metapath["negative_to_positive"].fill_(0.8)
    assert layer().positive.equal(layer.train()().positive)
    assert not torch.allclose(layer().positive, before)


def test_messages_without_w_are_tanh_of_the_bias():
    layer = make_layer(text_weights=False)
    assert set(layer.weight) == {V} and set(layer.bias) == EVERYTHING - TO_NEGATIVE  # negative nodes send no messages
    sent = {"visual": 0.9, "positive": 0.3, "negative": 0.6}
    expected = GRAPH.x_dict[P] + sum(a * torch.tanh(layer.bias[f"{s}_to_positive"]) for s, a in sent.items())
    for mode in (True, False):
        assert_close(layer.train(mode)().positive, expected)


# --- transfer to new classes


NEW = unit_features(7, WIDTH, seed=20), unit_features(7, WIDTH, seed=21)  # their positive and negative text


def moved_adapter(**values) -> HeGraphModel:
    """An adapter of five classes whose every parameter has moved from where it started."""
    nodes = [unit_features(5, WIDTH, seed=seed) for seed in range(3)]
    keys, labels = unit_features(10, WIDTH, seed=9), torch.arange(5).repeat(2)
    model = HeGraphModel(build_graph(*nodes), keys, labels, 100.0, ModelOptions(**values))
    generator = torch.Generator().manual_seed(4)
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.mark.parametrize(("variant", "paths"), [
    ("full", ("BETA_PN", "ALPHA_PP", "ALPHA_NP")), ("T-N", ("BETA_PN", "ALPHA_NP")), ("T-P", ["ALPHA_PP"]),
])  # fmt: skip
def test_transfer_uses_text_nodes_without_bias(variant, paths):
    model, in_testing = moved_adapter(variant=variant, metapath=METAPATH), METAPATH | {"ALPHA_NP": 0.25}
    expected = method(dict(zip((P, N), NEW)), model.layers, {}, {key: in_testing[key] for key in paths}).positive
    found = TransferableAdapter.of(model).class_features(*NEW)
    assert not found.requires_grad
    assert_close(found, expected.detach(), atol=1e-6, rtol=1e-5)
    with torch.no_grad():
        for bias in model.layers.bias.values():
            bias += 1.0
    assert torch.equal(TransferableAdapter.of(model).class_features(*NEW), found)


def test_transfer_keeps_learned_metapath_weights():
    model = moved_adapter(learn_metapath=True)
    before = TransferableAdapter.of(model).class_features(*NEW)
    with torch.no_grad():
        model.layers.metapath["positive_to_positive"] += 0.5
    assert not torch.allclose(TransferableAdapter.of(model).class_features(*NEW), before)


@pytest.mark.parametrize("values", [{"text_weights": False}, {"text_weights": True}, {"variant": "training_free"}])
def test_transfer_adds_the_closed_form_head(values):
    model = moved_adapter(closed_form=ClosedFormOptions(kappa=3.0, omega=0.2), **values)
    adapter, queries = TransferableAdapter.of(model), unit_features(6, WIDTH, seed=30)
    text = 50.0 * queries @ F.normalize(adapter.class_features(*NEW), dim=-1).t()
    messages = model.closed_form.for_new_classes().logits(queries, NEW[0])
    found = adapter.logits(queries, *NEW, 50.0)
    assert_close(found, text + 0.05 * 50.0 * messages, rtol=1e-4, atol=1e-4)
    if values != {"text_weights": True}:  # biases stay behind, and there is no W
        assert adapter.class_features(*NEW).equal(NEW[0])
