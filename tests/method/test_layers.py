"""Message passing against method.md, written out here as plain loops in double precision.

The loops know nothing of the package: relations, degrees and Eq. 1-6 are spelt out from the initial features.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from trainers.hegraph.method.graph import Adjacency, Edges, HeteroGraph, build_graph
from trainers.hegraph.method.layers import Adapted, HeteroMessagePassing
from trainers.hegraph.method.relations import RELATIONS

P, N, V = "positive", "negative", "visual"
PP, VP, NP, PN, VN, VV = (P, "to", P), (V, "to", P), (N, "to", P), (P, "to", N), (V, "to", N), (V, "to", V)
METAPATH = {PN: 0.7, VN: -0.4, PP: 0.3, VP: 0.9, NP: 0.6}  # large, so that every term counts
NP_TEST = 0.25
KEYS = {PN: "BETA_PN", VN: "BETA_VN", PP: "ALPHA_PP", VP: "ALPHA_VP", NP: "ALPHA_NP"}
WIDTH = 4


def make_graph(unit_features, num_classes: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> HeteroGraph:
    nodes = [unit_features(num_classes, WIDTH, seed=10 * seed + i).to(dtype) for i in range(3)]
    return build_graph(*nodes)


def by_key(metapath: dict[tuple, float]) -> dict[str, float]:
    """Meta-path weights as the layer takes them, with the one at test time."""
    return {KEYS[edge_type]: weight for edge_type, weight in metapath.items()} | {"ALPHA_NP_TEST": NP_TEST}


def make_layer(graph: HeteroGraph, seed: int = 5, **settings) -> HeteroMessagePassing:
    """A layer in the graph's precision whose weights and biases are all random and non-zero."""
    layer = HeteroMessagePassing(graph, by_key(settings.pop("metapath", METAPATH)), **settings)
    layer = layer.to(graph.x_dict[P].dtype)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if not name.startswith("metapath."):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / 2)
    return layer


# --- the method in plain loops


def cosine(a: list[float], b: list[float]) -> float:
    dot = sum(x * y for x, y in zip(a, b))
    return dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def relation(targets: list, sources: list, diagonal: float) -> list[list[float]]:
    """R[i][j] between target i and source j; `diagonal` is the factor on the cosine where i = j."""
    return [
        [cosine(target, source) * (diagonal if i == j else 1.0) for j, source in enumerate(sources)]
        for i, target in enumerate(targets)
    ]


def times(x: list[float], weight: list[list[float]]) -> list[float]:
    return [sum(x[a] * weight[a][c] for a in range(len(x))) for c in range(len(weight[0]))]


def coefficients(r: list[list[float]]) -> list[list[float]]:
    """r_ij / sqrt((deg_i + 1)(deg_j + 1))."""
    target = [sum(map(abs, row)) + 1 for row in r]
    source = [sum(map(abs, column)) + 1 for column in zip(*r)]
    return [[value / math.sqrt(target[i] * source[j]) for j, value in enumerate(row)] for i, row in enumerate(r)]


def message(r, x_target, x_source, weight, bias, self_loop=True) -> list[list[float]]:
    """m_i = tanh( x_i W / (deg_i + 1) + sum_j r_ij / sqrt((deg_i + 1)(deg_j + 1)) x_j W + b_i )."""
    num_targets, num_sources, width = len(r), len(r[0]), len(weight[0])
    target_degree = [sum(abs(r[i][j]) for j in range(num_sources)) for i in range(num_targets)]
    source_degree = [sum(abs(r[i][j]) for i in range(num_targets)) for j in range(num_sources)]
    sent = [times(x, weight) for x in x_source]
    out = []
    for i in range(num_targets):
        total = list(bias[i])
        if self_loop:
            own = times(x_target[i], weight)
            total = [total[c] + own[c] / (target_degree[i] + 1) for c in range(width)]
        for j in range(num_sources):
            coefficient = r[i][j] / math.sqrt((target_degree[i] + 1) * (source_degree[j] + 1))
            for c in range(width):
                total[c] += coefficient * sent[j][c]
        out.append([math.tanh(value) for value in total])
    return out


