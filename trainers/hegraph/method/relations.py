"""The relations of the graph, one row each. This table is the only place that lists them.

HeGraphAdapter, section 3.1.1 and Eq. 1-6. The graph weighs the edges by it (`graph.py`), message passing walks it
(`layers.py`), and the keys of the meta-path weights come from it (`options.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

EdgeType = tuple[str, str, str]  # (source, relation, target), as in PyG

NODE_TYPES = ("positive", "negative", "visual")
REFINED = "positive"  # the nodes that classify, once they have received their messages


@dataclass(frozen=True)
class RelationType:
    """One kind of edge, from every node of one type to every node of another.

    Attributes:
        source, target: Node types.
        diagonal: Factor on the edge from a class's own node. Off the diagonal an edge weighs the cosine of its two
            nodes. A negative prompt says the opposite of its class, so the relations that touch a negative node carry
            the dissimilarity, -1. Within one node type there is no such edge, 0: the self term stands for it.
        step: When its messages are passed. A later step sees the nodes that an earlier one has updated.
        weight_key: Configuration key of its meta-path weight. "" marks messages that update no node: they move
            the cached images of their class (Eq. 6).
        weight: Default of that weight: the paper's for ImageNet (Table 3). It prints none to negative nodes.
        weight_at_test: Default at test time, where that has a key of its own (`weight_key`_TEST). The paper's is 0.1.
        self_term: Whether a message holds the target's own term `x_i W / (deg_i + 1)`.
    """

    source: str
    target: str
    diagonal: float
    step: int
    weight_key: str = ""
    weight: float = 0.0
    weight_at_test: float | None = None
    self_term: bool = True

    @property
    def edge_type(self) -> EdgeType:
        return (self.source, "to", self.target)

    @property
    def name(self) -> str:
        """Such as "negative_to_positive", which can name a parameter."""
        return "_".join(self.edge_type)

    @property
    def keys(self) -> dict[str, float]:
        """Its configuration keys with their defaults."""
        keys = {self.weight_key: self.weight} if self.weight_key else {}
        if self.weight_at_test is not None:
            keys[f"{self.weight_key}_TEST"] = self.weight_at_test
        return keys


RELATIONS: tuple[RelationType, ...] = (
    RelationType("positive", "positive", diagonal=0.0, step=2, weight_key="ALPHA_PP", weight=0.06),
    RelationType("visual", "positive", diagonal=1.0, step=2, weight_key="ALPHA_VP", weight=0.24),
    RelationType("negative", "positive", diagonal=-1.0, step=2, weight_key="ALPHA_NP", weight=0.2, weight_at_test=0.2),
    RelationType("positive", "negative", diagonal=-1.0, step=1, weight_key="BETA_PN", weight=0.1),
    RelationType("visual", "negative", diagonal=-1.0, step=1, weight_key="BETA_VN", weight=0.1),
    RelationType("visual", "visual", diagonal=0.0, step=3, self_term=False),
)


def metapath_defaults() -> dict[str, float]:
    """Every configuration key of a meta-path weight, with its default."""
    return {key: value for relation in RELATIONS for key, value in relation.keys.items()}


def reads_updated_nodes(relation: RelationType) -> bool:
    """Whether an earlier step has updated the nodes that the relation starts from."""
    return any(other.target == relation.source and other.step < relation.step for other in RELATIONS)


def relations_in_use(weights: Mapping[str, float], visual: bool, text_weights: bool) -> tuple[RelationType, ...]:
    """The relations whose messages change the result, in the order of the table.

    Args:
        weights: Key of each meta-path weight -> its value. A relation of weight 0, or without a weight, is left out.
        visual: Whether the relations that move the cached images are wanted.
        text_weights: Whether messages to text nodes have a `W`. Without one they read no node.
    """
    weighted = [r for r in RELATIONS if (weights.get(r.weight_key, 0.0) != 0.0 if r.weight_key else visual)]
    read = {r.source for r in weighted if text_weights and reads_updated_nodes(r)}
    # Nodes that no later step reads receive their messages in vain
    return tuple(r for r in weighted if not r.weight_key or r.target == REFINED or r.target in read)
