"""What the figures show: read from matplotlib's objects, and from the files."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tools.readme_plot import summary_curve
from trainers.hegraph.results.figures import confusion, curves, drawn, mean_distance, tsne
from trainers.hegraph.results.scores import read_quotes
from trainers.hegraph.utils.errors import UserError


def lines(axis) -> dict[str, list[float]]:
    """The accuracies of every line of a panel."""
    return {bars.get_label(): list(bars.lines[0].get_ydata()) for bars in axis.containers}


def test_curves_have_a_panel_for_the_mean_and_every_data_set(run):
    accuracies = {(shots, name): 60.0 + shots + more for name, more in (("Toy", 0), ("Zoo", 20)) for shots in (4, 1)}
    runs = [run(s, a + s, shots=shots, dataset=name) for (shots, name), a in accuracies.items() for s in (1, 3)]
    figure = curves(runs)
    mean, toy, zoo = figure.axes
    assert [axis.get_title() for axis in figure.axes] == ["mean of 2", "Toy", "Zoo"]
    assert [lines(axis)["HeGraphAdapter"] for axis in figure.axes] == [[73, 76], [63, 66], [83, 86]]
    points = [list(bars.lines[0].get_xdata()) for bars in toy.containers]  # side by side
    assert points == [pytest.approx([s * 2 ** (0.03 * beside) for s in (1, 4)]) for beside in (-1, 0, 1)]
    assert [label.get_text() for label in toy.get_xticklabels()] == ["1", "4"]
    assert (mean.get_ylabel(), zoo.get_xlabel()) == ("accuracy on test (%)", "training images per class (shots)")
    ours = next(bars for bars in zoo.containers if bars.get_label() == "HeGraphAdapter")
    [low, high], _ = (segment[:, 1] for segment in ours.lines[2][0].get_segments())
    assert (high - low) / 2 == pytest.approx(12.7062, rel=1e-4)  # 82, 84: t of 1 degree of freedom * 2**.5 / 2**.5
    names = ["zero-shot", "HeGraphAdapter(T)", "HeGraphAdapter"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == names


def test_several_backbones_and_all_images_are_refused(run):
    with pytest.raises(UserError, match="one backbone;"):
        curves([run(dataset="Zoo"), run(backbone="RN50/openai")])
    with pytest.raises(UserError, match="all images"):
        curves([run(shots=-1)])


def test_quoted_curves_are_of_the_same_task(run):
    runs = [run(shots=16, dataset="oxford_pets", backbone="RN50-quickgelu/openai")]
    [axis] = curves(runs, read_quotes("fig2")).axes
    [line] = [line for line in axis.lines if line.get_label() == "HeGraphAdapter (quoted)"]
    assert (list(line.get_xdata()), list(line.get_ydata())) == ([16], [90.24])


def test_text_nodes_are_two_panels_of_one_scale_with_names_and_distances_and_one_class_is_refused(unit_features):
    before, after = unit_features(5, 8, seed=1), F.normalize(unit_features(5, 8, seed=2) + 2, dim=1)
    figure = tsne(before, after, list("abcde"))
    left, right = figure.axes
    assert left.get_title() == f"before: mean inter-class distance {mean_distance(before):.3f}"
    assert right.get_title() == f"after: mean inter-class distance {mean_distance(after):.3f}"
    assert left.get_xlim() == right.get_xlim() == left.get_ylim()
    assert [text.get_text() for text in left.texts] == list("abcde")
    x, y = right.collections[0].get_offsets().T
    assert len(x) == 5 and list(x) != list(y)
    assert drawn(figure, "svg") == drawn(tsne(before, after, list("abcde")), "svg")
    with pytest.raises(UserError, match="one class"):
        tsne(torch.ones(1, 8), torch.ones(1, 8), ["a"])


def test_a_confusion_matrix_is_in_percent_of_the_true_class():
    figure = confusion(np.array([[1, 3], [0, 0]]), ["a", "b"])
    axis, bar = figure.axes
    assert axis.images[0].get_array().tolist() == [[25, 75], [0, 0]]
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("predicted class", "true class")
    assert {text.get_text(): text.get_color() for text in axis.texts} == {"1": "black", "3": "white"}
    assert "%" in bar.get_ylabel()


def test_readmes_plot_has_few_lines_in_colour_the_others_in_grey_and_no_background(run):
    runs = [run(1, 80.0), run(1, 70.0, dataset="Zoo"), run(1, 90.0, dataset="Zoo", shots=16)]
    runs += [run(1, 40.0, dataset=name, trainer="GDA", variant="") for name in ("Toy", "Zoo")]
    runs += [run(1, 98.0, shots=16), run(1, 60.0, dataset="Zoo", shots=64)]
    figure = summary_curve(runs, ["HeGraphAdapter", "zero-shot"], True)
    [axis] = figure.axes
    legend = [text.get_text() for text in axis.get_legend().get_texts()]
    assert legend == ["HeGraphAdapter", "zero-shot", "other methods"]
    ours = next(line for line in axis.get_lines() if line.get_label() == "HeGraphAdapter")
    assert (list(ours.get_xdata()), list(ours.get_ydata())) == ([4, 16], [75.0, 94.0])  # 64 shots: of one data set
    assert len({line.get_color() for line in axis.get_lines() if line.get_label().startswith(("_", "other"))}) == 1
    assert (axis.xaxis.label.get_color(), figure.patch.get_alpha()) == ("#E6EDF3", 0)


def test_names_are_shown_letter_by_letter(run):
    names = ["$x$", "$\\frac{$", "a $ b", "50% & _^{}\\"]  # matplotlib would refuse some of these as mathematics
    drawn(confusion(np.eye(len(names), dtype=int), names), "svg")
    drawn(curves([run(1, dataset=names[1]), run(1, dataset=names[1], trainer=names[1], variant="")]), "svg")
