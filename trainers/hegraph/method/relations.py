"""Table of the six relations of the graph, in the order in which messages are passed (Eq. 1-6 of HeGraphAdapter).

The graph takes its edge weights from this table (`graph.py`), message passing follows its order (`layers.py`), and the
configuration keys of the meta-path weights are its `weight_key` column (`options.py`).
"""

from dataclasses import dataclass

NODE_TYPES = ("positive", "negative", "visual")
REFINED = "positive"  # the node type whose updated nodes are the text classifier


@dataclass(frozen=True)
class RelationType:
    """Edges from every node of one type to every node of another type.

    Attributes:
        source, target: Node types.
        diagonal: Factor on the weight of the edge between the two nodes of one class; the weight of an edge is the
            cosine of its nodes. A negative prompt contradicts its class, so the factor is -1 for relations with
            negative nodes. It is 0 within one node type, where the self term replaces this edge.
        weight_key: Configuration key of the meta-path weight. "" marks a relation that updates no node and moves the
            cache keys of its class (Eq. 6).
        weight: Default meta-path weight, the paper's for ImageNet (Table 3). The paper gives none for negative nodes.
        weight_at_test: Default meta-path weight at test time, with the key `weight_key`_TEST. The paper's is 0.1.
        frozen: Whether the source nodes are the initial CLIP features. Otherwise they are updated nodes.
        self_term: Whether a message contains the target's own term `x_i W / (deg_i + 1)`.
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
        """Edge type in PyG's notation, `(source, "to", target)`."""
        return (self.source, "to", self.target)

    @property
    def name(self) -> str:
        """Name for parameters and state dicts, such as "negative_to_positive"."""
        return "_".join(self.edge_type)

    @property
    def key_at_test(self) -> str:
        """Configuration key of the meta-path weight at test time."""
        return self.weight_key if self.weight_at_test is None else f"{self.weight_key}_TEST"


RELATIONS: tuple[RelationType, ...] = (
    RelationType("positive", "negative", diagonal=-1.0, weight_key="BETA_PN", weight=0.1),
    RelationType("visual", "negative", diagonal=-1.0, weight_key="BETA_VN", weight=0.1),
    RelationType("positive", "positive", diagonal=0.0, weight_key="ALPHA_PP", weight=0.06),
    RelationType("visual", "positive", diagonal=1.0, weight_key="ALPHA_VP", weight=0.24),
    RelationType("negative", "positive", -1.0, weight_key="ALPHA_NP", weight=0.2, weight_at_test=0.2, frozen=False),
    RelationType("visual", "visual", diagonal=0.0, self_term=False),
)
