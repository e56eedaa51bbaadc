"""The relations of the graph, one row each, in the order in which messages are passed (Eq. 1-6 of HeGraphAdapter).

This table alone lists them: the graph weighs the edges by it (`graph.py`), message passing walks it (`layers.py`), and
the keys of the meta-path weights come from it (`options.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

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
        weight_key: Configuration key of its meta-path weight. "" marks messages that update no node: they move
            the cached images of their class (Eq. 6).
        weight: Default of that weight: the paper's for ImageNet (Table 3). It prints none to negative nodes.
        weight_at_test: Default at test time, which has a key of its own (`weight_key`_TEST). The paper's is 0.1.
        frozen: Whether the source nodes are those of the graph. Else they have received their own messages before.
        self_term: Whether a message holds the target's own term `x_i W / (deg_i + 1)`.
    """

    source: str
    target: str
    diagonal: float
    weight_key: str = ""
    weight: float = 0.0
    weight_at_test: float | None = None
    frozen: bool = True
    self_term: bool = True

    @property
    def edge_type(self) -> tuple[str, str, str]:
        """As in PyG."""
        return (self.source, "to", self.target)

    @property
    def name(self) -> str:
        """Such as "negative_to_positive", which can name a parameter."""
        return "_".join(self.edge_type)

    @property
    def key_at_test(self) -> str:
        """Configuration key of the weight at test time."""
        return self.weight_key if self.weight_at_test is None else f"{self.weight_key}_TEST"


RELATIONS: tuple[RelationType, ...] = (
    RelationType("positive", "negative", diagonal=-1.0, weight_key="BETA_PN", weight=0.1),
    RelationType("visual", "negative", diagonal=-1.0, weight_key="BETA_VN", weight=0.1),
    RelationType("positive", "positive", diagonal=0.0, weight_key="ALPHA_PP", weight=0.06),
    RelationType("visual", "positive", diagonal=1.0, weight_key="ALPHA_VP", weight=0.24),
    RelationType("negative", "positive", -1.0, weight_key="ALPHA_NP", weight=0.2, weight_at_test=0.2, frozen=False),
    RelationType("visual", "visual", diagonal=0.0, self_term=False),
)
