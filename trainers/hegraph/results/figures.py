"""Figures of results: accuracy by shots, reliability diagrams, text nodes by t-SNE, and confusion matrices.

Lines of methods differ in colour, marker and dashes, so that they are readable in black and white.

Shapes: K classes, d feature width.
"""

import io
import logging
import math
import textwrap
import unicodedata
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from sklearn.isotonic import isotonic_regression
from torch import Tensor

from ..utils.errors import UserError
from ..utils.files import atomic_path
from ..utils.text import shortened
from .comparison import compare, has_calibration
from .records import TEXT_NODES, read_tensors_with_classes
from .scores import MEAN_OF, VARIANTS, ZERO_SHOT, data_set, grouped, method, method_order, metric

logger = logging.getLogger(__name__)

# Palette of Okabe and Ito for colour-blind readers, without yellow, which is too light on white
COLOURS = ("#000000", "#D55E00", "#0072B2", "#009E73", "#E69F00", "#CC79A7", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "*", "h", "d", "8", "H")
STYLES = {"color": COLOURS, "marker": MARKERS, "linestyle": ("-", "--", "-.", ":")}

NAME_SIZE = 7  # points, of names next to a panel
MAX_LINES = 8  # with more methods, only some are in colour
BEST = 3  # number of baselines in colour then
MAX_NAMES = 40  # classes whose names fit without overlap
MAX_NAME_WIDTH = 40  # Latin letters of a name next to a panel, in all its lines
LETTER = 0.075  # inches, mean width of a character of the labels
MAX_BROKEN = 20  # classes whose names have space for two lines
MAX_COUNTS = 20  # classes whose counts fit into a confusion matrix
MIN_IMAGES = 10  # images per dot of a reliability diagram

# Fonts in order of preference. The first one comes with matplotlib, the others have Chinese, Japanese and Korean
FAMILIES = (
    "DejaVu Sans", "Noto Sans CJK SC", "Noto Sans CJK JP", "Source Han Sans SC", "WenQuanYi Zen Hei",
    "WenQuanYi Micro Hei", "Droid Sans Fallback", "Microsoft YaHei", "PingFang SC", "Hiragino Sans GB",
    "Arial Unicode MS",
)  # fmt: skip
INSTALLED = [name for name in FAMILIES if name in font_manager.get_font_names()]

RC: Any = {  # matplotlib's settings for all figures
    "svg.hashsalt": "hegraph", "svg.fonttype": "path", "font.size": 9, "axes.grid": True, "grid.alpha": 0.3,
    "font.family": INSTALLED,
    "text.parse_math": False,  # class names may hold `$`
}  # fmt: skip
LINE_STYLE: Any = {"capsize": 2, "markersize": 4.5, "linewidth": 1.3, "elinewidth": 0.8}
GREY_LINE: Any = {"color": "0.5", "alpha": 0.5, "linewidth": 0.8, "zorder": 1}  # of methods without a style


def save(figure: Figure, stem: Path) -> str:
    """Write STEM.png and STEM.svg atomically, and return a line of text for each.

    Logs a warning about characters that no installed font has.
    """
    for kind in ("png", "svg"):
        with atomic_path(Path(f"{stem}.{kind}")) as temporary:
            temporary.write_bytes(render(figure, kind))
    missing = missing_characters(figure)
    if missing:
        message = "no installed font has %s, which %s.png and .svg show as boxes; install one, such as Noto Sans CJK"
        logger.warning(message, " ".join(missing[:5]), stem)
    return f"wrote {stem}.png\nwrote {stem}.svg\n"


def missing_characters(figure: Figure) -> list[str]:
    """Characters in the texts of a drawn figure that no installed font of `FAMILIES` has, in order."""
    drawable: set[int] = set()
    for name in INSTALLED:
        drawable |= font_manager.get_font(font_manager.findfont(name)).get_charmap().keys()
    texts = [text.get_text() for text in figure.findobj(Text)]
    return sorted(c for c in set("".join(texts)) if c.isprintable() and ord(c) not in drawable)


