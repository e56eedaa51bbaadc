"""Figures: accuracy by shots, reliability diagrams, and of one run t-SNE of its text nodes and its confusion matrix;
and one HTML page with them and all tables, which needs no script and no other file.

In figures of several methods, lines differ in colour, marker and dashes, so that they can be told apart in black and
white too, and a method looks the same everywhere. Every function that draws does so by `RC`.

Shapes: K classes, d feature width.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.isotonic import isotonic_regression
from torch import Tensor

from ..datasets.splits import images_per_class
from ..utils.errors import UserError, shortened
from ..utils.files import atomic_path
from . import comparison
from .by_image import confusion_matrix, hardest_pairs
from .comparison import compare, has_calibration, on_base_classes, split_sweeps
from .records import PREDICTIONS, TEXT_NODES, find_records, find_runs, read_tensors_with_classes
from .scores import (
    BASELINES,
    MEAN_OF,
    OUR_METHOD,
    PAPER,
    PLACE,
    VARIANTS,
    ZERO_SHOT,
    grouped,
    method,
    method_order,
    place,
)
from .table import Table

# Okabe and Ito's palette, which is safe for the colour-blind, without its yellow, which is too light on white
COLOURS = ("#000000", "#D55E00", "#0072B2", "#009E73", "#E69F00", "#CC79A7", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "*", "h", "d", "8", "H")
LOOKS = {"color": COLOURS, "marker": MARKERS, "linestyle": ("-", "--", "-.", ":")}
STYLED = (*reversed(VARIANTS), *BASELINES)  # a method's position here gives its looks

MOST_LINES = 8  # with more methods, most are grey
BEST = 3  # other methods that are in colour then
MOST_NAMES = 40  # with more classes, their names would cover one another
MOST_LETTERS = 30  # of a name beside a panel
MOST_NUMBERS = 20  # with more classes, the counts would
FEWEST = 10  # images of a dot of a reliability diagram: the accuracy of fewer is chance

RC: Any = {
    "svg.hashsalt": "hegraph", "svg.fonttype": "path", "font.size": 9, "axes.grid": True, "grid.alpha": 0.3,
    "text.parse_math": False,  # a `$` in the name of a class is a `$`
}  # fmt: skip
OF_LINES: Any = {"capsize": 2, "markersize": 4.5, "linewidth": 1.3, "elinewidth": 0.8}


def save(figure: Figure, stem: Path) -> str:
    """Writes STEM.png and STEM.svg, each whole or not at all; returns a line about each."""
    for kind in ("png", "svg"):
        with atomic_path(Path(f"{stem}.{kind}")) as temporary:
            temporary.write_bytes(render(figure, kind))
    return f"wrote {stem}.png\nwrote {stem}.svg\n"


@matplotlib.rc_context(RC)
def render(figure: Figure, kind: str) -> bytes:
    """The figure as "png" or "svg"; the same figure always gives the same bytes, since the date is left out."""
    content = io.BytesIO()
    figure.savefig(content, format=kind, dpi=200, metadata={"Date": None} if kind == "svg" else None)
    return content.getvalue()


def panels(count: int, width: float = 3.4, height: float = 2.8) -> tuple[Figure, list[Axes]]:
    """An empty figure with panels, `width` by `height` inches each, in about as many rows as columns."""
    columns = math.ceil(count**0.5)
    rows = -(-count // columns)
    figure = Figure(figsize=(columns * width, rows * height), layout="constrained")
    return figure, [figure.add_subplot(rows, columns, number) for number in range(1, count + 1)]


# Accuracy by shots


@matplotlib.rc_context(RC)
def curves(records: Sequence[dict], quotes: pd.DataFrame | None = None) -> Figure:
    """Accuracy on test by shots: the mean over data sets, if there are several, then a panel for each.

    Bars are 95% intervals of the mean over seeds. The mean over data sets has only points that every data set has. The
    paper's numbers are drawn in grey. With more than `MOST_LINES` methods, HeGraphAdapter, zero-shot CLIP and the
    `BEST` others at the most shots are in colour, and the rest are grey lines with their names beside them. Errors are
    those of `cells_by_shots`.
    """
    cells = cells_by_shots(records, quotes)
    names = sorted({record["dataset"] for record in records})
    several = len(names) > 1
    names = [f"{MEAN_OF}{len(names)}", *names] if several else names
    coloured = _coloured(cells[cells["dataset"] == names[0]])
    crowded = not coloured.issuperset(cells["method"])
    width, height = (4.6, 3.4) if crowded else (3.4, 2.8)
    figure, axes = panels(len(names), width, height) if several else panels(1, width=max(5.6, width), height=3.6)
    label_axes(axes, sorted({record["shots"] for record in records}))
    for axis, name in zip(axes, names):
        of_panel = cells[cells["dataset"] == name]
        is_coloured = of_panel["quoted"] | of_panel["method"].isin(coloured)
        _draw_lines(axis, of_panel[is_coloured])
        _draw_grey(axis, of_panel[~is_coloured])
        axis.set_title(name)
    entries = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels())}
    in_a_row = max(1, int(figure.get_figwidth() // 2.1))
    figure.set_figheight(figure.get_figheight() + 0.2 * math.ceil(len(entries) / in_a_row))
    figure.legend(list(entries.values()), list(entries), loc="outside lower center", ncols=in_a_row, frameon=False)
    return figure


def cells_by_shots(records: Sequence[dict], quotes: pd.DataFrame | None = None) -> pd.DataFrame:
    """The `cells` of `compare` by shots, whose column "column" is the number of shots.

    Raises UserError if a cell would mix runs, there are several backbones, or a run has no number of shots.
    """
    if any(record["shots"] < 1 for record in records):
        raise UserError("curves are over numbers of shots; some runs have all images (-1)")
    table = compare(records, quotes=quotes)
    if several := [head for head in table.heads if head not in ("data set", "method")]:
        raise UserError(f"curves are of one {several[0]}; name runs of one")
    return table.cells.sort_values("column", kind="stable")


def _coloured(cells: pd.DataFrame) -> set[str]:
    """The methods of a panel to draw in colour, as `curves` says."""
    last = cells[~cells["quoted"]].groupby("method")["mean"].last()  # at the most shots
    if len(last) <= MOST_LINES:
        return {*last.index}
    ours = {ZERO_SHOT, *VARIANTS} & {*last.index}
    return ours | {*last.drop(list(ours)).nlargest(BEST).index}


def _draw_grey(axis: Axes, cells: pd.DataFrame) -> None:
    """Draws thin grey lines without bars, and the name of each at its right end."""
    ends = {}
    for (name,), line in grouped(cells, ["method"]):
        axis.plot(line["column"].astype(float), line["mean"], color="0.75", linewidth=0.8, label="_grey", zorder=1)
        ends[name] = line["column"].astype(float).iloc[-1], line["mean"].iloc[-1]
    if ends:
        _name_beside(axis, list(ends), np.array(list(ends.values())), size=6)


def _name_beside(axis: Axes, names: Sequence[str], points: np.ndarray, size: float, left: bool = False) -> None:
    """Writes the names of points `[N, 2]` beside the panel, in the order of their heights and none over another, each
    with a thin line to its point.
    """
    if not len(points):
        return
    order = points[:, 1].argsort(kind="stable")
    low, high = axis.get_ylim()
    inches = axis.get_figure().get_figheight() * axis.get_position().height  # type: ignore[union-attr]
    gap = 1.25 * size / 72 / inches  # of the height of the panel
    steps = gap * np.arange(len(order))
    wanted = (points[order, 1] - low) / (high - low) - steps
    heights = isotonic_regression(wanted, y_min=0, y_max=max(1 - steps[-1], 0)) + steps  # the nearest with such gaps
    for row, height in zip(order, heights):
        axis.annotate(
            names[row], points[row], (-0.02 if left else 1.02, height), xycoords="data", textcoords="axes fraction",
            fontsize=size, color="0.35", va="center", ha="right" if left else "left",
            arrowprops={"arrowstyle": "-", "color": "0.75", "linewidth": 0.4, "shrinkA": 0, "shrinkB": 2},
        )  # fmt: skip


def _draw_lines(axis: Axes, cells: pd.DataFrame) -> None:
    lines = {of[0]: line for of, line in grouped(cells[~cells["quoted"]], ["method"])}
    for number, name in enumerate(sorted(lines, key=method_order)):
        style = STYLED.index(name) if name in STYLED else sum(map(ord, name))
        looks: Any = {key: values[style % len(values)] for key, values in LOOKS.items()}
        # The methods stand side by side, so that their bars do not cover one another
        shots = lines[name]["column"].astype(float) * 2 ** (0.03 * (number - (len(lines) - 1) / 2))
        bars = lines[name]["interval"].fillna(0)
        axis.errorbar(shots, lines[name]["mean"], yerr=bars, label=name, **OF_LINES, **looks)
    for (name,), line in grouped(cells[cells["quoted"]], ["method"]):
        shots, label = line["column"].astype(float), f"{name} (quoted)"
        axis.plot(shots, line["mean"], label=label, color="0.5", marker="x", linestyle=":")


def label_axes(axes: Sequence[Axes], shots: Sequence[int]) -> None:
    """Gives panels their ticks at numbers of shots, and the names of their axes."""
    for axis in axes:
        axis.set_xscale("log", base=2)
        axis.set_xticks(shots, list(map(str, shots)))
        axis.minorticks_off()
        axis.set(xlabel="training images per class (shots)", ylabel="accuracy on test (%)")


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
        axis.set(title=name, xlabel="confidence (%)", ylabel="accuracy (%)")
        axis.set(xlim=(0, 100), ylim=(0, 100), aspect="equal")
    if axes[0].get_legend_handles_labels()[0]:
        axes[0].legend(loc="upper left", frameon=False, fontsize=7)
    return figure


def _draw_bins(axis: Axes, parts: Sequence[dict], label: str, colour: str, dashes: str) -> None:
    """Draws the bins of several runs as one: larger dots for more images. Neighbouring bins are joined until each dot
    stands for `FEWEST` images, from the most confident bin down; the last images join the dot above them.
    """
    counts, sure, right = (np.array([bins[key] for bins in parts]) for key in ("count", "confidence", "accuracy"))
    sums = [(counts * of_run).sum(axis=0) for of_run in (np.ones_like(sure), sure, right)]  # each (runs, bins)
    dots = [np.zeros(3)]
    for of_bin in np.transpose(sums)[::-1]:
        if dots[-1][0] >= FEWEST:
            dots.append(np.zeros(3))
        dots[-1] += of_bin
    if len(dots) > 1 and dots[-1][0] < FEWEST:
        dots[-2:] = [dots[-2] + dots[-1]]
    total, x, y = np.array(dots[::-1]).T
    if total.sum() < FEWEST:
        axis.text(50, 50, f"{total.sum():.0f} test images:\ntoo few to draw", ha="center", va="center", fontsize=7)
        return
    axis.plot(x / total, y / total, color=colour, linestyle=dashes, linewidth=1.2, label=label)
    axis.scatter(x / total, y / total, s=4 + 60 * total / total.sum(), color=colour, zorder=3)


# One run


def read_text_nodes(folder: Path) -> tuple[Tensor, Tensor, list[str]]:
    """Reads the positive text nodes of a run before and after message passing, of unit norm, `[K, d]`, and K names.

    Raises UserError as `read_beside`, or if they do not fit each other.
    """
    path = folder / TEXT_NODES
    (before, after), classnames = read_tensors_with_classes(path, "text nodes of a run", ("before", "after"))
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

    The titles of the two panels tell the mean distance between classes. Raises UserError if all nodes are equal, as of
    one class or of text features that are zero.
    """
    from sklearn.manifold import TSNE

    k = len(classnames)
    if k < 2:
        raise UserError("t-SNE shows distances between classes, and there is one class")
    both = torch.cat([before, after]).numpy()
    if np.ptp(both, axis=0).max() == 0:
        raise UserError("t-SNE shows distances between text nodes, and all nodes are equal; check the text features")
    perplexity = min(30.0, (len(both) - 1) / 3)  # scikit-learn's default, less for few points
    # The exact method: the approximation is faster for thousands of points only, and its threads wait for one another
    points = TSNE(perplexity=perplexity, init="pca", random_state=0, method="exact").fit_transform(both)  # (2K, 2)
    margin = 0.1 * np.ptp(points)  # room for names
    limits = points.min() - margin, points.max() + margin
    shown = [shortened(name, MOST_LETTERS) for name in classnames] if k <= MOST_NAMES else []
    longest = max(map(len, shown), default=0)
    figure, axes = panels(2, width=4.2 + 0.11 * longest, height=4.2)  # a letter is 0.055 inches wide
    for axis, name, xy, nodes in zip(axes, ("before", "after"), (points[:k], points[k:]), (before, after)):
        axis.scatter(xy[:, 0], xy[:, 1], s=18, color=COLOURS[2], edgecolor="black", linewidth=0.5)
        axis.set(xlabel="t-SNE coordinates (no unit)", xticks=[], yticks=[])
        title = f"{name}: mean inter-class distance {mean_distance(nodes):.3f}"
        axis.set(title=title, xlim=limits, ylim=limits, aspect="equal")
        if k <= MOST_NAMES:
            is_left = xy[:, 0] < np.median(xy[:, 0])
            for left, rows in ((True, is_left.nonzero()[0]), (False, (~is_left).nonzero()[0])):
                _name_beside(axis, [shown[row] for row in rows], xy[rows], size=7, left=left)
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


