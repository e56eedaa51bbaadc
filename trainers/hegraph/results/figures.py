"""Figures: accuracy by shots, reliability diagrams, and of one run t-SNE of its text nodes and its confusion matrix.

In figures of several methods, lines differ in colour, marker and dashes, so that they can be told apart in black and
white too, and a method looks the same everywhere. Every function that draws does so by `RC`.

Shapes: K classes, d feature width.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from ..utils.errors import UserError
from ..utils.files import atomic_path
from .comparison import compare, has_calibration
from .records import TEXT_NODES, read_beside
from .scores import BASELINES, MEAN_OF, PLACE, VARIANTS, grouped, in_words, method, method_order, place

# Okabe and Ito's palette, which is safe for the colour-blind, without its yellow, which is too light on white
COLOURS = ("#000000", "#D55E00", "#0072B2", "#009E73", "#E69F00", "#CC79A7", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "*", "h", "d", "8", "H")
DASHES = ("-", "--", "-.", ":")
STYLED = (*reversed(VARIANTS), *BASELINES)  # a method's position here gives its style

MOST_NAMES = 40  # with more classes, their names would cover one another
MOST_NUMBERS = 20  # with more classes, the counts would
FEWEST = 10  # images of a bin of a reliability diagram that is drawn: the accuracy of fewer is chance

RC: Any = {
    "svg.hashsalt": "hegraph", "svg.fonttype": "path", "font.size": 9, "axes.grid": True, "grid.alpha": 0.3,
    "text.parse_math": False,  # a `$` in the name of a class is a `$`
}  # fmt: skip
OF_LINES: Any = {"capsize": 2, "markersize": 4.5, "linewidth": 1.3, "elinewidth": 0.8}


def save(figure: Figure, stem: Path) -> list[Path]:
    """Writes STEM.png and STEM.svg, each whole or not at all; returns their paths."""
    paths = [Path(f"{stem}.png"), Path(f"{stem}.svg")]
    for path, content in zip(paths, (_bytes(figure, "png"), as_svg(figure))):
        with atomic_path(path) as temporary:
            temporary.write_bytes(content)
    return paths


def as_svg(figure: Figure) -> bytes:
    """The figure as SVG; the same figure always gives the same bytes."""
    return _bytes(figure, "svg")


@matplotlib.rc_context(RC)
def _bytes(figure: Figure, kind: str) -> bytes:
    content = io.BytesIO()
    # The date is left out, so that the same figure is the same file
    figure.savefig(content, format=kind, dpi=200, metadata={"Date": None} if kind == "svg" else None)
    return content.getvalue()


def panels(count: int, width: float = 3.4, height: float = 2.8) -> tuple[Figure, list[Axes]]:
    """An empty figure with panels, `width` by `height` inches each, in about as many rows as columns."""
    columns = math.ceil(count**0.5)
    rows = -(-count // columns)
    figure = Figure(figsize=(columns * width, rows * height), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flatten())
    for unused in axes[count:]:
        unused.remove()
    return figure, axes[:count]


# Accuracy by shots


@matplotlib.rc_context(RC)
def curves(records: Sequence[dict], quotes: pd.DataFrame | None = None) -> Figure:
    """Accuracy on test by shots: the mean over data sets, if there are several, then a panel for each.

    Bars are 95% intervals of the mean over seeds. The mean over data sets has only points that every data set has. The
    paper's numbers are drawn in grey. Errors are those of `cells_by_shots`.
    """
    cells = cells_by_shots(records, quotes)
    names = sorted({record["dataset"] for record in records})
    if len(names) > 1:
        names = [f"{MEAN_OF}{len(names)}", *names]
    figure, axes = panels(len(names)) if len(names) > 1 else panels(1, width=5.6, height=3.6)
    for axis, name in zip(axes, names):
        _draw_lines(axis, cells[cells["dataset"] == name])
        axis.set_title(name)
    label_axes(axes, sorted({record["shots"] for record in records}))
    entries = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels())}
    in_a_row = max(1, int(figure.get_figwidth() // 2.1))
    figure.set_figheight(figure.get_figheight() + 0.2 * math.ceil(len(entries) / in_a_row))
    figure.legend(list(entries.values()), list(entries), loc="outside lower center", ncols=in_a_row, frameon=False)
    return figure


def cells_by_shots(records: Sequence[dict], quotes: pd.DataFrame | None = None) -> pd.DataFrame:
    """The `cells` of `compare` by shots, whose column "column" is the number of shots.

    Raises UserError if a cell would mix runs, there are several backbones, or a run has no number of shots.
    """
    for key in PLACE:
        values = sorted({in_words(key, place(record)[key]) for record in records})
        if key not in ("dataset", "shots") and len(values) > 1:
            raise UserError(f"curves are of one {PLACE[key]}, not of {', '.join(values)}; name runs of one")
    if any(record["shots"] < 1 for record in records):
        raise UserError("curves are over numbers of shots; some runs have all images (-1)")
    return compare(records, quotes=quotes).cells.sort_values("column", kind="stable")


def style(name: str) -> dict[str, Any]:
    """The colour, marker and dashes of a method, as matplotlib's `plot` takes them."""
    index = STYLED.index(name) if name in STYLED else len(STYLED) + sum(map(ord, name))
    looks = {"color": COLOURS, "marker": MARKERS, "linestyle": DASHES}
    return {key: values[index % len(values)] for key, values in looks.items()}