@matplotlib.rc_context(RC)
def render(figure: Figure, kind: str) -> bytes:
    """Render a figure as "png" or "svg"; equal figures have equal bytes, without a date."""
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # `save` names missing characters
        figure.savefig(content, format=kind, dpi=200, metadata={"Date": None} if kind == "svg" else None)
    return content.getvalue()


@matplotlib.rc_context(RC | {"svg.fonttype": "none"})
def render_for_page(figure: Figure) -> bytes:
    """Render a figure as SVG without a background. Its text stays text, which the fonts of the browser draw."""
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        figure.savefig(content, format="svg", transparent=True, metadata={"Date": None})
    return content.getvalue()


def text_width(text: str) -> int:
    """Width of a text in Latin letters; Chinese, Japanese and Korean characters count twice."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def fit_name(name: str, is_broken: bool) -> str:
    """Shorten a name to `MAX_NAME_WIDTH`, or to half of it without a break, and break a long one into two lines."""
    most = MAX_NAME_WIDTH if is_broken else MAX_NAME_WIDTH // 2 + 10
    letters = max(len(name) * most // max(text_width(name), 1), 8)
    text = shortened(name, letters)
    if not is_broken or text_width(text) <= most // 2:
        return text
    middle = len(text) / 2
    spaces = [place for place, letter in enumerate(text) if letter == " "]
    best = min(spaces, key=lambda place: abs(place - middle), default=-1)
    if best >= 0 and abs(best - middle) <= len(text) / 4:
        return f"{text[:best]}\n{text[best + 1 :]}"
    return f"{text[: math.ceil(middle)]}\n{text[math.ceil(middle) :]}"


def name_width(names: Sequence[str]) -> int:
    """Width of the longest line of names, in Latin letters."""
    lines = "\n".join(names).split("\n")
    return max(map(text_width, lines))


def panels(count: int, width: float = 3.4, height: float = 2.8) -> tuple[Figure, list[Axes]]:
    """Create an empty figure with panels of `width` by `height` inches, in a grid that is as square as possible."""
    columns = math.ceil(count**0.5)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(columns * width, rows * height), layout="constrained")
    return figure, [figure.add_subplot(rows, columns, number) for number in range(1, count + 1)]


# Accuracy by shots


@matplotlib.rc_context(RC)
def curves(records: Sequence[dict], quotes: pd.DataFrame | None = None) -> Figure:
    """Draw the test accuracy by shots, with a panel for the mean over data sets and one for each data set.

    Bars are 95% intervals of the mean over seeds. The mean over data sets has points where all data sets have one. The
    paper's numbers are dotted. With more than `MAX_LINES` methods, HeGraphAdapter, zero-shot CLIP and the `BEST`
    baselines at the largest number of shots are in colour. The others are thin grey lines, named below the panels.

    Raises:
        UserError: If runs of a cell are not comparable, have several backbones or protocols, or used all images.
    """
    cells = cells_by_shots(records, quotes)
    names = sorted(set(map(data_set, records)))
    several = len(names) > 1
    names = [f"{MEAN_OF}{len(names)}", *names] if several else names
    coloured = _coloured(cells[cells["dataset"] == names[0]])
    figure, axes = panels(len(names), width=4.6, height=3.4) if several else panels(1, width=5.6, height=3.6)
    label_axes(axes, sorted({record["shots"] for record in records}), metric(records))
    for axis, name in zip(axes, names):
        lines = draw_lines(axis, cells[cells["dataset"] == name], line_styles(coloured))
        _label_points(axis, *lines)
        axis.set_title(name)
    if grey := sorted({*cells.loc[~cells["quoted"], "method"]} - coloured):
        text = textwrap.fill(f"grey: {', '.join(grey)}", int(15 * figure.get_figwidth()))
        figure.supxlabel(text, fontsize=8, color="0.35")
    return figure


def cells_by_shots(records: Sequence[dict], quotes: pd.DataFrame | None = None) -> pd.DataFrame:
    """Cells of `compare` by shots; their "column" is the number of shots.

    Raises:
        UserError: If runs of a cell are not comparable, have several backbones or protocols, or used all images.
    """
    if any(record["shots"] < 1 for record in records):
        raise UserError("expected runs with a number of shots, got runs with all images (-1); name few-shot runs")
    table = compare(records, quotes=quotes)
    if several := [head for head in table.heads if head not in ("data set", "method")]:
        raise UserError(f"expected runs with one {several[0]}, got several; name runs with one {several[0]}")
    return table.cells.sort_values("column", kind="stable")


def _coloured(cells: pd.DataFrame) -> set[str]:
    """Methods of a panel that `curves` draws in colour."""
    last = cells[~cells["quoted"]].groupby("method")["mean"].last()  # at the largest number of shots
    if len(last) <= MAX_LINES:
        return {*last.index}
    always = {ZERO_SHOT, *VARIANTS} & {*last.index}
    return always | {*last.drop(list(always)).nlargest(BEST).index}


def line_styles(methods: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Style of the line of each method, HeGraphAdapter first."""
    ordered = sorted(methods, key=method_order, reverse=True)
    styles = {}
    for i, name in enumerate(ordered):
        styles[name] = {key: values[i % len(values)] for key, values in STYLES.items()}
    return styles