# The page

TEMPLATE = Path(__file__).parent / "page.html"

Piece = dict[str, Any]  # what the template shows: a table, an image, a list, or why there is none


def write_report(sources: Sequence[Path], out: Path) -> None:
    """Writes the page, whole or not at all, with a part for each source: an output folder or a file of `collect`.

    Raises UserError if a source has no record, or the file cannot be written.
    """
    # Everything that stands in a page comes from data, and is escaped
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    page = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    parts = []
    for source in sources:
        records = find_records([source])
        pieces = [*_of_records(records), *(_of_last_run(find_runs([source])) if source.is_dir() else ())]
        parts.append({"name": source.resolve().name, "pieces": pieces, "facts": _facts(records)})
    with atomic_path(out) as temporary:
        temporary.write_text(page.render(parts=parts), encoding="utf-8")


def _of_records(records: Sequence[dict]) -> Iterator[Piece]:
    # Sweeps, runs with targets and runs on base classes have tables of their own, so that none of them is averaged
    # with runs of the usual setting
    scored = [record for record in records if record["accuracy"] is not None]
    base = [record for record in scored if on_base_classes(record)]
    away = [record for record in scored if record.get("targets") and not on_base_classes(record)]
    plain, sweeps = split_sweeps([r for r in scored if not r.get("targets") and not on_base_classes(r)])
    if plain:
        several = (key for key in ("shots", *PLACE) if len({place(record)[key] for record in plain}) > 1)
        yield _shown(partial(compare, plain, next(several, "shots")))
    if len({record["shots"] for record in plain}) > 1:
        alt = "Accuracy on test by shots, a line per method; the numbers are in the table above"
        yield _shown(lambda: curves(plain), alt=alt, caption="Accuracy by shots; bars are 95% intervals over seeds.")
    for sweep in sweeps:
        yield _shown(partial(compare, sweep, "setting"))
    for rule in sorted({str(test.get("rule")) for record in away for test in record["targets"].values()}):
        runs = [r for r in away if rule in {str(test.get("rule")) for test in r["targets"].values()}]
        yield _shown(partial(compare, runs, "target"))
    if base:
        yield _shown(lambda: comparison.base_to_new(base))
    if any(map(comparison.has_times, plain)):
        yield _shown(lambda: comparison.complexity(plain))
    if any(map(has_calibration, plain)):
        alt = "Accuracy by confidence, a panel per method; the calibration errors are in the table above"
        caption = f"Reliability diagrams; the diagonal is perfect. A dot stands for {FEWEST} test images or more."
        yield _shown(lambda: comparison.calibration_table(plain))
        yield _shown(lambda: reliability_diagrams(plain), alt=alt, caption=caption)


