"""Message passing against method.md, written out here as plain loops in double precision.

The loops know nothing of the package: relations, degrees and Eq. 1-6 are spelt out from the initial features.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from trainers.hegraph.method.adjacency import Adjacency, Relation
from trainers.hegraph.method.conv import RelationConv
from trainers.hegraph.method.graph import HeteroGraph, build_graph
from trainers.hegraph.method.layers import ACTIVATIONS, Adapted, HeteroMessagePassing
from trainers.hegraph.method.relations import RELATIONS

P, N, V = "positive", "negative", "visual"
PP, VP, NP, PN, VN, VV = (P, "to", P), (V, "to", P), (N, "to", P), (P, "to", N), (V, "to", N), (V, "to", V)
METAPATH = {PN: 0.7, VN: -0.4, PP: 0.3, VP: 0.9, NP: 0.6}  # large, so that every term counts
NP_TEST = 0.25
KEYS = {PN: "BETA_PN", VN: "BETA_VN", PP: "ALPHA_PP", VP: "ALPHA_VP", NP: "ALPHA_NP"}
WIDTH = 4

ACTIVATION_LOOPS = {
    "tanh": math.tanh,
    "relu": lambda value: max(value, 0.0),
    "identity": lambda value: value,
}


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


def message(r, x_target, x_source, weight, bias, activation, self_loop=True) -> list[list[float]]:
    """m_i = act( x_i W / (deg_i + 1) + sum_j r_ij / sqrt((deg_i + 1)(deg_j + 1)) x_j W + b_i )."""
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
        out.append([activation(value) for value in total])
    return out


def plus(x: list, factor: float, y: list) -> list:
    return [[a + factor * b for a, b in zip(row, other)] for row, other in zip(x, y)]


def method(graph: HeteroGraph, layer: HeteroMessagePassing, activation: str) -> tuple[list, list, list]:
    """Eq. 1-6: the positive nodes in training and at test time, and the visual biases."""
    p, n, v = (graph.x_dict[node_type].tolist() for node_type in (P, N, V))
    act = ACTIVATION_LOOPS[activation]

    def send(edge_type, r, target, source, **kwargs):
        name = "_".join(edge_type)
        weight = layer.weight[name if name in layer.weight else edge_type[2]].tolist()
        bias = layer.bias[name].tolist() if name in layer.bias else [[0.0] * WIDTH] * len(target)
        return message(r, target, source, weight, bias, act, **kwargs)

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
@pytest.mark.parametrize("weight_per", ["target", "relation"])
@pytest.mark.parametrize("activation", ACTIVATION_LOOPS)
@pytest.mark.parametrize("num_classes", [2, 3, 7, 20, 50])
def test_the_dense_path_is_the_method_in_training_and_in_evaluation(
    unit_features, num_classes, activation, weight_per, bias
):
    graph = make_graph(unit_features, num_classes)
    layer = make_layer(graph, activation=activation, weight_per=weight_per, bias=bias)
    in_training, at_test, visual = (torch.tensor(x, dtype=torch.float64) for x in method(graph, layer, activation))
    for positive, adapted in ((in_training, layer.train()()), (at_test, layer.eval()())):
        assert_close(adapted.positive, positive)
        assert_close(adapted.visual_bias, visual)


def test_the_loops_cover_every_activation():
    assert set(ACTIVATION_LOOPS) == set(ACTIVATIONS)


# --- one relation, as a matrix and as factors


@pytest.mark.parametrize("num_classes", [1, 3, WIDTH, WIDTH + 1, 20])
@pytest.mark.parametrize("diagonal", [0.0, 1.0, -1.0])
def test_an_adjacency_multiplies_by_the_coefficients_with_and_without_a_matrix(unit_features, diagonal, num_classes):
    target, source, x = (unit_features(num_classes, WIDTH, seed=i).double() for i in range(3))
    r = relation(target.tolist(), source.tolist(), diagonal)
    adjacency = Adjacency(Relation(target, source, diagonal))
    assert {name for name, _ in adjacency.named_buffers()} == (
        {"matrix"} if num_classes <= WIDTH else {"left", "right", "diagonal"}
    )
    # Unit features are made in float32, and a few 1e-8 off their norm
    assert_close(adjacency(x), torch.tensor(coefficients(r), dtype=torch.float64) @ x, rtol=0, atol=1e-6)
    own = torch.tensor([[1 / (sum(map(abs, row)) + 1)] for row in r], dtype=torch.float64)
    assert_close(adjacency.self_coefficient, own, rtol=0, atol=1e-6)
    assert adjacency.state_dict() == {}


# --- the PyG reference


def reference(graph: HeteroGraph, layer: HeteroMessagePassing, activation: str) -> Adapted:
    """Eq. 1-6 over the edges of the graph."""
    data = graph.to_hetero_data()

    def send(edge_type, x_source=None, self_loop=True):
        source, _, target = edge_type
        name = "_".join(edge_type)
        x_source = data[source].x if x_source is None else x_source
        return RelationConv(activation, self_loop)(
            (x_source, data[target].x),
            data[edge_type].edge_index,
            data[edge_type].edge_weight,
            layer.weight[target if layer.weight_per == "target" else name],
            layer.bias[name],
        )

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
@pytest.mark.parametrize("weight_per", ["target", "relation"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("num_classes", [2, 3, WIDTH, WIDTH + 1, 20])  # below, at and above d
def test_the_fast_path_and_its_gradients_equal_the_pyg_reference(
    unit_features, num_classes, activation, weight_per, dtype, tolerance
):
    graph = make_graph(unit_features, num_classes, dtype, seed=1)
    layer = make_layer(graph, activation=activation, weight_per=weight_per)
    for mode in (True, False):
        layer.train(mode)
        fast, slow = layer(), reference(graph, layer, activation)
        for ours, theirs in zip(fast, slow):
            assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
        ours, theirs = gradients(fast, layer), gradients(slow, layer)
        for name, gradient in theirs.items():
            assert_close(ours[name], gradient, rtol=tolerance, atol=tolerance, msg=name)


def test_no_matrix_of_all_pairs_of_classes_is_kept_where_there_are_more_classes_than_features(unit_features):
    layer = make_layer(make_graph(unit_features, 50))
    assert max(buffer.numel() for _, buffer in layer.named_buffers()) < 50 * 50


def random_bipartite(num_sources: int, num_targets: int) -> tuple[Tensor, Tensor, Tensor]:
    """A sparse signed relation matrix `[targets, sources]` with an isolated target, and its edges."""
    generator = torch.Generator().manual_seed(3)
    matrix = torch.randn(num_targets, num_sources, generator=generator)
    matrix[torch.rand(matrix.shape, generator=generator) < 0.4] = 0.0
    matrix[-1] = 0.0
    target, source = matrix.nonzero(as_tuple=True)
    return matrix, torch.stack([source, target]), matrix[target, source]


@pytest.mark.parametrize("self_loop", [True, False])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("num_sources", "num_targets"), [(5, 3), (3, 5), (4, 4)])
def test_the_pyg_reference_takes_other_numbers_of_sources_than_targets(
    unit_features, num_sources, num_targets, activation, self_loop
):
    matrix, edge_index, edge_weight = random_bipartite(num_sources, num_targets)
    x_source, x_target = unit_features(num_sources, WIDTH, seed=1), unit_features(num_targets, WIDTH, seed=2)
    weight, bias = unit_features(WIDTH, WIDTH, seed=3), unit_features(num_targets, WIDTH, seed=4)
    conv = RelationConv(activation, self_loop)
    for b in (bias, None):
        zeros = torch.zeros(num_targets, WIDTH)
        arguments = [t.tolist() for t in (matrix, x_target, x_source, weight, zeros if b is None else b)]
        expected = message(*arguments, ACTIVATION_LOOPS[activation], self_loop)
        out = conv((x_source, x_target), edge_index, edge_weight, weight, b)
        assert_close(out, torch.tensor(expected), rtol=0, atol=1e-5)


def test_the_order_of_edges_does_not_matter(unit_features):
    _, edge_index, edge_weight = random_bipartite(5, 3)
    x, weight = (unit_features(5, WIDTH), unit_features(3, WIDTH)), unit_features(WIDTH, WIDTH)
    order = torch.randperm(len(edge_weight), generator=torch.Generator().manual_seed(0))
    conv = RelationConv()
    shuffled = conv(x, edge_index[:, order], edge_weight[order], weight)
    assert_close(shuffled, conv(x, edge_index, edge_weight, weight))


# --- parameters

EVERYTHING = {relation.name for relation in RELATIONS}


@pytest.mark.parametrize(
    ("absent", "visual", "weights", "biases"),
    [
        ((), True, {P, N, V}, EVERYTHING),
        ((), False, {P, N}, EVERYTHING - {"visual_to_visual"}),
        # T-N: no messages from positive and visual to positive nodes
        ((PP, VP), False, {P, N}, {"positive_to_negative", "visual_to_negative", "negative_to_positive"}),
        # T-P: without messages from them, the negative nodes are not updated either
        ((NP,), False, {P}, {"positive_to_positive", "visual_to_positive"}),
        ((PN,), True, {P, N, V}, EVERYTHING - {"positive_to_negative"}),
        ((PN, VN), False, {P}, {"positive_to_positive", "visual_to_positive", "negative_to_positive"}),
        ((PN, VN, PP, VP, NP), True, {V}, {"visual_to_visual"}),
    ],
    ids=["full", "T", "T-N", "T-P", "no p->n", "negatives not updated", "visual only"],
)
@pytest.mark.parametrize("weight_per", ["target", "relation"])
def test_a_relation_of_weight_zero_owns_no_parameter(unit_features, weight_per, absent, visual, weights, biases):
    metapath = METAPATH | dict.fromkeys(absent, 0.0)
    layer = make_layer(make_graph(unit_features, 5), metapath=metapath, visual=visual, weight_per=weight_per)
    assert set(layer.weight) == (weights if weight_per == "target" else biases)
    assert set(layer.bias) == biases
    assert (layer().visual_bias is not None) == visual


@pytest.mark.parametrize("absent", [(), (PP, VP), (NP,), (PN, VN)], ids=["T", "T-N", "T-P", "negatives not updated"])
@pytest.mark.parametrize("weight_per", ["target", "relation"])
def test_every_parameter_gets_a_gradient(unit_features, weight_per, absent):
    metapath = METAPATH | dict.fromkeys(absent, 0.0)
    graph = make_graph(unit_features, 5)
    layer = make_layer(graph, metapath=metapath, weight_per=weight_per, learn_metapath=True)
    adapted = layer()
    (adapted.positive.square().sum() + adapted.visual_bias.square().sum()).backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("weight_per", ["target", "relation"])
def test_text_and_visual_steps_share_no_parameter(unit_features, weight_per):
    layer = make_layer(make_graph(unit_features, 5), weight_per=weight_per)
    layer().positive.square().sum().backward()
    untouched = {name for name, parameter in layer.named_parameters() if parameter.grad is None}
    assert untouched == {
        "bias.visual_to_visual",
        "weight.visual" if weight_per == "target" else "weight.visual_to_visual",
    }


def test_a_relation_of_weight_zero_sends_nothing(unit_features):
    graph = make_graph(unit_features, 5)
    layer = make_layer(graph, metapath=dict.fromkeys(METAPATH, 0.0))
    assert_close(layer().positive, graph.x_dict[P])


@pytest.mark.parametrize(
    ("weight_per", "matrices"), [("target", 3), ("relation", 6)]
)  # method.md: three matrices as the equations read, or one per relation
def test_the_number_of_parameters(unit_features, weight_per, matrices):
    layer = make_layer(make_graph(unit_features, 7), weight_per=weight_per)
    assert sum(p.numel() for p in layer.parameters()) == matrices * WIDTH**2 + 6 * 7 * WIDTH
    layer = make_layer(make_graph(unit_features, 7), weight_per=weight_per, bias=False)
    assert sum(p.numel() for p in layer.parameters()) == matrices * WIDTH**2


@pytest.mark.parametrize("learn_metapath", [False, True])
def test_the_state_dict_holds_parameters_only(unit_features, learn_metapath):
    layer = make_layer(make_graph(unit_features, 5), learn_metapath=learn_metapath)
    assert set(layer.state_dict()) == {name for name, _ in layer.named_parameters()}


def test_a_state_dict_restores_the_output(unit_features):
    graph = make_graph(unit_features, 5)
    trained, fresh = make_layer(graph, seed=1), make_layer(graph, seed=2)
    assert not torch.allclose(trained().positive, fresh().positive)
    fresh.load_state_dict(trained.state_dict())
    assert_close(fresh().positive, trained().positive, rtol=0, atol=0)
    assert_close(fresh().visual_bias, trained().visual_bias, rtol=0, atol=0)


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


def test_with_identity_weights_and_no_activation_the_visual_bias_is_the_aggregate(unit_features):
    graph = make_graph(unit_features, 5)
    layer = HeteroMessagePassing(graph, by_key(METAPATH), activation="identity").double()
    nodes = graph.x_dict[V].tolist()
    adjacency = torch.tensor(coefficients(relation(nodes, nodes, 0.0)), dtype=torch.float64)
    assert_close(layer().visual_bias, adjacency @ graph.x_dict[V])


# --- learnable meta-path weights


def test_learned_metapath_weights_are_parameters_that_start_at_the_given_values(unit_features):
    graph = make_graph(unit_features, 5)
    layer = make_layer(graph, learn_metapath=True)
    started = {name: weight.item() for name, weight in layer.metapath.items()}
    assert started == pytest.approx({"_".join(edge_type): weight for edge_type, weight in METAPATH.items()})
    assert all(weight.requires_grad for weight in layer.metapath.values())
    assert_close(layer().positive, make_layer(graph)().positive, rtol=0, atol=1e-6)  # made from float32


def test_metapath_weights_are_fixed_by_default(unit_features):
    layer = make_layer(make_graph(unit_features, 5))
    assert not any("metapath" in name for name, _ in layer.named_parameters())


def test_evaluation_uses_the_learned_weights(unit_features):
    layer = make_layer(make_graph(unit_features, 5), learn_metapath=True)
    with torch.no_grad():
        layer.metapath["negative_to_positive"].fill_(0.8)
    trained, evaluated = layer.train()().positive, layer.eval()().positive
    assert_close(evaluated, trained, rtol=0, atol=0)
    with torch.no_grad():
        layer.metapath["negative_to_positive"].fill_(0.5)
    assert not torch.allclose(layer().positive, evaluated)


def test_fixed_weights_differ_between_training_and_evaluation(unit_features):
    layer = make_layer(make_graph(unit_features, 5))
    assert not torch.allclose(layer.train()().positive, layer.eval()().positive)
