"""Figures, from records and the files beside them: few-shot curves, t-SNE of text nodes, confusion matrix.

Lines differ in colour (Okabe and Ito's palette, safe for the colour-blind), marker and dashes, so that they can be told
apart in black and white too. A method looks the same in every figure. matplotlib is imported when a figure is drawn.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..utils.errors import UserError
from ..utils.files import atomic_path
from .analysis import TextNodes, mean_distance
from .cells import FIRST, LAST, Key, add_mean_place, make_cells, method_order, observe, place
from .paper import AVERAGE, Quote, is_average_over, same_backbone, same_dataset
from .render import Cell

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito without their yellow, which is too light on white
COLOURS = ("#000000", "#D55E00", "#0072B2", "#009E73", "#E69F00", "#CC79A7", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "*", "h", "d", "8", "H")
DASHES = ("-", "--", "-.", ":")
STYLED = (*reversed(LAST), *FIRST)

MOST_NAMES = 40  # with more classes, names would cover one another
MOST_NUMBERS = 20

RC = {"svg.hashsalt": "hegraph", "svg.fonttype": "path", "font.size": 9, "axes.grid": True, "grid.alpha": 0.3}


def save(figure: Figure, stem: Path) -> list[Path]:
    """Writes STEM.png and STEM.svg, each whole or not at all; returns their paths."""
    paths = [Path(f"{stem}.{kind}") for kind in ("png", "svg")]
    for path, content in zip(paths, (_bytes(figure, "png"), as_svg(figure))):
        with atomic_path(path) as temporary:
            temporary.write_bytes(content)
    return paths


def as_svg(figure: Figure) -> bytes:
    """The figure as SVG, the same bytes each time."""
    return _bytes(figure, "svg")


def curves(records: Sequence[dict], quotes: Sequence[Quote] = ()) -> Figure:
    """Accuracy on test by shots: a panel per data set, before them their average, a line per method.

    Bars are 95% intervals of the mean over seeds. The average has the points that every data set has.

    Args:
        records: Of runs with test images and one backbone.
        quotes: The paper's, drawn in grey at the data sets that it has, and its average where ours is over the same.

    Raises:
        UserError: If a point would mix runs, there are several backbones, or a run has no number of shots.
    """
    if len(backbones := sorted({record["backbone"] for record in records})) > 1:
        raise UserError(f"curves are of one backbone, not of {', '.join(backbones)}; name runs of one")
    if any(record["shots"] < 1 for record in records):
        raise UserError("curves are over numbers of shots; some runs have all images (-1)")
    cells = make_cells(o for record in records for o in observe(record, place(record, ("dataset",)), record["shots"]))
    quotes = [quote for quote in quotes if same_backbone(quote.backbone, backbones[0])]
    datasets = list(dict.fromkeys(key[0][0] for key in cells))
    panels = [(name, [quote for quote in quotes if same_dataset(quote.dataset, name)]) for name in datasets]
    if len(datasets) > 1:
        add_mean_place(cells, 0)
        known = quotes if is_average_over(quotes, datasets) else []
        panels.insert(0, (f"mean of {len(datasets)}", [quote for quote in known if quote.dataset == AVERAGE]))
    figure, axes = _panels(len(panels)) if len(panels) > 1 else _panels(1, width=5.6, height=3.6)
    for axis, (name, quoted) in zip(axes, panels):
        _draw_curves(axis, {key: cell for key, cell in cells.items() if key[0] == (name,)})
        for of in dict.fromkeys(quote.method for quote in quoted):
            points = sorted({quote.shots: quote.value for quote in quoted if quote.method == of}.items())
            axis.plot(*zip(*points), color="0.5", marker="x", linestyle=":", label=f"{of} (quoted)")
        axis.set_title(name)
    shots = sorted({record["shots"] for record in records})
    for axis in axes:
        axis.set_xscale("log", base=2)
        axis.set_xticks(shots, list(map(str, shots)))
        axis.minorticks_off()
    columns = axes[0].get_gridspec().ncols
    for axis in axes[-columns:]:  # nothing stands below these
        axis.set_xlabel("training images per class (shots)")
    for axis in axes[::columns]:
        axis.set_ylabel("accuracy on test (%)")
    _legend(figure, axes)
    return figure


def tsne(nodes: TextNodes) -> Figure:
    """Positive text nodes before and after, in one joint t-SNE with a fixed seed; titles tell the mean distance.

    Args:
        nodes: Of two classes or more.
    """
    from sklearn.manifold import TSNE

    k = len(nodes.classnames)
    if k < 2:
        raise UserError("t-SNE shows distances between classes, and there is one class")
    both = np.concatenate([nodes.before.numpy(), nodes.after.numpy()])
    perplexity = min(30.0, (len(both) - 1) / 3)  # scikit-learn's default, less for few points
    # exact: the approximation pays for thousands of points only, and its threads wait for one another
    points = TSNE(perplexity=perplexity, init="pca", random_state=0, method="exact").fit_transform(both)  # (2K, 2)
    limits = points.min() - 0.1 * np.ptp(points), points.max() + 0.1 * np.ptp(points)  # room for names
    figure, axes = _panels(2, width=4.2, height=4.2)
    for axis, title, x, features in zip(
        axes, ("before", "after"), (points[:k], points[k:]), (nodes.before, nodes.after)
    ):
        axis.scatter(*x.T, s=18, color=COLOURS[2], edgecolor="black", linewidth=0.5)
        axis.set_title(f"{title}: mean inter-class distance {mean_distance(features):.3f}")
        axis.set_aspect("equal")
        axis.set(xlim=limits, ylim=limits)
        if k <= MOST_NAMES:
            for name, xy in zip(nodes.classnames, x):
                axis.annotate(name, xy, textcoords="offset points", xytext=(4, 3), fontsize=7)
        axis.set_xlabel("first t-SNE coordinate (no unit)")
        axis.set_ylabel("second t-SNE coordinate (no unit)")
    return figure


def confusion(matrix: np.ndarray, classnames: Sequence[str]) -> Figure:
    """Percent of the test images of each true class (row) by predicted class; darker is more.

    Args:
        matrix: Counts, `[K, K]`.
        classnames: K names.
    """
    k = len(classnames)
    percent = 100 * matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    side = min(4 + 0.22 * k, 9)
    figure, (axis,) = _panels(1, width=side, height=0.85 * side)
    image = axis.imshow(percent, cmap="Greys", vmin=0, vmax=100, interpolation="nearest")
    axis.grid(False)
    if k <= MOST_NAMES:
        axis.set_xticks(range(k), classnames, rotation=90)
        axis.set_yticks(range(k), classnames)
    if k <= MOST_NUMBERS:
        for (row, column), count in np.ndenumerate(matrix):
            if count:
                colour = "white" if percent[row, column] > 50 else "black"
                axis.text(column, row, str(count), ha="center", va="center", color=colour, fontsize=7)
    axis.set_xlabel("predicted class")
    axis.set_ylabel("true class")
    figure.colorbar(image, label="of the images of the true class (%)", shrink=0.8)
    return figure


def _panels(count: int, width: float = 3.4, height: float = 2.8) -> tuple[Figure, Sequence]:
    """A figure with so many panels of a size in inches; about as many rows as columns."""
    import matplotlib
    from matplotlib.figure import Figure

    columns = math.ceil(count**0.5)
    rows = -(-count // columns)
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(columns * width, rows * height), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for unused in axes[count:]:
        unused.remove()
    return figure, axes[:count]


def _draw_curves(axis: object, cells: dict[Key, Cell]) -> None:
    names = sorted({key[1] for key in cells}, key=method_order)
    for number, name in enumerate(names):
        points = sorted((key[2], cell) for key, cell in cells.items() if key[1] == name)
        # side by side, so that bars do not cover one another
        shots = [shots * 2 ** (0.03 * (number - (len(names) - 1) / 2)) for shots, _ in points]
        axis.errorbar(
            shots,
            [cell.mean for _, cell in points],
            yerr=[cell.interval or 0 for _, cell in points],
            label=name,
            capsize=2,
            markersize=4.5,
            linewidth=1.3,
            elinewidth=0.8,
            **_style(name),
        )


def _style(name: str) -> dict[str, str]:
    index = STYLED.index(name) if name in STYLED else len(STYLED) + sum(map(ord, name))
    return {
        "color": COLOURS[index % len(COLOURS)],
        "marker": MARKERS[index % len(MARKERS)],
        "linestyle": DASHES[index % len(DASHES)],
    }


def _legend(figure: Figure, axes: Sequence) -> None:
    """One legend below all panels."""
    entries = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels())}
    columns = max(1, int(figure.get_figwidth() // 2.1))
    figure.set_figheight(figure.get_figheight() + 0.2 * math.ceil(len(entries) / columns))
    figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=columns, frameon=False)


def _bytes(figure: Figure, kind: str) -> bytes:
    import matplotlib

    content = io.BytesIO()
    # no date: the same figure is the same file
    with matplotlib.rc_context(RC):
        figure.savefig(content, format=kind, dpi=200, metadata={"Date": None} if kind == "svg" else None)
    return content.getvalue()
