"""Plots of README.md and docs/results/accuracy.md: accuracy by shots, with a few methods in colour."""

import math
from collections.abc import Collection, Sequence

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from trainers.hegraph.results.figures import (
    COLOURS,
    GREY_LINE,
    RC,
    cells_by_shots,
    draw_lines,
    label_axes,
    line_styles,
    panels,
)
from trainers.hegraph.results.scores import MEAN_OF, data_set

LIGHT, DARK = "#1F2328", "#E6EDF3"  # colours of the text on light and dark pages of GitHub


@matplotlib.rc_context(RC)
def summary_curve(records: Sequence[dict], highlighted: Collection[str], dark: bool = False) -> Figure:
    """Draw the mean accuracy over data sets by shots, with a few methods in colour and the others in grey.

    At numbers of shots that some data sets lack, the mean is over the other data sets. The figure has no background.

    Args:
        records: Runs of several data sets with test images and one backbone.
        highlighted: Methods with coloured lines and legend entries.
        dark: Whether the page is dark.
    """
    cells, ink = cells_by_shots(records), DARK if dark else LIGHT
    keys = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    with matplotlib.rc_context(dict.fromkeys(keys, ink) | {"figure.facecolor": "none", "axes.facecolor": "none"}):
        figure, (axis,) = panels(1, width=6.4, height=3.8)
        entries = _draw_methods(axis, cells[cells["dataset"].str.startswith(MEAN_OF)], highlighted)
        label_axes([axis], sorted({record["shots"] for record in records}))
        for line in axis.get_lines():
            if line.get_color() == COLOURS[0]:  # black
                line.set_color(ink)
        axis.legend(*entries, frameon=False)
    return figure


@matplotlib.rc_context(RC)
def data_set_curves(records: Sequence[dict], highlighted: Collection[str]) -> Figure:
    """Draw the accuracy by shots with one panel per data set, on white; arguments as of `summary_curve`."""
    cells = cells_by_shots(records)
    names = sorted(set(map(data_set, records)))
    figure, axes = panels(len(names), width=3.0, height=2.5)
    for axis, name in zip(axes, names):
        entries = _draw_methods(axis, cells[cells["dataset"] == name], highlighted)
        axis.set_title(name)
    label_axes(axes, sorted({record["shots"] for record in records}))
    figure.legend(*entries, loc="outside lower center", ncols=4, frameon=False)
    return figure


def _draw_methods(axis: Axes, cells: pd.DataFrame, highlighted: Collection[str]) -> tuple[list, list[str]]:
    """Draw one line per method without intervals; returns handles and labels of the legend, our method first."""
    axis.plot([], [], label="other methods", **GREY_LINE)
    draw_lines(axis, cells.assign(interval=math.nan), line_styles(highlighted))
    handles, labels = axis.get_legend_handles_labels()
    return handles[::-1], labels[::-1]
