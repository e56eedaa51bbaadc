"""The graph: relations, degrees, prototypes. Expected numbers are worked out by hand from method.md's table."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from trainers.hegraph.method import graph as module
from trainers.hegraph.method.graph import Edges, build_graph, class_prototypes
from trainers.hegraph.method.relations import NODE_TYPES, RELATIONS
from trainers.hegraph.utils.errors import UserError

# Off the diagonal every relation is the cosine; on it, by the table of edges:
DIAGONAL_SIGN = {
    ("positive", "to", "positive"): 0,
    ("visual", "to", "positive"): +1,
    ("negative", "to", "positive"): -1,
    ("positive", "to", "negative"): -1,
    ("visual", "to", "negative"): -1,
    ("visual", "to", "visual"): 0,
}


@pytest.fixture
def graph(unit_features):
    return build_graph(unit_features(6, 4, seed=1), unit_features(6, 4, seed=2), unit_features(6, 4, seed=3))


def test_two_classes_by_hand():
    # In the plane, at these angles; a cosine is that of the difference of two angles
    positive, negative, visual = (torch.tensor([[1.0, 0.0], [0.0, 1.0]]), None, None)
    negative = torch.tensor([[0.6, 0.8], [-0.8, 0.6]])
    visual = torch.tensor([[0.8, 0.6], [0.6, 0.8]])
    relations = build_graph(positive, negative, visual).edge_weight_dict
    expected = {  # rows are targets, columns sources
        ("positive", "to", "positive"): [[0.0, 0.0], [0.0, 0.0]],
        ("visual", "to", "positive"): [[0.8, 0.6], [0.6, 0.8]],
        ("negative", "to", "positive"): [[-0.6, -0.8], [0.8, -0.6]],
        ("positive", "to", "negative"): [[-0.6, 0.8], [-0.8, -0.6]],
        ("visual", "to", "negative"): [[-0.96, 1.0], [-0.28, -0.0]],
        ("visual", "to", "visual"): [[0.0, 0.96], [0.96, 0.0]],
    }
    assert set(relations) == set(expected)
    for edge_type, matrix in expected.items():
        assert_close(relations[edge_type], torch.tensor(matrix), msg=f"{edge_type}")


def test_there_are_three_node_types_and_six_relations(graph):
    assert set(graph.x_dict) == set(NODE_TYPES) == {"positive", "negative", "visual"}
    assert set(graph.edge_weight_dict) == {row.edge_type for row in RELATIONS} == set(DIAGONAL_SIGN)
    assert (graph.num_classes, graph.width) == (6, 4)


def test_weights_are_cosines_off_the_diagonal_and_signed_cosines_on_it(graph):
    for (source, _, target), sign in DIAGONAL_SIGN.items():
        cosine = graph.x_dict[target] @ graph.x_dict[source].t()
        expected = torch.where(torch.eye(6).bool(), sign * cosine, cosine)
        assert_close(graph.edge_weight_dict[source, "to", target], expected)


def test_nodes_are_normalised_the_inputs_left_alone_and_edges_carry_no_gradient(unit_features):
    features = (3 * unit_features(4, 5)).requires_grad_()
    before = features.detach().clone()
    graph = build_graph(features, 2 * features, features)
    assert features.equal(before)
    for x in graph.x_dict.values():
        assert_close(x.norm(dim=-1), torch.ones(4))
    assert not any(t.requires_grad for t in [*graph.x_dict.values(), *graph.edge_weight_dict.values()])


def test_nodes_of_different_shapes_are_an_error_that_lists_them(unit_features):
    with pytest.raises(ValueError, match=r"got \[\(3, 4\), \(2, 4\), \(3, 4\)\]"):
        build_graph(unit_features(3, 4), unit_features(2, 4), unit_features(3, 4))


# --- degrees


def test_degrees_are_row_sums_for_targets_and_column_sums_for_sources_of_absolute_weights():
    # The sources are the axes, so a target's entries are its edges. Row sums of absolute values 3, 3; column sums 1, 5
    edges = Edges(torch.tensor([[1.0, -2.0], [0.0, 3.0]]), torch.eye(2), diagonal=1.0)
    assert [degree.tolist() for degree in edges.degrees()] == [[[4.0], [4.0]], [[2.0], [6.0]]]  # and the self loop
    edges = Edges(edges.target, edges.source, diagonal=0.0)  # the diagonal counts as it is weighted
    assert edges.weight().tolist() == [[0.0, -2.0], [0.0, 0.0]]
    assert [degree.flatten().tolist() for degree in edges.degrees()] == [[3.0, 1.0], [1.0, 3.0]]


@pytest.mark.parametrize("size", [1, 4, 6])
def test_degrees_do_not_depend_on_how_many_rows_are_in_memory(graph, monkeypatch, size):
    monkeypatch.setattr(module, "ROWS", size)
    for row in RELATIONS:
        edges, weight = graph.edges(row), graph.edge_weight_dict[row.edge_type]
        assert_close(edges.weight(slice(2, 5)), weight[2:5])
        target, source = edges.degrees()
        assert_close(target, weight.abs().sum(dim=1, keepdim=True) + 1)
        assert_close(source, weight.abs().sum(dim=0).unsqueeze(1) + 1)


# --- prototypes


def test_class_prototypes_of_unequal_unsorted_classes_and_of_a_single_image():
    features = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.6, 0.8], [1.0, 0.0], [0.0, 1.0], [0.8, 0.6]])
    labels = torch.tensor([2, 0, 1, 2, 0, 0])
    # Class 0: (1,0), (0,1), (.8,.6), sum (1.8, 1.6); class 1: one image; class 2: (0,1), (1,0)
    expected = torch.tensor([[1.8, 1.6], [0.6, 0.8], [1.0, 1.0]])
    assert_close(class_prototypes(features, labels, ["a", "b", "c"]), expected / expected.norm(dim=1, keepdim=True))


@pytest.mark.parametrize(
    ("labels", "names", "said"),
    [([1, 2], ["cat", "dog", "ant", "eel"], "2 of 4 have none: cat, eel$"), ([0, 1], 3, "1 of 3 have none: 2$")],
)
def test_classes_without_an_image_are_named(labels, names, said):
    with pytest.raises(UserError, match=said):
        class_prototypes(torch.eye(2), torch.tensor(labels), names)


# --- as PyG sees it


def test_hetero_data_is_valid_and_its_edges_rebuild_the_matrices(graph):
    pytest.importorskip("torch_geometric", reason="torch_geometric is an extra")
    data = graph.to_hetero_data()
    assert data.validate()
    assert set(data.edge_types) == set(DIAGONAL_SIGN)
    for node_type in NODE_TYPES:
        assert_close(data[node_type].x, graph.x_dict[node_type])
    for edge_type, sign in DIAGONAL_SIGN.items():
        edges, rebuilt = data[edge_type], torch.zeros(6, 6)
        assert edges.edge_index.shape == (2, 6 * 5 if sign == 0 else 6 * 6)
        for (source, target), weight in zip(edges.edge_index.t().tolist(), edges.edge_weight):
            rebuilt[target, source] += weight
        assert_close(rebuilt, graph.edge_weight_dict[edge_type])


def test_edges_of_weight_zero_are_edges_still():
    pytest.importorskip("torch_geometric", reason="torch_geometric is an extra")
    data = build_graph(torch.eye(2), torch.eye(2), torch.eye(2)).to_hetero_data()
    assert data["visual", "to", "positive"].edge_index.shape == (2, 4)
