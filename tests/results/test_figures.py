"""Formats of tables, numbers of the paper, and figures."""

import csv
import io
import re
import warnings
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from sklearn.manifold import TSNE

from trainers.hegraph.commands.results import main
from trainers.hegraph.results import figures
from trainers.hegraph.results.comparison import compare, complexity
from trainers.hegraph.results.figures import confusion, curves, mean_distance, render, render_for_page, save, tsne
from trainers.hegraph.results.records import TEXT_NODES, write_record, write_tensors_with_classes
from trainers.hegraph.results.scores import AVERAGE, QUOTED, paper_backbone, paper_name, read_quotes
from trainers.hegraph.results.table import Table, as_csv, as_text, latex, markdown
from trainers.hegraph.utils.errors import UserError

COLUMNS = {"x": "x|y", "z": "z"}


def numbers(place: str, method: str, column: str, values: dict, quoted: bool = False) -> list[dict]:
    """Rows of a cell, from seed -> value."""
    cell = {"dataset": place, "method": method, "column": column, "quoted": quoted, "num_test": 9}
    return [cell | {"seed": seed, "value": value} for seed, value in values.items()]


def tabulated(*rows: list[dict], **options) -> Table:
    frame = pd.DataFrame([row for cell in rows for row in cell], dtype=object)
    return Table("50% & more", ["dataset"], frame, COLUMNS, **options)


def table(**options) -> Table:
    return tabulated(
        numbers("A_b", "two", "x", {1: 90.0}), numbers("A_b", "one", "x", {1: 80.0, 2: 82.0}),
        numbers("A_b", "two", "x", {None: 99.0}, quoted=True), numbers("A_b", "one", "z", {None: 50.0}),
        numbers("C", "one", "x", {None: 1.0}), **options,
    )  # fmt: skip


def test_sample_deviation_and_students_interval():
    # squared distances from 3: 4 + 1 + 0 + 1 + 4 = 10; 10 / (5 - 1) = 2.5
    # t of 4 degrees of freedom at 97.5 % is 2.776445 (any table of t)
    of_five, of_one = numbers("A", "one", "x", dict(enumerate([1, 2, 3, 4, 5]))), numbers("A", "one", "z", {7: 80.0})
    five, one = tabulated(of_five, of_one).cells.to_dict("records")
    assert (five["mean"], five["n"], five["deviation"]) == (3, 5, pytest.approx(2.5**0.5))
    assert five["interval"] == pytest.approx(2.776445 * 2.5**0.5 / 5**0.5, rel=1e-6)
    assert (one["mean"], one["n"]) == (80.0, 1) and pd.isna([one["deviation"], one["interval"]]).all()


def test_markdown():
    lines = [
        r"| data set | method | x\|y | z |", "| --- | --- | ---: | ---: |",
        "| A_b | one | 81.00 ± 12.71 | **50.00 (unequal seeds)** |", "| A_b | two | **90.00 (n = 1)** |  |",
        "| A_b | two (quoted) | 99.00 |  |", "| C | one | **1.00 (unequal seeds)** |  |",
    ]  # fmt: skip
    assert markdown(table()).splitlines()[2:] == lines
    assert markdown(table(intervals=False)).splitlines()[4] == "| A_b | one | 81.00 | **50.00 (unequal seeds)** |"
    assert markdown(table(decimals={"x": 1, "z": 0})).splitlines()[4] == "| A_b | one | 81.0 | 50 (unequal seeds) |"


def test_latex_escapes_and_rules_off_groups():
    assert latex(table()).splitlines() == [
        r"\begin{table}",
        r"\caption{50\% \& more, (quoted): from the paper; mean $\pm$ half-width of its 95\% interval "
        r"for these test images (Student's t) "
        r"over n = 1 to 2 seeds}",
        r"\begin{tabular}{llrr}",
        r"\hline",
        r"data set & method & x|y & z \\",
        r"\hline",
        r"A\_b & one & 81.00 $\pm$ 12.71 & \textbf{50.00 (unequal seeds)} \\",
        r"A\_b & two & \textbf{90.00 (n = 1)} &  \\",
        r"A\_b & two (quoted) & 99.00 &  \\",
        r"\hline",
        r"C & one & \textbf{1.00 (unequal seeds)} &  \\",
        r"\hline",
        r"\end{tabular}",
        r"\end{table}",
    ]
    odd = tabulated(numbers("A", r"\ ~ ^", "x", {1: 1.0}))
    assert latex(odd).splitlines()[6] == r"\textbackslash  \textasciitilde  \textasciicircum  & \textbf{1.00} &  \\"


