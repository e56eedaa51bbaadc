"""The graph: relations, degrees, prototypes. Expected numbers are worked out by hand from method.md's table."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from trainers.hegraph.method import adjacency as module
from trainers.hegraph.method.adjacency import Relation
from trainers.hegraph.method.graph import build_graph, class_prototypes
from trainers.hegraph.method.relations import NODE_TYPES, RELATIONS, EdgeType, RelationType
from trainers.hegraph.utils.errors import UserError

# Off the diagonal every relation is the cosine; on it, by the table of edges:
EDGE_TYPES = {relation.edge_type for relation in RELATIONS}

DIAGONAL_SIGN = {
    ("positive", "to", "positive"): 0,
    ("visual", "to", "positive"): +1,
    ("negative", "to", "positive"): -1,
    ("positive", "to", "negative"): -1,
    ("visual", "to", "negative"): -1,
    ("visual", "to", "visual"): 0,
}


def row_of(edge_type: EdgeType) -> RelationType:
    [relation] = [relation for relation in RELATIONS if relation.edge_type == edge_type]
    return relation


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
    assert set(graph.edge_weight_dict) == EDGE_TYPES == set(DIAGONAL_SIGN)
    assert (graph.num_classes, graph.width) == (6, 4)


@pytest.mark.parametrize("edge_type", DIAGONAL_SIGN, ids="_".join)
def test_weights_are_cosines_off_the_diagonal_and_signed_cosines_on_it(graph, edge_type):
    source, _, target = edge_type
    for i in range(6):
        for j in range(6):
            cosine = torch.dot(graph.x_dict[target][i], graph.x_dict[source][j])
            sign = DIAGONAL_SIGN[edge_type] if i == j else 1
            assert_close(graph.edge_weight_dict[edge_type][i, j], sign * cosine)


def test_nodes_are_normalised_and_the_inputs_left_alone(unit_features):
    features = 3 * unit_features(4, 5)
    before = features.clone()
    graph = build_graph(features, 2 * features, features)
    assert_close(features, before, rtol=0, atol=0)
    for x in graph.x_dict.values():
        assert_close(x.norm(dim=-1), torch.ones(4))


def test_edges_carry_no_gradient(unit_features):
    features = unit_features(3, 4).requires_grad_()
    graph = build_graph(features, features, features)
    assert not any(t.requires_grad for t in [*graph.x_dict.values(), *graph.edge_weight_dict.values()])


def test_nodes_of_different_shapes_are_an_error_that_lists_them(unit_features):
    with pytest.raises(ValueError, match=r"one shape \[K, d\], got \[\(3, 4\), \(2, 4\), \(3, 4\)\]"):
        build_graph(unit_features(3, 4), unit_features(2, 4), unit_features(3, 4))


# --- degrees


def relation_of(weight: list[list[float]]) -> Relation:
    """A relation with that matrix: the sources are the axes, so a target's entries are its products with them."""
    return Relation(torch.tensor(weight), torch.eye(len(weight)), diagonal=1.0)


def test_degrees_are_row_sums_for_targets_and_column_sums_for_sources_of_absolute_weights():
    relation = relation_of([[1.0, -2.0], [0.0, 3.0]])
    # Row sums of absolute values 3, 3; column sums 1, 5. And the self loop.
    assert [degree.tolist() for degree in relation.degrees()] == [[[4.0], [4.0]], [[2.0], [6.0]]]


def test_the_diagonal_counts_as_it_is_weighted():
    relation = Relation(torch.tensor([[1.0, -2.0], [0.0, 3.0]]), torch.eye(2), diagonal=0.0)
    assert relation.weight().tolist() == [[0.0, -2.0], [0.0, 0.0]]
    assert [degree.flatten().tolist() for degree in relation.degrees()] == [[3.0, 1.0], [1.0, 3.0]]
    assert relation.diagonal_cosine().tolist() == [[1.0], [3.0]]


def test_a_node_without_edges_has_its_self_loop_alone():
    assert [degree.tolist() for degree in relation_of([[0.0, 0.0], [0.0, 0.0]]).degrees()] == [[[1.0], [1.0]]] * 2