def plus(x: list, factor: float, y: list) -> list:
    return [[a + factor * b for a, b in zip(row, other)] for row, other in zip(x, y)]


def method(graph: HeteroGraph, layer: HeteroMessagePassing) -> tuple[list, list, list]:
    """Eq. 1-6: the positive nodes in training and at test time, and the visual biases."""
    p, n, v = (graph.x_dict[node_type].tolist() for node_type in (P, N, V))

    def send(edge_type, r, target, source, **kwargs):
        name = "_".join(edge_type)
        weight = layer.weight[edge_type[2]].tolist()
        bias = layer.bias[name].tolist() if name in layer.bias else [[0.0] * WIDTH] * len(target)
        return message(r, target, source, weight, bias, **kwargs)

    # Eq. 1-2: negative text nodes
    updated = plus(n, METAPATH[PN], send(PN, relation(n, p, -1.0), n, p))
    updated = plus(updated, METAPATH[VN], send(VN, relation(n, v, -1.0), n, v))
    # Eq. 3-4: positive text nodes; the updated negative nodes send, along edges of the initial ones
    positive = plus(p, METAPATH[PP], send(PP, relation(p, p, 0.0), p, p))
    positive = plus(positive, METAPATH[VP], send(VP, relation(p, v, 1.0), p, v))
    from_negative = send(NP, relation(p, n, -1.0), p, updated)
    in_training, at_test = plus(positive, METAPATH[NP], from_negative), plus(positive, NP_TEST, from_negative)
    # Eq. 5-6: one bias per class, no self term
    return in_training, at_test, send(VV, relation(v, v, 0.0), v, v, self_loop=False)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("num_classes", [2, 4, 5, 20])  # below, at and above d
def test_the_layer_is_the_method_in_training_and_in_evaluation(unit_features, num_classes, bias):
    graph = make_graph(unit_features, num_classes)
    layer = make_layer(graph, bias=bias)
    in_training, at_test, visual = (torch.tensor(x, dtype=torch.float64) for x in method(graph, layer))
    for positive, adapted in ((in_training, layer.train()()), (at_test, layer.eval()())):
        assert_close(adapted.positive, positive)
        assert_close(adapted.visual_bias, visual)


@pytest.mark.parametrize("num_classes", [1, WIDTH, WIDTH + 1, 20])
@pytest.mark.parametrize("diagonal", [0.0, -1.0])
def test_an_adjacency_multiplies_by_the_coefficients_with_and_without_a_matrix(unit_features, diagonal, num_classes):
    target, source, x = (unit_features(num_classes, WIDTH, seed=i).double() for i in range(3))
    r = relation(target.tolist(), source.tolist(), diagonal)
    adjacency = Adjacency(Edges(target, source, diagonal))
    kept = {"matrix"} if num_classes <= WIDTH else {"left", "right", "diagonal"}
    assert {name for name, _ in adjacency.named_buffers()} == {"own"} | kept
    # Unit features are made in float32, and a few 1e-8 off their norm
    assert_close(adjacency(x), torch.tensor(coefficients(r), dtype=torch.float64) @ x, rtol=0, atol=1e-6)
    own = torch.tensor([[1 / (sum(map(abs, row)) + 1)] for row in r], dtype=torch.float64)
    assert_close(adjacency.own, own * target, rtol=0, atol=1e-6)
    assert adjacency.state_dict() == {}


def test_no_matrix_of_all_pairs_of_classes_is_kept_where_there_are_more_classes_than_features(unit_features):
    layer = make_layer(make_graph(unit_features, 50))
    assert max(buffer.numel() for _, buffer in layer.named_buffers()) < 50 * 50


# --- the PyG reference


def reference_conv(self_loop: bool = True):
    pytest.importorskip("torch_geometric", reason="torch_geometric is an extra")
    from trainers.hegraph.method.conv import RelationConv

    return RelationConv(self_loop)