def test_csv_has_full_precision_intervals_and_seeds():
    header, one, two, quoted, _ = csv.reader(io.StringIO(as_csv(table())))
    assert header == ["data set", "method", "x|y", "x|y ±", "x|y n", "z", "z ±", "z n"]
    interval = float(one.pop(3))
    assert interval == pytest.approx(12.7062, rel=1e-5)  # t of 1 degree of freedom, deviation sqrt(2), n 2
    assert (one, two[2:]) == (["A_b", "one", "81.0", "2", "50.0", "", ""], ["90.0", "", "1", "", "", ""])
    assert quoted[2:5] == ["99.0", "", ""]
    header, *_ = csv.reader(io.StringIO(as_csv(table(intervals=False))))
    assert header == ["data set", "method", "x|y", "x|y n", "z", "z n"]


def test_equal_rounded_scores_are_both_bold():
    values = {"a": 80.001, "b": 80.002, "c": 79.9}
    rows = tabulated(*(numbers("A", name, "x", {1: value}) for name, value in values.items())).text_rows(
        "**{}**".format
    )
    assert [row[1] for row in rows] == ["**80.00**", "**80.00**", "79.90"]


@pytest.mark.parametrize("text", [markdown, latex, as_text])
def test_tables_note_classes_with_fewer_images_than_shots(run, text):
    records = [run(1, 80.0, images_per_class=[4, 4]), run(2, 80.0, images_per_class=[3, 4]), run(3, 80.0)]
    full = run(1, 90.0, shots=8, images_per_class=[8, 8])
    shown = text(compare([*records, full, run(2, 90.0, shots=8, images_per_class=[7, 8])]))
    notes = re.findall(r"\d shots: as few as \d in a class", shown)
    assert notes == ["4 shots: as few as 3 in a class", "8 shots: as few as 7 in a class"]
    assert "as few as" not in text(compare([run(1, 80.0), full]))


def test_plain_text_layout(run):
    tip = run(2, 61.0, trainer="TipAdapter", variant="")
    assert as_text(compare([run(2, 84.0), run(1, 80.0), run(3, 85.0), tip])) == (
        "Toy, mini/mini, 4 shots, accuracy on 123 test images (%)\n"
        "                        mean    std  seeds 1, 2, 3\n"
        "  zero-shot            50.00   0.00  50.00  50.00  50.00\n"
        "  TipAdapter           61.00      -         61.00\n"
        "  HeGraphAdapter(T)    82.00   2.65  79.00  83.00  84.00\n"
        "  HeGraphAdapter       83.00   2.65  80.00  84.00  85.00\n"
    )
    *_, last = as_text(compare([run(1, 80.0), run(1, 60.0, dataset="Zoo")])).split("\n\n")
    assert last.startswith("mean of 2, mini/mini, 4 shots, accuracy on test (%)\n")
    assert last.splitlines()[-1].split() == ["HeGraphAdapter", "70.00", "-", "70.00"]
    for shots, words in (1, "1 shot"), (-1, "all images"):
        shown = as_text(compare([run(1, 80.0, shots=shots)]))
        assert shown.startswith(f"Toy, mini/mini, {words}, accuracy on 123 test images (%)\n")
    shown = as_text(compare([run(1, 80 + a, {"TRAINER.X.ALPHA": a}) for a in (0.0, 0.5)], "setting"))
    assert shown.split("\n\n")[1].startswith("Toy, mini/mini, 4 shots, ALPHA=0.5, accuracy on 123 test images (%)\n")


# Numbers of the paper


RN50 = "RN50-quickgelu/openai"
TABLES = {"1": 4 * 6 * 6, "2": 11 * 12, "3": 41, "4": 28, "5": 3, "fig2": 7}  # how many numbers each has


@pytest.fixture
def quotable(run):
    """Function that makes the record of a run on ImageNet, which the paper has numbers for."""
    return lambda *args, **changes: run(*args, **{"dataset": "ImageNet", "backbone": RN50, "shots": 16} | changes)


def quoted(table, method: str) -> list[float | None]:
    """Scores of a quoted row."""
    [row] = [row for row in table.text_rows(str) if f"{method} (quoted)" in row]
    return [float(text) if text else None for text in row[len(table.heads) :]]


