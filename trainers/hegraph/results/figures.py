"""Figures: accuracy by shots, reliability diagrams, and of one run t-SNE of its text nodes and its confusion matrix.

In figures of several methods, lines differ in colour, marker and dashes, so that they can be told apart in black and
white too, and a method looks the same everywhere. matplotlib is imported only when a figure is drawn.

Shapes: K classes, d feature width.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..utils.errors import UserError
from ..utils.files import atomic_path
from .costs import with_calibration
from .paper import AVERAGE, Quote, is_average_over, same_backbone, same_dataset
from .records import TEXT_NODES, read_beside
from .scores import BASELINES, MEAN_OF, VARIANTS, accuracies, add_mean_place, cells, grouped, method, method_order
from .table import Cell

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, which is safe for the colour-blind, without its yellow, which is too light on white
COLOURS = ("#000000", "#D55E00", "#0072B2", "#009E73", "#E69F00", "#CC79A7", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "*", "h", "d", "8", "H")
DASHES = ("-", "--", "-.", ":")
STYLED = (*reversed(VARIANTS), *BASELINES)  # a method's position here gives its style

MOST_NAMES = 40  # with more classes, their names would cover one another
MOST_NUMBERS = 20  # with more classes, the counts would
FEWEST = 10  # images of a bin of a reliability diagram that is drawn: the accuracy of fewer is chance

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


def _bytes(figure: Figure, kind: str) -> bytes:
    import matplotlib

    content = io.BytesIO()
    # The date is left out, so that the same figure is the same file
    with matplotlib.rc_context(RC):
        figure.savefig(content, format=kind, dpi=200, metadata={"Date": None} if kind == "svg" else None)
    return content.getvalue()


def panels(count: int, width: float = 3.4, height: float = 2.8) -> tuple[Figure, list[Axes]]:
    """An empty figure with panels, `width` by `height` inches each, in about as many rows as columns."""
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


# Accuracy by shots

Lines = Mapping[str, Mapping[int, Cell]]  # method -> shots -> accuracy


def curves(records: Sequence[dict], quotes: Sequence[Quote] = ()) -> Figure:
    """Accuracy on test by shots: the mean over data sets, if there are several, then a panel for each.

    Bars are 95% intervals of the mean over seeds. The mean over data sets has only points that every data set has.

    Args:
        records: Runs with test images and one backbone.
        quotes: The paper's numbers, drawn in grey in the panels of the data sets that they are of. The paper's average
            is drawn if ours is over the same data sets.

    Raises:
        UserError: If a point would mix runs, there are several backbones, or a run has no number of shots.
    """
    lines = lines_by_shots(records)
    backbone = records[0]["backbone"]
    quoted = [quote for quote in quotes if same_backbone(quote.backbone, backbone)]
    datasets = sorted({record["dataset"] for record in records})
    if (mean := f"{MEAN_OF}{len(datasets)}") in lines or len(datasets) > 1:
        lines = {mean: lines.get(mean, {})} | {name: lines[name] for name in datasets}
    figure, axes = panels(len(lines)) if len(lines) > 1 else panels(1, width=5.6, height=3.6)
    for axis, (name, of_panel) in zip(axes, lines.items()):
        _draw_lines(axis, of_panel)
        if name not in datasets:
            average = quoted if is_average_over(quoted, datasets) else []
            _draw_quotes(axis, [quote for quote in average if quote.dataset == AVERAGE])
        else:
            _draw_quotes(axis, [quote for quote in quoted if same_dataset(quote.dataset, name)])
        axis.set_title(literal(name))
    _label_axes(axes, sorted({record["shots"] for record in records}))
    _add_legend(figure, axes)
    return figure


def summary_curve(records: Sequence[dict], highlighted: Sequence[str], dark: bool = False) -> Figure:
    """The mean accuracy over data sets by shots in one panel for a page: a few methods in colour, the others in grey.

    Of numbers of shots that not all data sets have, the mean is over those that have them. The figure has no
    background, and lines and text that are readable on a white page, or on a dark one.

    Args:
        records: Runs as `curves` takes them.
        highlighted: Methods whose lines have colours and stand in the legend, the most important one first.
        dark: Whether the page is dark.

    Raises:
        UserError: As `curves`.
    """
    found = lines_by_shots(records)
    merged: dict[str, dict[int, Cell]] = {}
    for place, lines in found.items():
        if place.startswith(MEAN_OF) or len(found) == 1:
            for name, line in lines.items():
                merged.setdefault(name, {}).update(line)
    figure, (axis,) = panels(1, width=6.4, height=3.8)
    ink, grey = ("#E6EDF3", "#484F58") if dark else ("#1F2328", "#C8CDD2")
    colours = [ink if colour == "#000000" else colour for colour in COLOURS]
    for name in sorted(merged, key=lambda name: highlighted.index(name) if name in highlighted else -1)[::-1]:
        shots, points = zip(*sorted(merged[name].items()))
        values = [point.mean for point in points]
        if name in highlighted:
            i = highlighted.index(name)
            mark, width = MARKERS[i % len(MARKERS)], 2.4 if i == 0 else 1.5
            axis.plot(shots, values, color=colours[(i + 1) % len(colours)], marker=mark, linewidth=width, label=name)
        else:
            axis.plot(shots, values, color=grey, linewidth=0.9, zorder=1)
    if set(merged) - set(highlighted):
        axis.plot([], [], color=grey, linewidth=0.9, label="other methods")
    _label_axes([axis], sorted({record["shots"] for record in records}))
    handles, labels = axis.get_legend_handles_labels()
    order = sorted(range(len(labels)), key=lambda i: [*highlighted, labels[i]].index(labels[i]))
    axis.legend([handles[i] for i in order], [labels[i] for i in order], frameon=False, labelcolor=ink)
    for part in (figure.patch, axis.patch):
        part.set_alpha(0)
    axis.tick_params(colors=ink)
    for text in (axis.xaxis.label, axis.yaxis.label):
        text.set_color(ink)
    for spine in axis.spines.values():
        spine.set_color(grey)
    return figure


def lines_by_shots(records: Sequence[dict]) -> dict[str, dict[str, dict[int, Cell]]]:
    """Accuracy by shots: data set or "mean of N" -> method -> shots -> accuracy.

    Raises:
        UserError: As `curves`.
    """
    if len(backbones := sorted({record["backbone"] for record in records})) > 1:
        raise UserError(f"curves are of one backbone, not of {', '.join(backbones)}; name runs of one")
    if any(record["shots"] < 1 for record in records):
        raise UserError("curves are over numbers of shots; some runs have all images (-1)")
    frame = cells((row for record in records for row in accuracies(record, record["shots"])), ["dataset"])
    lines: dict[str, dict[str, dict[int, Cell]]] = {}
    for (where, name, shots), rows in grouped(add_mean_place(frame, ["dataset"]), ["dataset", "method", "column"]):
        lines.setdefault(where, {}).setdefault(name, {})[shots] = Cell.of(rows)
    return lines


def style(name: str) -> dict[str, Any]:
    """The colour, marker and dashes of a method, as matplotlib's `plot` takes them."""
    index = STYLED.index(name) if name in STYLED else len(STYLED) + sum(map(ord, name))
    return {
        "color": COLOURS[index % len(COLOURS)],
        "marker": MARKERS[index % len(MARKERS)],
        "linestyle": DASHES[index % len(DASHES)],
    }