def draw_lines(
    axis: Axes, cells: pd.DataFrame, styles: Mapping[str, Mapping[str, Any]]
) -> tuple[list[str], np.ndarray, list[str]]:
    """Draw a line for each method in a panel; those without a style are thin and grey, quoted numbers are dotted.

    Returns:
        Names, last points `[N, 2]` and colours of the N other lines.
    """
    names: list[str] = []
    ends: list[tuple[float, float]] = []
    colours: list[str] = []
    has_bars = cells["interval"].notna().any()
    for (name, is_quoted), line in grouped(cells, ["method", "quoted"]):
        shots = line["column"].astype(float)
        means = line["mean"]
        if not is_quoted and name not in styles:
            axis.plot(shots, means, **GREY_LINE)
            continue
        style: Any = {"color": "0.5", "marker": "x", "linestyle": ":"} if is_quoted else styles[name]
        bars = None
        if has_bars and not is_quoted:  # shift methods, so that their bars do not overlap
            bars = line["interval"].fillna(0)
            shots = shots * 2 ** (0.03 * ((len(styles) - 1) / 2 - [*styles].index(name)))
        names.append(f"{name} (quoted)" if is_quoted else name)
        axis.errorbar(shots, means, yerr=bars, label=names[-1], **LINE_STYLE, **style)
        ends.append((shots.iloc[-1], means.iloc[-1]))
        colours.append(style["color"])
    return names, np.array(ends), colours


def _label_points(
    axis: Axes, names: Sequence[str], points: np.ndarray, colours: Sequence[str], left: bool = False
) -> None:
    """Write the names of points next to the panel without overlap, each with a thin line to its point.

    Args:
        axis: The panel.
        names: N names.
        points: Points, shape `[N, 2]`.
        colours: Colours of the lines.
        left: Whether the names are on the left of the panel.
    """
    if not len(points):
        return
    order = points[:, 1].argsort(kind="stable")
    low, high = axis.get_ylim()
    inches = axis.get_figure().get_figheight() * axis.get_position().height  # type: ignore[union-attr]
    lines = max(name.count("\n") + 1 for name in names)
    gap = 1.25 * lines * NAME_SIZE / 72 / inches  # as a share of the panel's height
    steps = gap * np.arange(len(order))
    targets = (points[order, 1] - low) / (high - low) - steps
    # The nearest heights with these gaps
    heights = isotonic_regression(targets, y_min=0, y_max=max(1 - steps[-1], 0)) + steps
    for row, height in zip(order, heights):
        line = {"arrowstyle": "-", "color": colours[row], "linewidth": 0.6, "shrinkA": 0, "shrinkB": 2}
        axis.annotate(
            names[row], points[row], (-0.03 if left else 1.03, height), xycoords="data", textcoords="axes fraction",
            fontsize=NAME_SIZE, va="center", ha="right" if left else "left",
            arrowprops=line | {"relpos": (float(left), 0.5)},
        )  # fmt: skip