def test_quoted_numbers_are_in_the_paper(shared):
    text = (shared / "paper" / "hegraphadapter-paper.txt").read_text(encoding="utf-8")
    numbers = set(re.findall(r"\d+\.\d+", text))
    assert TABLES.keys() == set(QUOTED)
    for table, count in TABLES.items():
        quotes = read_quotes(table)
        assert len(quotes.drop_duplicates()) == count
        for metric, value in quotes[["metric", "value"]].to_numpy():
            value = value / 1e6 if metric == "trained parameters" else value
            assert {f"{value:.2f}", f"{value:.3f}"} & numbers, value


@pytest.mark.parametrize("table", ["1", "2"])
def test_quoted_averages_match_quoted_numbers(table):
    """The average of table 1 includes the source."""
    for of, row in read_quotes(table).groupby(["method", "backbone"]):
        is_average = row["dataset"] == AVERAGE
        assert row[is_average]["value"].item() == pytest.approx(row[~is_average]["value"].mean(), abs=0.011), of


def test_names_in_the_paper():
    ours, names = ["OxfordPets", "DescribableTextures", "oxford_flowers"], ["oxfordpets", "dtd", "flowers102"]
    assert [paper_name(name) for name in ours] == names and set(names) <= set(read_quotes("2")["dataset"])
    assert (paper_backbone(RN50), paper_backbone("ViT-B-32-quickgelu/openai")) == ("rn50", "vitb32")
    assert paper_backbone("ViT-B-32/laion2b_s34b_b79k") is paper_backbone("hegraph-mini/hegraph-mini") is None


def test_quoted_rows_are_last_and_not_bold(quotable):
    table = compare([quotable(1, 10.0, dataset=name) for name in ("oxford_pets", "dtd")], "dataset", read_quotes("2"))
    assert list(table.columns.values()) == ["dtd", "oxford_pets", "mean of 2"]
    assert quoted(table, "HeGraphAdapter") == [69.15, 90.24, None]  # their average is over other data sets
    best = table.text_rows("best {}".format)
    assert best[0][:2] == ["zero-shot", "best 50.00"] and not any("best" in text for text in best[-1])
    assert "(quoted): from the paper" in table.caption and table.caption.endswith("1 seed")


@pytest.mark.parametrize("change", [
    {"shots": 4}, {"backbone": "RN50/yfcc15m"}, {"dataset": "Digits"}, {"shots_per_class": "long-tailed:1-16"},
])  # fmt: skip
def test_no_quotes_for_another_task(quotable, change):
    with pytest.raises(UserError, match="the paper has no number with the data set, backbone, shots and setting"):
        compare([quotable(**{"dataset": "dtd"} | change)], "dataset", read_quotes("2"))


def test_quotes_by_target_have_no_average(quotable):
    scores = {"accuracy": 1.0, "accuracy_zero_shot": 1.0, "num_test": 9, "num_classes": 3, "rule": "same classes"}
    names = ("ImageNetV2", "ImageNetSketch", "ImageNetA", "ImageNetR")
    table = compare([quotable(targets=dict.fromkeys(names, scores))], "target", read_quotes("1"))
    assert quoted(table, "HeGraphAdapter(T)") == [66.06, 56.99, 35.24, 23.59, 59.43, None]


def test_average_is_quoted_over_its_eleven_data_sets(quotable):
    quotes = read_quotes("2")
    names = sorted(set(quotes["dataset"]) - {AVERAGE})
    records = [quotable(dataset=name) for name in names]
    assert quoted(compare(records, "dataset", quotes), "HeGraphAdapter")[-1] == 77.30
    assert quoted(compare(records[1:], "dataset", quotes), "HeGraphAdapter")[-1] is None
    by_shots = compare(records, "shots", quotes).text_rows(str)
    assert ["mean of 11", "HeGraphAdapter (quoted)", "77.30"] in by_shots


def test_quotes_by_setting_by_backbone_and_of_costs(quotable):
    sweep = [quotable(1, config={"TRAINER.HEGRAPHADAPTER.ALPHA_PP": a}) for a in (0.0, 0.06, 0.5)]
    assert quoted(compare(sweep, "setting", read_quotes("3")), "HeGraphAdapter(T)") == [65.96, 66.06, None]
    backbones = [quotable(backbone=backbone) for backbone in (RN50, "ViT-B-16-quickgelu/openai")]
    assert quoted(compare(backbones, "backbone", read_quotes("4")), "CoOp") == [62.95, 71.92]
    table = complexity([quotable()], read_quotes("5"))
    assert quoted(table, "HeGraphAdapter") == [None, 33.95, None, 10367000, None]