def _draw_lines(axis: Axes, lines: Lines) -> None:
    names = sorted(lines, key=method_order)
    for number, name in enumerate(names):
        points = sorted(lines[name].items())
        # The methods stand side by side, so that their bars do not cover one another
        shots = [shots * 2 ** (0.03 * (number - (len(names) - 1) / 2)) for shots, _ in points]
        means, bars = [cell.mean for _, cell in points], [cell.interval or 0 for _, cell in points]
        sizes: Any = {"capsize": 2, "markersize": 4.5, "linewidth": 1.3, "elinewidth": 0.8}
        axis.errorbar(shots, means, yerr=bars, label=literal(name), **sizes, **style(name))


def _draw_quotes(axis: Axes, quotes: Sequence[Quote]) -> None:
    for name in dict.fromkeys(quote.method for quote in quotes):
        points = sorted({quote.shots: quote.value for quote in quotes if quote.method == name}.items())
        axis.plot(*zip(*points), color="0.5", marker="x", linestyle=":", label=f"{name} (quoted)")


def _label_axes(axes: Sequence[Axes], shots: Sequence[int]) -> None:
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


def _add_legend(figure: Figure, axes: Sequence[Axes]) -> None:
    """Adds one legend for all panels, below them."""
    entries = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels())}
    columns = max(1, int(figure.get_figwidth() // 2.1))
    figure.set_figheight(figure.get_figheight() + 0.2 * math.ceil(len(entries) / columns))
    figure.legend(list(entries.values()), list(entries), loc="outside lower center", ncols=columns, frameon=False)


# Honesty of probabilities


def reliability_diagrams(records: Sequence[dict]) -> Figure:
    """How often the predictions of each confidence are right: a panel for each method, over all its test images.

    Args:
        records: The runs; data sets, shots and seeds are put together.

    Raises:
        UserError: If no run tells it.
    """
    known = with_calibration(records)
    names = sorted({method(record) for record in known}, key=method_order)
    figure, axes = panels(len(names), width=2.8, height=2.8)
    for axis, name in zip(axes, names):
        found = [record["calibration"] for record in known if method(record) == name]
        axis.plot([0, 100], [0, 100], color="0.6", linewidth=0.8)
        _draw_bins(axis, [part["before"]["bins"] for part in found], "before", COLOURS[1], "--")
        _draw_bins(axis, [part["after"]["bins"] for part in found], "calibrated", COLOURS[2], "-")
        axis.set_title(name)
        axis.set(xlim=(0, 100), ylim=(0, 100), xlabel="confidence (%)", ylabel="accuracy (%)")
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


class TextNodes(NamedTuple):
    """The positive text nodes of a trained run, of unit norm.

    Attributes:
        before, after: As they enter message passing, and as they leave it, shape `[K, d]`.
        classnames: K names.
    """

    before: Tensor
    after: Tensor
    classnames: list[str]


def read_text_nodes(folder: Path) -> TextNodes:
    """Reads the text nodes of the run with this output folder.

    Raises:
        UserError: If the folder has no file of text nodes, or the file holds something else.
    """
    path = folder / TEXT_NODES
    (before, after), classnames = read_beside(path, "text nodes of a run", ("before", "after"))
    before, after = before.float(), after.float()
    if before.shape != after.shape or before.dim() != 2 or len(before) != len(classnames):
        raise UserError(f"{path}: before {list(before.shape)}, after {list(after.shape)}, {len(classnames)} classes")
    for name, nodes in (("before", before), ("after", after)):
        if not nodes.isfinite().all() or not nodes.norm(dim=1).all():
            raise UserError(f"{path}: {name} holds NaN, infinite values or rows of zeros; the file is damaged")
    return TextNodes(F.normalize(before, dim=1), F.normalize(after, dim=1), classnames)


def mean_distance(nodes: Tensor) -> float:
    """Mean Euclidean distance over all pairs of classes, of text nodes of shape `[K, d]`."""
    return torch.pdist(nodes).mean().item()


def tsne(nodes: TextNodes) -> Figure:
    """Positive text nodes before and after message passing, by one t-SNE of both with a fixed seed.

    The titles of the two panels tell the mean distance between classes.

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
    figure, axes = panels(2, width=4.2, height=4.2)
    halves = (("before", points[:k], nodes.before), ("after", points[k:], nodes.after))
    for axis, (title, xy, features) in zip(axes, halves):
        axis.scatter(xy[:, 0], xy[:, 1], s=18, color=COLOURS[2], edgecolor="black", linewidth=0.5)
        axis.set_aspect("equal")
        for name, point in zip(nodes.classnames, xy) if k <= MOST_NAMES else ():
            axis.annotate(literal(name), point, textcoords="offset points", xytext=(4, 3), fontsize=7)
        axis.set_xlabel("first t-SNE coordinate (no unit)")
        axis.set_ylabel("second t-SNE coordinate (no unit)")
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
