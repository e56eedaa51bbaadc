"""Plots of README.md and docs/results/accuracy.md: accuracy by shots, with a few methods in colour."""

from collections.abc import Sequence

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from trainers.hegraph.results.figures import COLOURS, MARKERS, RC, cells_by_shots, label_axes, panels
from trainers.hegraph.results.scores import MEAN_OF

INK, GREY = "#1F2328", "#C8CDD2"
DARK_INK, DARK_GREY = "#E6EDF3", "#484F58"


@matplotlib.rc_context(RC)
def summary_curve(records: Sequence[dict], highlighted: Sequence[str], dark: bool = False) -> Figure:
    """Draw the mean accuracy over data sets by shots, with a few methods in colour and the others in grey.

    At numbers of shots that some data sets lack, the mean is over the other data sets. The figure has no background.

    Args:
        records: Runs with test images and one backbone.
        highlighted: Methods with coloured lines and legend entries, the most important one first.
        dark: Whether the page is dark.
    """
    cells = cells_by_shots(records)
    if len({record["dataset"] for record in records}) > 1:
        cells = cells[cells["dataset"].str.startswith(MEAN_OF)]
    figure, (axis,) = panels(1, width=6.4, height=3.8)
    ink, grey = (DARK_INK, DARK_GREY) if dark else (INK, GREY)
    _draw_methods(axis, cells, highlighted, ink, grey)
    label_axes([axis], sorted({record["shots"] for record in records}))
    axis.legend(*_entries(axis, highlighted), frameon=False, labelcolor=ink)
    for part in (figure.patch, axis.patch):
        part.set_alpha(0)
    axis.tick_params(colors=ink)
    for text in (axis.xaxis.label, axis.yaxis.label):
        text.set_color(ink)
    for spine in axis.spines.values():
        spine.set_color(grey)
    return figure


@matplotlib.rc_context(RC)
def data_set_curves(records: Sequence[dict], highlighted: Sequence[str]) -> Figure:
    """Draw the accuracy by shots with one panel per data set, on white; arguments as of `summary_curve`."""
    cells = cells_by_shots(records)
    names = sorted({record["dataset"] for record in records})
    figure, axes = panels(len(names), width=3.0, height=2.5)
    for axis, name in zip(axes, names):
        _draw_methods(axis, cells[cells["dataset"] == name], highlighted, INK, GREY)
        axis.set_title(name)
    label_axes(axes, sorted({record["shots"] for record in records}))
    figure.legend(*_entries(axes[0], highlighted), loc="outside lower center", ncols=4, frameon=False)
    return figure


def _draw_methods(axis: Axes, cells: pd.DataFrame, highlighted: Sequence[str], ink: str, grey: str) -> None:
    """Draw one line per method, the highlighted ones above the others."""
    methods = list(dict.fromkeys(cells.sort_values("row")["method"]))
    colours = [ink if colour == "#000000" else colour for colour in COLOURS]
    for name in sorted(methods, key=lambda name: highlighted.index(name) if name in highlighted else -1)[::-1]:
        shots, values = zip(*cells.loc[cells["method"] == name, ["column", "mean"]].to_numpy().tolist())
        if name in highlighted:
            i = highlighted.index(name)
            mark, width = MARKERS[i % len(MARKERS)], 2.4 if i == 0 else 1.5
            axis.plot(shots, values, color=colours[(i + 1) % len(colours)], marker=mark, linewidth=width, label=name)
        else:
            axis.plot(shots, values, color=grey, linewidth=0.9, zorder=1)
    if set(methods) - set(highlighted):
        axis.plot([], [], color=grey, linewidth=0.9, label="other methods")


def _entries(axis: Axes, highlighted: Sequence[str]) -> tuple[list, list[str]]:
    """Handles and labels of the legend, in the order of the highlighted methods."""
    entries = dict(zip(*reversed(axis.get_legend_handles_labels())))
    labels = sorted(entries, key=[*highlighted, *entries].index)
    return [entries[label] for label in labels], labels