def label_axes(axes: Sequence[Axes], shots: Sequence[int], metric: str = "accuracy") -> None:
    """Set the ticks of panels to numbers of shots, and label their axes."""
    for axis in axes:
        axis.set_xscale("log", base=2)
        axis.set_xticks(shots, list(map(str, shots)))
        axis.minorticks_off()
        axis.set(xlabel="training images per class (shots)", ylabel=f"{metric} on test (%)")


# Calibration


@matplotlib.rc_context(RC)
def reliability_diagrams(records: Sequence[dict]) -> Figure:
    """Draw accuracy by confidence before and after calibration, with a panel per method.

    A panel covers the method's test images of all data sets, shots and seeds.

    At least one record has calibration scores; the others are skipped.
    """
    calibrated = list(filter(has_calibration, records))
    names = sorted({method(record) for record in calibrated}, key=method_order)
    figure, axes = panels(len(names), width=2.8, height=2.8)
    for axis, name in zip(axes, names):
        parts = [record["calibration"] for record in calibrated if method(record) == name]
        axis.plot([0, 100], [0, 100], color="0.6", linewidth=0.8)
        _draw_bins(axis, [part["before"]["bins"] for part in parts], "before", COLOURS[1], "--")
        _draw_bins(axis, [part["after"]["bins"] for part in parts], "calibrated", COLOURS[2], "-")
        axis.set(title=name, xlabel="confidence (%)", ylabel="accuracy (%)")
        axis.set(xlim=(0, 100), ylim=(0, 100), aspect="equal")
    axes[0].legend(loc="upper left", frameon=False, fontsize=7)
    return figure


def _draw_bins(axis: Axes, parts: Sequence[dict], label: str, colour: str, dashes: str) -> None:
    """Draw accuracy by confidence from the bins of several runs; larger dots have more images.

    From the most confident bin on, neighbouring bins are merged until a dot has `MIN_IMAGES` images. A smaller rest is
    merged with the dot above it.
    """
    counts = np.array([bins["count"] for bins in parts])  # [runs, bins], as are the next two
    confidence = np.array([bins["confidence"] for bins in parts])
    accuracy = np.array([bins["accuracy"] for bins in parts])
    sums = np.stack([counts.sum(axis=0), (counts * confidence).sum(axis=0), (counts * accuracy).sum(axis=0)], axis=1)
    dots = [np.zeros(3)]  # number of images, and sums of their confidence and accuracy
    for bin_sums in sums[::-1]:
        if dots[-1][0] >= MIN_IMAGES:
            dots.append(np.zeros(3))
        dots[-1] += bin_sums
    if len(dots) > 1 and dots[-1][0] < MIN_IMAGES:
        dots[-2:] = [dots[-2] + dots[-1]]
    total, confidence_sums, accuracy_sums = np.array(dots[::-1]).T
    x = confidence_sums / total
    y = accuracy_sums / total
    axis.plot(x, y, color=colour, linestyle=dashes, linewidth=1.2, label=label)
    axis.scatter(x, y, s=4 + 60 * total / total.sum(), color=colour, zorder=3)


# One run


def read_text_nodes(folder: Path) -> tuple[Tensor, Tensor, list[str]]:
    """Read the positive text nodes of a run before and after message passing.

    Returns:
        The nodes before and after, each `[K, d]` of unit norm, and the K class names.

    Raises:
        UserError: If the run has no text nodes, or the file is damaged.
    """
    path = folder / TEXT_NODES
    (before, after), classnames = read_tensors_with_classes(path, "text nodes of a run", ("before", "after"))
    if before.shape != after.shape or before.dim() != 2 or len(before) != len(classnames):
        shapes = f"before {list(before.shape)}, after {list(after.shape)}"
        raise UserError(f"{path}: expected nodes [K, d] of {len(classnames)} classes, got {shapes}")
    if not torch.cat([before, after]).isfinite().all():
        raise UserError(f"{path} holds NaN or infinite values; the file is damaged")
    return F.normalize(before.float(), dim=1), F.normalize(after.float(), dim=1), classnames


