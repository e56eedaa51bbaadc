"""Figures of one run: t-SNE of its text nodes, its confusion matrix. And how any figure is laid out and saved.

matplotlib is imported only when a figure is drawn.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..utils.errors import UserError
from ..utils.files import atomic_path
from .analysis import TextNodes, mean_distance

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, which is safe for the colour-blind, without its yellow, which is too light on white
COLOURS = ("#000000", "#D55E00", "#0072B2", "#009E73", "#E69F00", "#CC79A7", "#56B4E9")

MOST_NAMES = 40  # with more classes, their names would cover one another
MOST_NUMBERS = 20  # with more classes, the counts would

RC: Any = {"svg.hashsalt": "hegraph", "svg.fonttype": "path", "font.size": 9, "axes.grid": True, "grid.alpha": 0.3}


def save(figure: Figure, stem: Path) -> list[Path]:
    """Writes STEM.png and STEM.svg, each whole or not at all; returns their paths."""
    paths = [Path(f"{stem}.{kind}") for kind in ("png", "svg")]
    for path, content in zip(paths, (_bytes(figure, "png"), as_svg(figure))):
        with atomic_path(path) as temporary:
            temporary.write_bytes(content)
    return paths


def as_svg(figure: Figure) -> bytes:
    """The figure as SVG; the same figure always gives the same bytes."""
    return _bytes(figure, "svg")


def panels(count: int, width: float = 3.4, height: float = 2.8) -> tuple[Figure, list[Axes]]:
    """An empty figure with panels in about as many rows as columns.

    Args:
        count: Number of panels.
        width: Width of a panel in inches.
        height: Height of a panel in inches.
    """
    import matplotlib
    from matplotlib.figure import Figure

    columns = math.ceil(count**0.5)
    rows = -(-count // columns)
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(columns * width, rows * height), layout="constrained")
        axes = list(figure.subplots(rows, columns, squeeze=False).flatten())
    for unused in axes[count:]:
        unused.remove()
    return figure, axes[:count]


def literal(text: str) -> str:
    """A name as matplotlib shows it letter by letter; between two `$` it would read mathematics."""
    return text.replace("$", r"\$")


def tsne(nodes: TextNodes) -> Figure:
    """Positive text nodes before and after message passing, by one t-SNE of both with a fixed seed.

    The titles of the two panels tell the mean distance between classes.

    Args:
        nodes: The text nodes of a run.

    Raises:
        UserError: If there is one class only.
    """
    from sklearn.manifold import TSNE

    k = len(nodes.classnames)
    if k < 2:
        raise UserError("t-SNE shows distances between classes, and there is one class")
    both = np.concatenate([nodes.before.numpy(), nodes.after.numpy()])
    perplexity = min(30.0, (len(both) - 1) / 3)  # scikit-learn's default, less for few points
    # The exact method: the approximation is faster for thousands of points only, and its threads wait for one another
    points = TSNE(perplexity=perplexity, init="pca", random_state=0, method="exact").fit_transform(both)  # (2K, 2)
    margin = 0.1 * np.ptp(points)  # room for names
    limits = points.min() - margin, points.max() + margin
    figure, (left, right) = panels(2, width=4.2, height=4.2)
    for axis, title, x, features in (
        (left, "before", points[:k], nodes.before),
        (right, "after", points[k:], nodes.after),
    ):
        _draw_nodes(axis, x, nodes.classnames)
        axis.set_title(f"{title}: mean inter-class distance {mean_distance(features):.3f}")
        axis.set(xlim=limits, ylim=limits)
    return figure


def confusion(matrix: np.ndarray, classnames: Sequence[str]) -> Figure:
    """The predicted classes of every true class (row), in percent of its test images; darker is more.

    Args:
        matrix: Number of test images by true and predicted class, shape `[K, K]`.
        classnames: K names.
    """
    k = len(classnames)
    percent = 100 * matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    side = min(4 + 0.22 * k, 9)
    figure, (axis,) = panels(1, width=side, height=0.85 * side)
    image = axis.imshow(percent, cmap="Greys", vmin=0, vmax=100, interpolation="nearest")
    axis.grid(False)
    if k <= MOST_NAMES:
        axis.set_xticks(range(k), list(map(literal, classnames)), rotation=90)
        axis.set_yticks(range(k), list(map(literal, classnames)))
    if k <= MOST_NUMBERS:
        for (row, column), count in np.ndenumerate(matrix):
            if count:
                colour = "white" if percent[row, column] > 50 else "black"
                axis.text(column, row, str(count), ha="center", va="center", color=colour, fontsize=7)
    axis.set_xlabel("predicted class")
    axis.set_ylabel("true class")
    figure.colorbar(image, label="of the images of the true class (%)", shrink=0.8)
    return figure


def _draw_nodes(axis: Axes, points: np.ndarray, classnames: Sequence[str]) -> None:
    """Draws points, shape `[K, 2]`, with the names of their classes unless there are too many."""
    axis.scatter(points[:, 0], points[:, 1], s=18, color=COLOURS[2], edgecolor="black", linewidth=0.5)
    axis.set_aspect("equal")
    if len(classnames) <= MOST_NAMES:
        for name, xy in zip(classnames, points):
            axis.annotate(literal(name), xy, textcoords="offset points", xytext=(4, 3), fontsize=7)
    axis.set_xlabel("first t-SNE coordinate (no unit)")
    axis.set_ylabel("second t-SNE coordinate (no unit)")


def _bytes(figure: Figure, kind: str) -> bytes:
    import matplotlib

    content = io.BytesIO()
    # The date is left out, so that the same figure is the same file
    with matplotlib.rc_context(RC):
        figure.savefig(content, format=kind, dpi=200, metadata={"Date": None} if kind == "svg" else None)
    return content.getvalue()