def reference(graph: HeteroGraph, layer: HeteroMessagePassing) -> Adapted:
    """Eq. 1-6 over the edges of the graph."""
    data = graph.to_hetero_data()

    def send(edge_type, x_source=None, self_loop=True):
        source, _, target = edge_type
        edges = data[edge_type]
        nodes = (data[source].x if x_source is None else x_source, data[target].x)
        weight, bias = layer.weight[target], layer.bias["_".join(edge_type)]
        return reference_conv(self_loop)(nodes, edges.edge_index, edges.edge_weight, weight, bias)

    from_negative = METAPATH[NP] if layer.training else NP_TEST
    updated = data[N].x + METAPATH[PN] * send(PN) + METAPATH[VN] * send(VN)
    positive = data[P].x + METAPATH[PP] * send(PP) + METAPATH[VP] * send(VP) + from_negative * send(NP, updated)
    return Adapted(positive, send(VV, self_loop=False))


def gradients(adapted: Adapted, layer: HeteroMessagePassing) -> dict[str, Tensor]:
    """Of a sum that weights every entry differently."""
    generator = torch.Generator().manual_seed(11)
    factors = [torch.randn(x.shape, generator=generator).to(x.dtype) for x in adapted]
    layer.zero_grad()
    sum((factor * x).sum() for factor, x in zip(factors, adapted)).backward()
    return {name: parameter.grad.clone() for name, parameter in layer.named_parameters()}


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-8), (torch.float32, 1e-5)], ids=str)
@pytest.mark.parametrize("num_classes", [2, WIDTH, WIDTH + 1, 20])
def test_the_layer_and_its_gradients_equal_the_pyg_reference(unit_features, num_classes, dtype, tolerance):
    graph = make_graph(unit_features, num_classes, dtype, seed=1)
    layer = make_layer(graph)
    reference_conv()
    for mode in (True, False):
        layer.train(mode)
        fast, slow = layer(), reference(graph, layer)
        for ours, theirs in zip(fast, slow):
            assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
        ours, theirs = gradients(fast, layer), gradients(slow, layer)
        for name, gradient in theirs.items():
            assert_close(ours[name], gradient, rtol=tolerance, atol=tolerance, msg=name)


@pytest.mark.parametrize("self_loop", [True, False])
@pytest.mark.parametrize(("num_sources", "num_targets"), [(5, 3), (3, 5)])
def test_the_pyg_reference_takes_other_numbers_of_sources_than_targets_in_any_order_of_edges(
    unit_features, num_sources, num_targets, self_loop
):
    generator = torch.Generator().manual_seed(3)
    matrix = torch.randn(num_targets, num_sources, generator=generator)
    matrix[torch.rand(matrix.shape, generator=generator) < 0.4] = 0.0
    matrix[-1] = 0.0  # an isolated target
    target, source = matrix.nonzero(as_tuple=True)
    order = torch.randperm(len(target), generator=generator)
    edges = torch.stack([source, target])[:, order], matrix[target, source][order]
    x_source, x_target = unit_features(num_sources, WIDTH, seed=1), unit_features(num_targets, WIDTH, seed=2)
    weight, bias = unit_features(WIDTH, WIDTH, seed=3), unit_features(num_targets, WIDTH, seed=4)
    for b in (bias, None):
        zeros = torch.zeros(num_targets, WIDTH)
        arguments = [t.tolist() for t in (matrix, x_target, x_source, weight, zeros if b is None else b)]
        out = reference_conv(self_loop)((x_source, x_target), *edges, weight, b)
        assert_close(out, torch.tensor(message(*arguments, self_loop)), rtol=0, atol=1e-5)


# --- parameters

EVERYTHING = {row.name for row in RELATIONS}
TO_NEGATIVE = {"positive_to_negative", "visual_to_negative"}


