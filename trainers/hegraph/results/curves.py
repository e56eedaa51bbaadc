"""Accuracy by shots as a figure: a panel for each data set, a line for each method.

Lines differ in colour, marker and dashes, so that they can be told apart in black and white too. A method looks the
same in every figure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..utils.errors import UserError
from .cells import Key, add_mean_place, make_cells, observe
from .figures import COLOURS, literal, panels
from .methods import BASELINES, VARIANTS, method_order, place
from .paper import AVERAGE, Quote, is_average_over, same_backbone, same_dataset
from .table import Cell

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "*", "h", "d", "8", "H")
DASHES = ("-", "--", "-.", ":")
STYLED = (*reversed(VARIANTS), *BASELINES)  # a method's position here gives its style


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
    if len(backbones := sorted({record["backbone"] for record in records})) > 1:
        raise UserError(f"curves are of one backbone, not of {', '.join(backbones)}; name runs of one")
    if any(record["shots"] < 1 for record in records):
        raise UserError("curves are over numbers of shots; some runs have all images (-1)")
    cells = make_cells(o for record in records for o in observe(record, place(record, ("dataset",)), record["shots"]))
    datasets = list(dict.fromkeys(where[0] for where, _, _ in cells))
    quoted = _by_panel([quote for quote in quotes if same_backbone(quote.backbone, backbones[0])], datasets)
    if len(datasets) > 1:
        add_mean_place(cells, 0)
    figure, axes = panels(len(quoted)) if len(quoted) > 1 else panels(1, width=5.6, height=3.6)
    for axis, name in zip(axes, quoted):
        _draw_curves(axis, {key: cell for key, cell in cells.items() if key[0] == (name,)})
        _draw_quotes(axis, quoted[name])
        axis.set_title(literal(name))
    _label_axes(axes, sorted({record["shots"] for record in records}))
    _add_legend(figure, axes)
    return figure


def style(name: str) -> dict[str, Any]:
    """The colour, marker and dashes of a method, as matplotlib's `plot` takes them."""
    index = STYLED.index(name) if name in STYLED else len(STYLED) + sum(map(ord, name))
    return {
        "color": COLOURS[index % len(COLOURS)],
        "marker": MARKERS[index % len(MARKERS)],
        "linestyle": DASHES[index % len(DASHES)],
    }


def _by_panel(quotes: Sequence[Quote], datasets: Sequence[str]) -> dict[str, list[Quote]]:
    """The titles of the panels in order, each with the numbers that are quoted there."""
    quoted: dict[str, list[Quote]] = {}
    if len(datasets) > 1:
        known = quotes if is_average_over(quotes, datasets) else []
        quoted[f"mean of {len(datasets)}"] = [quote for quote in known if quote.dataset == AVERAGE]
    for name in datasets:
        quoted[name] = [quote for quote in quotes if same_dataset(quote.dataset, name)]
    return quoted


def _draw_curves(axis: Axes, cells: Mapping[Key, Cell]) -> None:
    names = sorted({key[1] for key in cells}, key=method_order)
    for number, name in enumerate(names):
        found: dict[Any, Cell] = {key[2]: cell for key, cell in cells.items() if key[1] == name}
        points = sorted(found.items())
        # The methods stand side by side, so that their bars do not cover one another
        shots = [shots * 2 ** (0.03 * (number - (len(names) - 1) / 2)) for shots, _ in points]
        axis.errorbar(
            shots,
            [cell.mean for _, cell in points],
            yerr=[cell.interval or 0 for _, cell in points],
            label=literal(name),
            capsize=2,
            markersize=4.5,
            linewidth=1.3,
            elinewidth=0.8,
            **style(name),
        )


def _draw_quotes(axis: Axes, quotes: Sequence[Quote]) -> None:
    for method in dict.fromkeys(quote.method for quote in quotes):
        points = sorted({quote.shots: quote.value for quote in quotes if quote.method == method}.items())
        axis.plot(*zip(*points), color="0.5", marker="x", linestyle=":", label=f"{method} (quoted)")


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