# Figures


def lines(axis) -> dict[str, list[float]]:
    """Accuracies of every line of a panel."""
    return {bars.get_label(): list(bars.lines[0].get_ydata()) for bars in axis.containers}


def test_curves_have_panels_for_mean_and_data_sets(run):
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
    assert [text.get_text() for text in toy.texts] == names and overlaps(figure) == []


def test_curves_reject_several_backbones_and_all_images(run):
    with pytest.raises(UserError, match="one backbone,"):
        curves([run(dataset="Zoo"), run(backbone="RN50/openai")])
    with pytest.raises(UserError, match="all images"):
        curves([run(shots=-1)])


def test_quoted_curve_is_of_the_same_task(run):
    runs = [run(shots=16, dataset="oxford_pets", backbone="RN50-quickgelu/openai")]
    [axis] = curves(runs, read_quotes("fig2")).axes
    [line] = [line for line in axis.lines if line.get_linestyle() == ":"]
    assert "HeGraphAdapter (quoted)" in [text.get_text() for text in axis.texts]
    assert (list(line.get_xdata()), list(line.get_ydata())) == ([16], [90.24])


def test_tsne_has_two_panels_of_one_scale(unit_features):
    before, after = unit_features(5, 8, seed=1), F.normalize(unit_features(5, 8, seed=2) + 2, dim=1)
    figure = tsne(before, after, list("abcde"))
    left, right = figure.axes
    assert left.get_title() == f"before: mean inter-class distance {mean_distance(before):.3f}"
    assert right.get_title() == f"after: mean inter-class distance {mean_distance(after):.3f}"
    assert left.get_xlim() == right.get_xlim() == left.get_ylim()
    assert sorted(text.get_text() for text in left.texts) == list("abcde")
    for text in left.texts:
        assert tuple(text.xy) == tuple(left.collections[0].get_offsets()["abcde".index(text.get_text())])
    both = torch.cat([before, after]).numpy()
    points = TSNE(perplexity=3, init="pca", random_state=0, method="exact").fit_transform(both)
    shown = [axis.collections[0].get_offsets().tolist() for axis in figure.axes]
    assert shown == [points[:5].tolist(), points[5:].tolist()]
    margin = 0.1 * (points.max() - points.min())
    assert left.get_xlim() == pytest.approx((points.min() - margin, points.max() + margin))
    assert render(figure, "svg") == render(tsne(before, after, list("abcde")), "svg")
    with pytest.raises(UserError, match="at least two classes"):
        tsne(torch.ones(1, 8), torch.ones(1, 8), ["a"])


def overlaps(figure: Figure) -> list[tuple[str, str]]:
    """Pairs of overlapping names."""
    FigureCanvasAgg(figure).draw()
    boxes = [(text.get_text(), Text.get_window_extent(text)) for axis in figure.axes for text in axis.texts]
    return [(a, b) for (a, box), (b, other) in combinations(boxes, 2) if box.overlaps(other)]


def test_names_of_text_nodes_do_not_overlap(unit_features):
    names = [f"a class called {number}" for number in range(40)]
    nodes = unit_features(40, 8, seed=1)
    figure = tsne(nodes, F.normalize(nodes + 0.01, dim=1), names)
    assert [len(axis.texts) for axis in figure.axes] == [40, 40] and overlaps(figure) == []


@pytest.mark.parametrize("nodes", [torch.zeros(3, 8), torch.ones(3, 8)])
def test_equal_text_nodes_are_rejected(nodes, run, tmp_path, capsys):
    write_record(tmp_path / "run", run())
    write_tensors_with_classes(tmp_path / "run" / TEXT_NODES, ["a", "b", "c"], before=nodes, after=nodes.clone())
    assert main(["tsne", str(tmp_path / "run"), "--out", str(tmp_path / "stem")]) == 2
    assert "all nodes are equal" in capsys.readouterr().err