def _draw_lines(axis: Axes, cells: pd.DataFrame) -> None:
    lines = {of[0]: line for of, line in grouped(cells[~cells["quoted"]], ["method"])}
    for number, name in enumerate(sorted(lines, key=method_order)):
        # The methods stand side by side, so that their bars do not cover one another
        shots = lines[name]["column"].astype(float) * 2 ** (0.03 * (number - (len(lines) - 1) / 2))
        bars = lines[name]["interval"].fillna(0)
        axis.errorbar(shots, lines[name]["mean"], yerr=bars, label=name, **OF_LINES, **style(name))
    for (name,), line in grouped(cells[cells["quoted"]], ["method"]):
        looks: Any = {"color": "0.5", "marker": "x", "linestyle": ":"}
        axis.plot(line["column"].astype(float), line["mean"], label=f"{name} (quoted)", **looks)


def label_axes(axes: Sequence[Axes], shots: Sequence[int]) -> None:
    """Gives the panels of `panels` their ticks at numbers of shots, and the outer ones the names of the axes."""
    for axis in axes:
        axis.set_xscale("log", base=2)
        axis.set_xticks(shots, list(map(str, shots)))
        axis.minorticks_off()
    grid = axes[0].get_gridspec()
    columns = grid.ncols if grid else 1
    for axis in axes[-columns:]:  # the panels that have none below them
        axis.set_xlabel("training images per class (shots)")
    for axis in axes[::columns]:
        axis.set_ylabel("accuracy on test (%)")


# Honesty of probabilities


@matplotlib.rc_context(RC)
def reliability_diagrams(records: Sequence[dict]) -> Figure:
    """How often the predictions of each confidence are right: a panel for each method, over all its test images.

    Data sets, shots and seeds are put together. Runs that do not tell it are left out, but one has to.
    """
    known = list(filter(has_calibration, records))
    names = sorted({method(record) for record in known}, key=method_order)
    figure, axes = panels(len(names), width=2.8, height=2.8)
    for axis, name in zip(axes, names):
        found = [record["calibration"] for record in known if method(record) == name]
        axis.plot([0, 100], [0, 100], color="0.6", linewidth=0.8)
        _draw_bins(axis, [part["before"]["bins"] for part in found], "before", COLOURS[1], "--")
        _draw_bins(axis, [part["after"]["bins"] for part in found], "calibrated", COLOURS[2], "-")
        axis.set(title=name, xlim=(0, 100), ylim=(0, 100), xlabel="confidence (%)", ylabel="accuracy (%)")
        axis.set_aspect("equal")
    axes[0].legend(loc="upper left", frameon=False, fontsize=7)
    return figure


def _draw_bins(axis: Axes, parts: Sequence[dict], label: str, colour: str, dashes: str) -> None:
    """Draws the bins of several runs as one: larger dots for bins of more images."""
    counts = np.array([bins["count"] for bins in parts])  # (runs, bins)
    total = counts.sum(axis=0)
    filled = total >= FEWEST
    x, y = (
        (counts * np.array([bins[key] for bins in parts])).sum(axis=0)[filled] / total[filled]
        for key in ("confidence", "accuracy")
    )
    axis.plot(x, y, color=colour, linestyle=dashes, linewidth=1.2, label=label)
    axis.scatter(x, y, s=4 + 60 * total[filled] / total.sum(), color=colour, zorder=3)