def _of_last_run(runs: dict[Path, dict]) -> Iterator[Piece]:
    """Text nodes and confusions of one run: the full run on all classes with the most shots and, of several, the last
    one, since the best one would be chosen on test.
    """
    full = [folder for folder, r in runs.items() if method(r) in (OUR_METHOD, PAPER) and not on_base_classes(r)]
    if not full:
        return
    folder = max(full, key=lambda folder: (runs[folder]["shots"], runs[folder].get("finished_at") or ""))
    record = runs[folder]
    name = f"{record['dataset']}, {record['backbone']}, {_sample(record, ' shots')}, seed {record['seed']}"
    if (folder / TEXT_NODES).exists():
        caption = f"Positive text nodes before and after, {name}; t-SNE of both together."
        alt = "Two panels of points, one per class: text nodes before and after"
        yield _shown(lambda: tsne(*read_text_nodes(folder)), alt=alt, caption=caption)
    if (folder / PREDICTIONS).exists():
        found = confusion_matrix(folder)
        alt = "Matrix of true by predicted classes; the pairs that are confused most are listed below"
        yield _shown(lambda: confusion(*found), alt=alt, caption=f"Confusion matrix on test, {name}.")
        yield {"pairs": hardest_pairs(*found)}


def _facts(records: Sequence[dict]) -> dict[str, str]:
    """How the numbers came about: for each fact all values that the records have."""
    versions = [record.get("versions") or {} for record in records]
    facts: dict[str, set] = {
        "runs": {len(records)},
        "methods": {method(record) for record in records},
        "data sets": {f"{record['dataset']} ({record['num_test']} test images)" for record in records},
        "backbones": {record["backbone"] for record in records},
        "training images per class": {_sample(record) for record in records},
        "seeds": {record["seed"] for record in records},
        "chosen on": {record["selected_on"].replace("_", " ") for record in records},
        "versions": {", ".join(f"{name} {number}" for name, number in of.items()) or "unknown" for of in versions},
        "commits": {record.get("git_commit") or "unknown" for record in records},
        "machines": {comparison.machine(record) for record in records},
    }
    return {name: "; ".join(map(str, sorted(values))) for name, values in facts.items()}


def _sample(record: dict, unit: str = "") -> str:
    """The number of training images per class of a record, in words."""
    return f"{record['shots']}{unit}{images_per_class(record['shots'], record.get('images_per_class'))}"


def _shown(make: Callable[[], Table | Figure], **about: str) -> Piece:
    """A table or a figure or, if it cannot be made, the reason; `about` is a figure's caption and the text for it."""
    try:
        made = make()
    except UserError as error:
        return {"refused": str(error)}
    if isinstance(made, Table):
        rows = made.shown(Markup("<strong>{}</strong>").format)
        return {"heads": made.heads, "columns": made.columns.values(), "rows": rows, "caption": made.caption}
    return {"image": base64.b64encode(render(made, "svg")).decode(), **about}