def test_curves_of_many_methods_have_grey_lines(run):
    others = {f"Other{number}": 60.0 + number / 10 for number in range(12)}
    runs = [run(1, 90.0, shots=shots) for shots in (1, 2)]
    runs += [run(1, a + s, shots=s, trainer=name, variant="") for name, a in others.items() for s in (1, 2)]
    figure = curves(runs)
    [axis] = figure.axes
    named = ["zero-shot", "Other9", "Other10", "Other11", "HeGraphAdapter(T)", "HeGraphAdapter"]
    assert [text.get_text() for text in axis.texts] == named and overlaps(figure) == []
    others_text = "grey: Other0, Other1, Other2, Other3, Other4, Other5, Other6, Other7, Other8"
    assert " ".join(figure.get_supxlabel().split()) == others_text
    assert len({bars.lines[0].get_color() for bars in axis.containers}) == len(named)
    ours = axis.containers[-1].lines[0]
    assert ours.get_color() == "#000000" and ours.get_xdata().tolist() == [1, 2]  # one seed: without bars
    grey = [line for line in axis.lines if line.get_alpha() == 0.5]
    assert sorted(line.get_ydata()[-1] for line in grey) == pytest.approx([62 + number / 10 for number in range(9)])


def test_confusion_matrix_is_in_percent_of_rows():
    figure = confusion(np.array([[1, 3], [0, 0]]), ["a", "b"])
    axis, bar = figure.axes
    assert axis.images[0].get_array().tolist() == [[25, 75], [0, 0]]
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("predicted class", "true class")
    assert {text.get_text(): text.get_color() for text in axis.texts} == {"1": "black", "3": "white"}
    assert "%" in bar.get_ylabel()


def test_long_class_names_fit_into_the_confusion_matrix():
    names = [f"{'a long name ' * 7}{number}" for number in range(12)]
    figure = confusion(np.eye(12, dtype=int), names)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns if the panel has no space left
        FigureCanvasAgg(figure).draw()
    axis = figure.axes[0]
    page = figure.bbox
    for label in (*axis.get_xticklabels(), *axis.get_yticklabels(), axis.xaxis.label, axis.yaxis.label):
        box = label.get_window_extent()
        assert page.x0 <= box.x0 and box.x1 <= page.x1 and page.y0 <= box.y0 and box.y1 <= page.y1, label
    assert axis.bbox.width > page.width / 3


@pytest.mark.parametrize(("name", "label"), [
    ("cat", "cat"), ("a name of twenty let", "a name of twenty let"),
    ("four words make a name", "four words\nmake a name"), ("a" * 24, "a" * 12 + "\n" + "a" * 12),
    ("猫" * 12, "猫" * 6 + "\n" + "猫" * 6),  # as wide as 24 letters
    ("猫" * 30, "猫" * 10 + "\n... " + "猫" * 5),  # 20 characters of the width of 40 letters
])  # fmt: skip
def test_long_names_have_two_lines(name, label):
    assert figures.fit_name(name, is_broken=True) == label


@pytest.mark.parametrize("name", ["a" * 99, "猫" * 99, "many words " * 9])
def test_names_of_many_classes_stay_on_a_line(name):
    label = figures.fit_name(name, is_broken=False)
    assert "\n" not in label and figures.text_width(label) <= 30


def test_characters_without_a_font_are_named(tmp_path, monkeypatch, caplog, recwarn):
    monkeypatch.setattr(figures, "INSTALLED", ["DejaVu Sans"])
    monkeypatch.setitem(figures.RC, "font.family", ["DejaVu Sans"])
    save(confusion(np.eye(2, dtype=int), ["猫", "Zürich"]), tmp_path / "matrix")
    [message] = caplog.messages
    assert message.startswith("no installed font has 猫, which ")
    assert not recwarn.list


def test_figure_of_a_page_has_text_and_no_background():
    image = render_for_page(confusion(np.eye(2, dtype=int), ["猫", "dog"])).decode()
    assert ">猫<" in image and ">dog<" in image
    background = image.split('id="patch_1"')[1].split("</g>")[0]
    assert "fill: none" in background


def test_names_are_not_parsed_as_mathematics(run):
    names = ["$x$", "$\\frac{$", "a $ b", "50% & _^{}\\"]  # matplotlib would refuse some of these as mathematics
    render(confusion(np.eye(len(names), dtype=int), names), "svg")
    render(curves([run(1, dataset=names[1]), run(1, dataset=names[1], trainer=names[1], variant="")]), "svg")