# One run


def read_text_nodes(folder: Path) -> tuple[Tensor, Tensor, list[str]]:
    """Reads the positive text nodes of a run before and after message passing, of unit norm, `[K, d]`, and K names.

    Raises UserError as `read_beside`, or if they do not fit each other.
    """
    path = folder / TEXT_NODES
    (before, after), classnames = read_beside(path, "text nodes of a run", ("before", "after"))
    if before.shape != after.shape or before.dim() != 2 or len(before) != len(classnames):
        raise UserError(f"{path}: before {list(before.shape)}, after {list(after.shape)}, {len(classnames)} classes")
    if not torch.cat([before, after]).isfinite().all():
        raise UserError(f"{path} holds NaN or infinite values; the file is damaged")
    return F.normalize(before.float(), dim=1), F.normalize(after.float(), dim=1), classnames


def mean_distance(nodes: Tensor) -> float:
    """Mean Euclidean distance over all pairs of classes, of text nodes of shape `[K, d]`."""
    return torch.pdist(nodes).mean().item()


@matplotlib.rc_context(RC)
def tsne(before: Tensor, after: Tensor, classnames: Sequence[str]) -> Figure:
    """Text nodes `[K, d]` before and after message passing, by one t-SNE of both with a fixed seed.

    The titles of the two panels tell the mean distance between classes. Raises UserError if there is one class only.
    """
    from sklearn.manifold import TSNE

    k = len(classnames)
    if k < 2:
        raise UserError("t-SNE shows distances between classes, and there is one class")
    both = torch.cat([before, after]).numpy()
    perplexity = min(30.0, (len(both) - 1) / 3)  # scikit-learn's default, less for few points
    # The exact method: the approximation is faster for thousands of points only, and its threads wait for one another
    points = TSNE(perplexity=perplexity, init="pca", random_state=0, method="exact").fit_transform(both)  # (2K, 2)
    margin = 0.1 * np.ptp(points)  # room for names
    limits = points.min() - margin, points.max() + margin
    figure, axes = panels(2, width=4.2, height=4.2)
    halves = (("before", points[:k], before), ("after", points[k:], after))
    for axis, (name, xy, features) in zip(axes, halves):
        axis.scatter(xy[:, 0], xy[:, 1], s=18, color=COLOURS[2], edgecolor="black", linewidth=0.5)
        axis.set_aspect("equal")
        for classname, point in zip(classnames, xy) if k <= MOST_NAMES else ():
            axis.annotate(classname, point, textcoords="offset points", xytext=(4, 3), fontsize=7)
        axis.set(xlabel="first t-SNE coordinate (no unit)", ylabel="second t-SNE coordinate (no unit)")
        axis.set(title=f"{name}: mean inter-class distance {mean_distance(features):.3f}", xlim=limits, ylim=limits)
    return figure


@matplotlib.rc_context(RC)
def confusion(matrix: np.ndarray, classnames: Sequence[str]) -> Figure:
    """The predicted classes of every true class (row), in percent of its test images; darker is more.

    `matrix` is the number of test images by true and predicted class, shape `[K, K]`.
    """
    k = len(classnames)
    percent = 100 * matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    side = min(4 + 0.22 * k, 9)
    figure, (axis,) = panels(1, width=side, height=0.85 * side)
    image = axis.imshow(percent, cmap="Greys", vmin=0, vmax=100, interpolation="nearest")
    axis.grid(False)
    if k <= MOST_NAMES:
        axis.set_xticks(range(k), classnames, rotation=90)
        axis.set_yticks(range(k), classnames)
    for (row, column), count in np.ndenumerate(matrix) if k <= MOST_NUMBERS else ():
        if count:
            colour = "white" if percent[row, column] > 50 else "black"
            axis.text(column, row, str(count), ha="center", va="center", color=colour, fontsize=7)
    axis.set(xlabel="predicted class", ylabel="true class")
    figure.colorbar(image, label="of the images of the true class (%)", shrink=0.8)
    return figure
