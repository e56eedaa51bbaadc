"""Names of classes are shown letter by letter, whatever they hold."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from trainers.hegraph.results.figures import TextNodes, as_svg, confusion, curves, literal, tsne

NAMES = ["$x$", "$\\frac{$", "a $ b", "$$", "50% & _^{}\\"]


def test_only_a_dollar_is_escaped():
    assert [literal(name) for name in ("plain", "a$b$")] == ["plain", "a\\$b\\$"]


def test_a_confusion_matrix_and_text_nodes_have_any_names():
    as_svg(confusion(np.eye(len(NAMES), dtype=int), NAMES))
    nodes = F.normalize(torch.randn(len(NAMES), 4, generator=torch.Generator().manual_seed(0)), dim=-1)
    as_svg(tsne(TextNodes(nodes, nodes.flip(0), NAMES)))


@pytest.mark.parametrize("name", NAMES)
def test_curves_of_any_data_set_and_method(run, name):
    as_svg(curves([run(1, dataset=name), run(1, trainer=name, variant="")]))
