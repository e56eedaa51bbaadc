"""What the figures show, read from matplotlib's objects, and their page: one file, and nothing that is loaded."""

from __future__ import annotations

import html
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from trainers.hegraph.results.figures import confusion, curves, drawn, mean_distance, tsne, write_report
from trainers.hegraph.results.records import PREDICTIONS, TEXT_NODES, write_beside, write_record
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


def test_names_are_shown_letter_by_letter(run):
    names = ["$x$", "$\\frac{$", "a $ b", "50% & _^{}\\"]  # matplotlib would refuse some of these as mathematics
    drawn(confusion(np.eye(len(names), dtype=int), names), "svg")
    drawn(curves([run(1, dataset=names[1]), run(1, dataset=names[1], trainer=names[1], variant="")]), "svg")


# The page


def read(file: Path) -> tuple[list[tuple[str, dict]], str]:
    """The tags of a page with their attributes, and what it says."""
    source = file.read_text(encoding="utf-8")
    tags = [(tag, dict(re.findall(r'(\w+)="([^"]*)"', rest))) for tag, rest in re.findall(r"<(\w+)([^>]*)>", source)]
    return tags, html.unescape(re.sub(r"<[^>]*>", "", source))


@pytest.fixture(scope="module")
def report(tmp_path_factory, run, calibration) -> Path:
    """The page of runs of several kinds, which confuse two classes more often the later they stand here."""
    tmp_path = tmp_path_factory.mktemp("page")
    told = {
        "seconds": {"training": 1.0}, "epochs": 2, "device": "cpu", "threads": 2, "finished_at": "2026-01-01",
        "calibration": calibration(temperature=0.625), "num_test": 27,
    }  # fmt: skip
    there = {"accuracy": 60.0, "accuracy_zero_shot": 40.0, "num_test": 9, "num_classes": 3, "rule": "same classes"}
    base = {"config": {"DATASET.SUBSAMPLE_CLASSES": "base"}, "targets": {"Toy:new": there | {"rule": "other classes"}}}
    runs = {
        "four": run(**told),
        "sixteen": run(1, 90.0, shots=16, **told),
        "sixteen, earlier": run(2, 91.0, shots=16, **told | {"finished_at": "2025-01-01"}),
        "swept": run(1, 70.0, {"TRAINER.X.ALPHA": 2}, **told),
        "elsewhere": run(targets={"Toy2": there}, **told),
        "base": run(shots=16, **base, **told | {"num_test": 13, "finished_at": "2027-01-01"}),
    }
    names, nodes = ["<cat>", "dog", "a class with a rather long name"], torch.randn(2, 3, 8)
    for wrong, (name, record) in enumerate(runs.items(), 1):
        folder = tmp_path / "<runs> & more" / name
        predicted = torch.tensor([1] * wrong + [0] * (9 - wrong) + [1] * 9 + [2] * 9)
        write_record(folder, record)
        write_beside(folder / PREDICTIONS, names, predicted=predicted, labels=torch.arange(3).repeat_interleave(9))
        write_beside(folder / TEXT_NODES, names, before=nodes[0], after=nodes[1].clone())
    write_report([tmp_path / "<runs> & more"], tmp_path / "out" / "report.html")
    return tmp_path / "out" / "report.html"


def test_it_is_one_file_that_loads_nothing_and_runs_no_script(report):
    tags, text = read(report)
    for tag, attributes in tags:
        assert tag not in ("script", "link", "iframe", "object", "embed", "base")
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "srcset", "data", "poster", "action"):
            assert attributes.get(name, "data:").startswith("data:"), (tag, attributes)
    assert "url(" not in text and "@import" not in text  # the style is part of it
    assert str(report.parents[1]) not in report.read_text(encoding="utf-8")


def test_it_shows_tables_of_each_kind_of_runs_apart_and_figures_with_a_text_in_their_place(report):
    tags, text = read(report)
    assert [tag for tag, _ in tags].count("table") == 6
    images = [attributes for tag, attributes in tags if tag == "img"]
    assert [len(image["alt"]) > 20 for image in images] == [True] * 4  # curves, reliability, nodes, confusions
    for words in (
        "<runs> & more", "Accuracy on test (%) by shots", "by setting", "targets with same classes",
        "base and new classes", "What training takes", "0.62", "ALPHA=2", "90.50 ± 6.35",
        "cpu, 2 threads", "Toy (13 test images); Toy (27 test images)",
        # of the last run of the most shots on all classes
        "text nodes before and after, Toy, mini/mini, 16 shots, seed 1;",
        "Confusion matrix on test, Toy, mini/mini, 16 shots, seed 1.",
        "<cat> and dog: 2 (<cat> as dog 2, dog as <cat> 0)",
    ):  # fmt: skip
        assert words in text
    assert "Not shown" not in text and "strong" in dict(tags) and "strong>" not in text


def test_whatever_a_record_says_is_text_and_no_markup_and_what_cannot_be_shown_says_why(run, tmp_path):
    evil = '"><script>alert(1)</script>'
    changes = {"dataset": evil, "backbone": f"b{evil}", "versions": {"torch": evil}, "git_commit": evil}
    for seed, more in ((1, {}), (2, {"trainer": f"M{evil}", "variant": ""}), (3, {"versions": {"torch": evil + "2"}})):
        write_record(tmp_path / "runs" / str(seed), run(seed, **changes | more))
    write_report([tmp_path / "runs"], tmp_path / "report.html")
    tags, text = read(tmp_path / "report.html")
    assert "script" not in dict(tags)
    assert f"Not shown: {evil}, b{evil}" in text
    assert f"torch {evil}2" in text and f"M{evil}" in text
