"""Plot of README.md: accuracy by shots on banks with real text, for light and dark pages."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
from matplotlib.figure import Figure

from trainers.hegraph.results.figures import COLOURS, MARKERS, RC, cells_by_shots, label_axes, panels
from trainers.hegraph.results.scores import MEAN_OF


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
    methods = list(dict.fromkeys(cells.sort_values("row")["method"]))
    figure, (axis,) = panels(1, width=6.4, height=3.8)
    ink, grey = ("#E6EDF3", "#484F58") if dark else ("#1F2328", "#C8CDD2")
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
    label_axes([axis], sorted({record["shots"] for record in records}))
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