@pytest.mark.parametrize(
    ("absent", "visual", "weights", "biases"),
    [
        ((), True, {P, N, V}, EVERYTHING),
        ((), False, {P, N}, EVERYTHING - {"visual_to_visual"}),
        # T-N: no messages from positive and visual to positive nodes
        ((PP, VP), False, {P, N}, TO_NEGATIVE | {"negative_to_positive"}),
        # T-P: without messages from them, the negative nodes are not updated either
        ((NP,), False, {P}, {"positive_to_positive", "visual_to_positive"}),
        ((PN,), True, {P, N, V}, EVERYTHING - {"positive_to_negative"}),
        ((PN, VN), False, {P}, {"positive_to_positive", "visual_to_positive", "negative_to_positive"}),
        ((PN, VN, PP, VP, NP), True, {V}, {"visual_to_visual"}),
    ],
    ids=["full", "T", "T-N", "T-P", "no p->n", "negatives not updated", "visual only"],
)
def test_a_relation_of_weight_zero_owns_no_parameter_and_every_parameter_gets_a_gradient(
    unit_features, absent, visual, weights, biases
):
    metapath = METAPATH | dict.fromkeys(absent, 0.0)
    graph = make_graph(unit_features, 5)
    layer = make_layer(graph, metapath=metapath, visual=visual, learn_metapath=True)
    assert set(layer.weight) == weights
    assert set(layer.bias) == biases
    assert set(layer.metapath) == biases - {"visual_to_visual"}
    adapted = layer()
    assert (adapted.visual_bias is not None) == visual
    sum(x.square().sum() for x in adapted if x is not None and x.requires_grad).backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    if weights == {V}:
        assert_close(adapted.positive, graph.x_dict[P])


def test_text_and_visual_steps_share_no_parameter(unit_features):
    layer = make_layer(make_graph(unit_features, 5))
    layer().positive.square().sum().backward()
    untouched = {name for name, parameter in layer.named_parameters() if parameter.grad is None}
    assert untouched == {"bias.visual_to_visual", "weight.visual"}


def test_the_number_of_parameters_and_a_state_dict_of_parameters_alone(unit_features):
    graph = make_graph(unit_features, 7)
    layer = make_layer(graph, learn_metapath=True)
    assert sum(p.numel() for p in layer.parameters()) == 3 * WIDTH**2 + 6 * 7 * WIDTH + 5
    assert sum(p.numel() for p in make_layer(graph, bias=False).parameters()) == 3 * WIDTH**2
    assert set(layer.state_dict()) == {name for name, _ in layer.named_parameters()}
    fresh = make_layer(graph, seed=2, learn_metapath=True)
    assert not torch.allclose(layer().positive, fresh().positive)
    fresh.load_state_dict(layer.state_dict())
    for restored, kept in zip(fresh(), layer()):
        assert restored.equal(kept)


@pytest.mark.parametrize("weight_init", ["identity", "xavier", "zero"])
def test_how_parameters_start(unit_features, weight_init):
    torch.manual_seed(0)
    layer = HeteroMessagePassing(make_graph(unit_features, 5), by_key(METAPATH), weight_init=weight_init)
    assert all(bias.eq(0).all() for bias in layer.bias.values())
    for weight in layer.weight.values():
        if weight_init == "identity":
            assert weight.equal(torch.eye(WIDTH))
        elif weight_init == "zero":
            assert weight.eq(0).all()
        else:  # Glorot and Bengio's uniform bound, sqrt(6 / (fan_in + fan_out))
            bound = math.sqrt(6 / (2 * WIDTH))
            assert bound / 2 < weight.abs().max() <= bound


def test_learned_metapath_weights_start_at_the_given_values_and_hold_in_evaluation(unit_features):
    graph = make_graph(unit_features, 5)
    layer = make_layer(graph, learn_metapath=True)
    started = {name: weight.item() for name, weight in layer.metapath.items()}
    assert started == pytest.approx({"_".join(edge_type): weight for edge_type, weight in METAPATH.items()})
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
    sent = {edge_type: torch.tanh(layer.bias["_".join(edge_type)]) for edge_type in (PP, VP, NP)}
    expected = graph.x_dict[P] + sum(METAPATH[edge_type] * message for edge_type, message in sent.items())
    for mode in (True, False):
        assert_close(layer.train(mode)().positive, expected)
