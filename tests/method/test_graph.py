"""The graph: relations, degrees, prototypes. Expected numbers are worked out by hand from method.md's table."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from trainers.hegraph.method import graph as module
from trainers.hegraph.method.graph import HeteroGraph, build_graph, class_prototypes
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


def test_two_classes_by_hand_whatever_the_norm_of_their_features():
    features = (3 * NODES).requires_grad_()
    before = features.detach().clone()
    graph = build_graph(*features)
    assert (graph.num_classes, graph.width) == (2, 2)
    assert features.equal(before)  # the inputs are left alone
    assert {relation.edge_type for relation in RELATIONS} == set(EDGES)
    for relation in RELATIONS:
        assert_close(graph.edge_weights(relation), torch.tensor(EDGES[relation.edge_type]), msg=relation.name)
    for found, expected in zip((graph.x_dict[name] for name in NODE_TYPES), NODES):
        assert_close(found, expected)
        assert not found.requires_grad


def test_nodes_of_different_shapes_are_an_error_that_lists_them(unit_features):
    with pytest.raises(ValueError, match=r"got \[\(3, 4\), \(2, 4\), \(3, 4\)\]"):
        build_graph(unit_features(3, 4), unit_features(2, 4), unit_features(3, 4))


@pytest.mark.parametrize("size", [1, 4])
def test_degrees_are_sums_of_absolute_weights_and_the_self_loop_in_blocks_as_well(unit_features, monkeypatch, size):
    monkeypatch.setattr(module, "ROWS", size)
    graph = HeteroGraph({"positive": unit_features(6, 4, seed=1), "visual": unit_features(6, 4, seed=2)})
    relation = RelationType("visual", "positive", diagonal=-1.0)
    weight = graph.edge_weights(relation)
    assert_close(graph.edge_weights(relation, slice(2, 5)), weight[2:5])
    target, source = graph.degrees(relation)
    assert_close(target, weight.abs().sum(dim=1, keepdim=True) + 1)
    assert_close(source, weight.abs().sum(dim=0).unsqueeze(1) + 1)


def test_class_prototypes_of_unequal_unsorted_classes_and_of_a_single_image():
    features = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.6, 0.8], [1.0, 0.0], [0.0, 1.0], [0.8, 0.6]])
    labels = torch.tensor([2, 0, 1, 2, 0, 0])
    # Class 0: (1,0), (0,1), (.8,.6), sum (1.8, 1.6); class 1: one image; class 2: (0,1), (1,0)
    expected = torch.tensor([[1.8, 1.6], [0.6, 0.8], [1.0, 1.0]])
    assert_close(class_prototypes(features, labels, ["a", "b", "c"]), expected / expected.norm(dim=1, keepdim=True))


@pytest.mark.parametrize(
    ("names", "said"),
    [(["cat", "dog", "ant", "eel"], "2 of 4 have none: cat, eel$"), (list("abcdefghijklmno"), r"a, d, .*, l, \.\.\.$")],
)
def test_classes_without_an_image_are_named_ten_at_most(names, said):
    with pytest.raises(UserError, match=said):
        class_prototypes(torch.eye(2), torch.tensor([1, 2]), names)


def test_hetero_data_is_valid_and_its_edges_rebuild_the_matrices():
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