def mean_distance(nodes: Tensor) -> float:
    """Mean Euclidean distance between the text nodes of two classes, from nodes `[K, d]`."""
    return torch.pdist(nodes).mean().item()


@matplotlib.rc_context(RC)
def tsne(before: Tensor, after: Tensor, classnames: Sequence[str]) -> Figure:
    """Draw the text nodes before and after message passing, with one t-SNE of both and a fixed seed.

    The title of each panel has the mean distance between classes.

    Args:
        before, after: Text nodes, shape `[K, d]`.
        classnames: The K class names.

    Raises:
        UserError: If there is a single class, or all nodes are equal.
    """
    from sklearn.manifold import TSNE

    k = len(classnames)
    if k < 2:
        raise UserError("t-SNE needs at least two classes, got one class; name a run with more")
    both = torch.cat([before, after]).numpy()
    if np.ptp(both, axis=0).max() == 0:
        raise UserError("t-SNE needs different text nodes, but all nodes are equal; check the text features")
    perplexity = min(30.0, (len(both) - 1) / 3)  # scikit-learn's default, less for few points
    # method="exact", because the approximation is faster for thousands of points only
    points = TSNE(perplexity=perplexity, init="pca", random_state=0, method="exact").fit_transform(both)  # [2K, 2]
    margin = 0.1 * np.ptp(points)
    limits = points.min() - margin, points.max() + margin
    names = [fit_name(name, k <= MAX_BROKEN) for name in classnames] if k <= MAX_NAMES else []
    longest = name_width(names)
    figure, axes = panels(2, width=4.2 + 0.11 * longest, height=4.2)  # a letter is 0.055 inches wide
    for axis, name, xy, nodes in zip(axes, ("before", "after"), (points[:k], points[k:]), (before, after)):
        axis.scatter(xy[:, 0], xy[:, 1], s=18, color=COLOURS[2], edgecolor="black", linewidth=0.5)
        axis.set(xlabel="t-SNE coordinates (no unit)", xticks=[], yticks=[])
        title = f"{name}: mean inter-class distance {mean_distance(nodes):.3f}"
        axis.set(title=title, xlim=limits, ylim=limits, aspect="equal")
        is_left = xy[:, 0] < np.median(xy[:, 0])
        for left in (True, False) if names else ():
            rows = (is_left == left).nonzero()[0]
            _label_points(axis, [names[row] for row in rows], xy[rows], ["0.75"] * len(rows), left)
    return figure


@matplotlib.rc_context(RC)
def confusion(matrix: np.ndarray, classnames: Sequence[str]) -> Figure:
    """Draw a confusion matrix in shades of grey, in percent of the test images of each true class (row).

    Cells have their numbers of images up to `MAX_COUNTS` classes, and rows and columns their names up to `MAX_NAMES`.

    Args:
        matrix: Number of test images by true and predicted class, shape `[K, K]`.
        classnames: The K class names.
    """
    k = len(classnames)
    percent = 100 * matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    names = [fit_name(name, k <= MAX_BROKEN) for name in classnames] if k <= MAX_NAMES else []
    side = min(4 + 0.22 * k, 9)
    longest = LETTER * name_width(names)
    figure, (axis,) = panels(1, width=side + longest, height=0.85 * side + longest)
    image = axis.imshow(percent, cmap="Greys", vmin=0, vmax=100, interpolation="nearest")
    axis.grid(False)
    if names:
        axis.set_xticks(range(k), names, rotation=90)
        axis.set_yticks(range(k), names)
    for (row, column), count in np.ndenumerate(matrix):
        if count and k <= MAX_COUNTS:
            colour = "white" if percent[row, column] > 50 else "black"
            axis.text(column, row, str(count), ha="center", va="center", color=colour, fontsize=7)
    axis.set(xlabel="predicted class", ylabel="true class")
    figure.colorbar(image, label="of the images of the true class (%)", shrink=0.8)
    return figure