@pytest.mark.parametrize("rows", [slice(0, 2), slice(2, 5), slice(4, 9)], ids=["first", "middle", "beyond the last"])
@pytest.mark.parametrize("edge_type", DIAGONAL_SIGN, ids="_".join)
def test_rows_of_a_relation_are_those_of_the_matrix(graph, edge_type, rows):
    assert_close(graph.relation(row_of(edge_type)).weight(rows), graph.edge_weight_dict[edge_type][rows])


@pytest.mark.parametrize("size", [1, 4, 5, 6])
@pytest.mark.parametrize("edge_type", DIAGONAL_SIGN, ids="_".join)
def test_degrees_do_not_depend_on_how_many_rows_are_in_memory(graph, monkeypatch, edge_type, size):
    monkeypatch.setattr(module, "ROWS", size)
    magnitude = graph.edge_weight_dict[edge_type].abs()
    target, source = graph.relation(row_of(edge_type)).degrees()
    assert_close(target, magnitude.sum(dim=1, keepdim=True) + 1)
    assert_close(source, magnitude.sum(dim=0).unsqueeze(1) + 1)


# --- prototypes


def test_class_prototypes_of_unequal_unsorted_classes_and_of_a_single_image():
    features = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.6, 0.8], [1.0, 0.0], [0.0, 1.0], [0.8, 0.6]])
    labels = torch.tensor([2, 0, 1, 2, 0, 0])
    # Class 0: (1,0), (0,1), (.8,.6), sum (1.8, 1.6); class 1: one image; class 2: (0,1), (1,0)
    expected = torch.tensor([[1.8, 1.6], [0.6, 0.8], [1.0, 1.0]])
    assert_close(class_prototypes(features, labels, ["a", "b", "c"]), expected / expected.norm(dim=1, keepdim=True))


def test_class_prototypes_do_not_depend_on_the_order_of_the_images(unit_features):
    features, labels = unit_features(20, 4), torch.arange(20) % 3
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    assert_close(class_prototypes(features[order], labels[order], 3), class_prototypes(features, labels, 3))


def test_classes_without_an_image_are_named():
    with pytest.raises(ValueError, match=r"2 of 4 have none: cat, eel$"):
        class_prototypes(torch.eye(2), torch.tensor([1, 2]), ["cat", "dog", "ant", "eel"])


def test_a_last_class_without_an_image_is_noticed_too():
    with pytest.raises(ValueError, match=r"1 of 3 have none: 2$"):
        class_prototypes(torch.eye(2), torch.tensor([0, 1]), 3)


def test_a_class_without_an_image_is_a_users_mistake():
    with pytest.raises(UserError, match="cat"):
        class_prototypes(torch.eye(2), torch.tensor([1, 2]), ["cat", "dog", "ant"])


# --- as PyG sees it


def test_hetero_data_has_all_nodes_and_relations_and_is_valid(graph):
    data = graph.to_hetero_data()
    assert data.validate()
    assert set(data.node_types) == set(NODE_TYPES)
    assert set(data.edge_types) == EDGE_TYPES
    for node_type in NODE_TYPES:
        assert_close(data[node_type].x, graph.x_dict[node_type])


@pytest.mark.parametrize("edge_type", DIAGONAL_SIGN, ids="_".join)
def test_the_edges_of_hetero_data_rebuild_the_matrix(graph, edge_type):
    data = graph.to_hetero_data()[edge_type]
    num_edges = 6 * 5 if DIAGONAL_SIGN[edge_type] == 0 else 6 * 6
    assert data.edge_index.shape == (2, num_edges)
    rebuilt = torch.zeros(6, 6)
    for (source, target), weight in zip(data.edge_index.t().tolist(), data.edge_weight):
        rebuilt[target, source] += weight
    assert_close(rebuilt, graph.edge_weight_dict[edge_type])


def test_edges_of_weight_zero_are_edges_still():
    data = build_graph(torch.eye(2), torch.eye(2), torch.eye(2)).to_hetero_data()
    assert data["visual", "to", "positive"].edge_index.shape == (2, 4)
