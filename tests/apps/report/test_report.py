"""HTML page of runs: what it shows, that it needs no other file, and its look in a browser."""

import html
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from scipy.stats import binomtest

from tests.browser import Browser
from trainers.hegraph.__main__ import main as train
from trainers.hegraph.apps.report.page import write_report
from trainers.hegraph.apps.report.summary import (
    EvaluatedImages,
    LeaveOneOut,
    Summary,
    add_classes,
    add_issues,
    choose_run,
    leave_one_out_of_run,
)
from trainers.hegraph.commands.results import main
from trainers.hegraph.datasets.digits import load_digits_dataset
from trainers.hegraph.estimator.labels.issues import LabelIssue
from trainers.hegraph.estimator.labels.leave_one_group_out import leave_one_group_out
from trainers.hegraph.models.folder import load_model, save_model
from trainers.hegraph.results.records import (
    PREDICTIONS,
    TEXT_NODES,
    ImageFiles,
    collect,
    read_record,
    write_record,
    write_tensors_with_classes,
)


def read(file: Path) -> tuple[list[tuple[str, dict]], str]:
    """Tags of a page with their attributes, and its text."""
    source = file.read_text(encoding="utf-8")
    tags = [(tag, dict(re.findall(r'(\w+)="([^"]*)"', rest))) for tag, rest in re.findall(r"<(\w+)([^>]*)>", source)]
    return tags, html.unescape(re.sub(r"<[^>]*>", "", source))


@pytest.fixture(scope="module")
def report(tmp_path_factory, calibrated) -> Path:
    """Page of several kinds of runs; later runs in `runs` have more confusions of two classes."""
    tmp_path = tmp_path_factory.mktemp("page")
    facts = {"temperature": 0.625, "finished_at": "2026-01-01", "num_test": 27}
    there = {"accuracy": 60.0, "accuracy_zero_shot": 40.0, "num_test": 9, "num_classes": 3, "rule": "same classes"}
    base = {"config": {"DATASET.SUBSAMPLE_CLASSES": "base"}, "targets": {"Toy:new": there | {"rule": "other classes"}}}
    runs = {
        "four": calibrated(**facts),
        "sixteen": calibrated(accuracy=90.0, shots=16, **facts),
        "sixteen, earlier": calibrated(2, accuracy=91.0, shots=16, **facts | {"finished_at": "2025-01-01"}),
        "swept": calibrated(accuracy=70.0, config={"TRAINER.X.ALPHA": 2}, **facts),
        "elsewhere": calibrated(targets={"Toy2": there}, **facts),
        "base": calibrated(shots=16, **base, **facts | {"num_test": 13, "finished_at": "2027-01-01"}),
    }
    names, nodes = ["<cat>", "dog", "a class with a rather long name"], torch.randn(2, 3, 8)
    for wrong, (name, record) in enumerate(runs.items(), 1):
        folder = tmp_path / "<runs> & more" / name
        predicted = torch.tensor([1] * wrong + [0] * (9 - wrong) + [1] * 9 + [2] * 9)
        write_record(folder, record)
        write_tensors_with_classes(
            folder / PREDICTIONS, names, predicted=predicted, labels=torch.arange(3).repeat_interleave(9)
        )
        write_tensors_with_classes(folder / TEXT_NODES, names, before=nodes[0], after=nodes[1].clone())
    write_report([tmp_path / "<runs> & more"], tmp_path / "out" / "report.html")
    return tmp_path / "out" / "report.html"


def summary_of(predicted: list[int], labels: list[int], num_classes: int) -> Summary:
    names = [f"class {number}" for number in range(num_classes)]
    summary = Summary("run", "The model classifies some images.")
    add_classes(summary, EvaluatedImages(torch.tensor(predicted), torch.tensor(labels), names, []), None)
    return summary


def test_model_at_chance_names_no_pairs():
    """8 of 20 images are correct, Wilson's interval begins at 22 %, and the largest class has 25 %."""
    labels = [0, 1, 2, 3] * 5
    summary = summary_of([0] * 5 + [1] * 2 + [0] * 13, labels, 4)
    assert summary.at_chance and summary.pairs is None
    assert summary.sentence.endswith(" The model is no better than always naming the largest class (25.0 %).")


def test_model_above_chance_names_pairs():
    labels = [0, 1, 2, 3] * 5
    summary = summary_of([*labels[:15], 0, 0, 0, 0, 0], labels, 4)
    assert not summary.at_chance and summary.pairs


def test_page_at_chance_gives_no_advice_on_classes(tmp_path, calibrated):
    folder = tmp_path / "run"
    write_record(folder, calibrated(accuracy=30.0, num_test=20))
    labels = torch.arange(4).repeat(5)
    names = ["ant", "bee", "cow", "dog"]
    write_tensors_with_classes(folder / PREDICTIONS, names, predicted=torch.zeros_like(labels), labels=labels)
    write_report([folder], tmp_path / "report.html")
    _, text = read(tmp_path / "report.html")
    assert "The image encoder does not distinguish these classes" in text
    assert "Label more images of" not in text and "Most confused classes" not in text
    assert "hegraph label suggest" not in text


def test_report_has_a_panel_of_prediction_sets(tmp_path, calibrated):
    sets = {"nominal": 0.9, "coverage": 92.5, "mean_size": 1.25, "single": 80.0}
    write_record(tmp_path / "run", calibrated(num_test=40, prediction_sets=sets))
    write_report([tmp_path / "run"], tmp_path / "report.html")
    _, text = read(tmp_path / "report.html")
    low, high = binomtest(37, 40).proportion_ci(0.95, method="wilson")
    interval = f"95% interval: {100 * low:.1f} to {100 * high:.1f} %"
    assert f"Prediction sets for 90% contain the class of 92.5 % of the test images ({interval})." in text
    assert "They have 1.25 classes on average, and 80.0 % have a single class." in text


def test_report_of_older_records_has_no_sets(tmp_path, calibrated):
    write_record(tmp_path / "run", calibrated(num_test=40))
    write_report([tmp_path / "run"], tmp_path / "report.html")
    assert "Prediction sets" not in read(tmp_path / "report.html")[1]


def test_page_loads_no_file_and_no_script(report):
    tags, text = read(report)
    for tag, attributes in tags:
        assert tag not in ("script", "link", "iframe", "object", "embed", "base")
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "srcset", "data", "poster", "action"):
            assert attributes.get(name, "data:").startswith("data:"), (tag, attributes)
    assert "url(" not in text and "@import" not in text  # the style is part of it
    assert str(report.parents[1]) not in report.read_text(encoding="utf-8")


def test_page_has_tables_and_figures_with_texts(report):
    tags, text = read(report)
    assert [tag for tag, _ in tags].count("table") == 7
    images = [attributes for tag, attributes in tags if tag == "img"]
    assert [len(image["alt"]) > 20 for image in images] == [
        True
    ] * 5  # calibration, curves, reliability, nodes, confusions
    for words in (
        "<runs> & more", "Accuracy on test (%) by shots", "by setting", "targets with same classes",
        "base and new classes", "Training costs", "0.62", "ALPHA=2", "90.50 ± 6.35",
        "cpu, 2 threads", "Toy (13 test images); Toy (27 test images)",
        # of the last run of the most shots on all classes
        "text nodes before and after, Toy, mini/mini, 16 shots, seed 1;",
        "Confusion matrix on test, Toy, mini/mini, 16 shots, seed 1.",
        "2 of 9 <cat> predicted as dog", "The model classifies 24 of 27 test images correctly: 88.9 %",
    ):  # fmt: skip
        assert words in text
    assert "Not shown" not in text and "strong" in dict(tags) and "strong>" not in text


def test_page_escapes_records_and_names_refusals(run, tmp_path):
    evil = '"><script>alert(1)</script>'
    changes = {"dataset": evil, "backbone": f"b{evil}", "versions": {"torch": evil}, "git_commit": evil}
    for seed, more in ((1, {}), (2, {"trainer": f"M{evil}", "variant": ""}), (3, {"versions": {"torch": evil + "2"}})):
        write_record(tmp_path / "runs" / str(seed), run(seed, **changes | more))
    write_report([tmp_path / "runs"], tmp_path / "report.html")
    tags, text = read(tmp_path / "report.html")
    assert "script" not in dict(tags) and f"Not shown: {evil}, b{evil}" in text
    assert f"torch {evil}2" in text and f"M{evil}" in text and f"commits {evil}" in " ".join(text.split())


# Summary of one run


@pytest.fixture(scope="module")
def pictures_run(once) -> Path:
    """Output folder of a run on files of three digits; some training and test images have a wrong label."""

    def fill(folder: Path) -> None:
        dataset = load_digits_dataset()
        for number, item in enumerate([item for item in dataset.train if item.label in (1, 3, 8)][:90]):
            label = "three" if number % 10 == 5 else item.classname
            (folder / "pictures" / label).mkdir(parents=True, exist_ok=True)
            dataset.open(item.path).save(folder / "pictures" / label / f"{number}.png")
        flags = ["--dataset-config-file", "folder", "--root", str(folder / "pictures"), "--config-file", "mini"]
        keys = ["TRAINER.HEGRAPHADAPTER.VARIANT", "training_free"]
        assert train([*flags, "--shots", "8", "--output-dir", str(folder / "run"), *keys]) == 0

    return once("pictures", fill)


def test_image_folder_is_shown_by_its_name(pictures_run, tmp_path):
    model, record = load_model(pictures_run / "run"), read_record(pictures_run / "run")
    assert (model.trained_on.dataset, model.trained_on.title) == ("ImageFolder", "pictures")
    assert (record["dataset"], record["source"]) == ("ImageFolder", "pictures")
    _, text = report_of(pictures_run / "run", tmp_path / "report.html")
    assert "Accuracy on test (%) by shots, pictures, " in text and "ImageFolder" not in text


def report_of(run: Path, out: Path) -> tuple[list[tuple[str, dict]], str]:
    """Tags and text of the page of a run."""
    assert main(["report", str(run), "--out", str(out)]) == 0
    tags, text = read(out)
    return tags, " ".join(text.split())


def test_summary_of_a_run_on_files(pictures_run, tmp_path):
    tags, text = report_of(pictures_run / "run", tmp_path / "report.html")
    predicted = load_file(pictures_run / "run" / PREDICTIONS)
    right, count = int((predicted["predicted"] == predicted["labels"]).sum()), len(predicted["labels"])
    share = f"The model classifies {right} of {count} test images correctly: {100 * right / count:.1f} %"
    low, high = (100 * end for end in binomtest(right, count).proportion_ci(0.95, method="wilson"))
    assert f"{share} (95% interval: {low:.1f} to {high:.1f} %). CLIP without" in text
    assert re.search(r"\d of 24 training labels looks? wrong", text)
    assert re.search(r"(\w+), predicted as (?!\1)", text) and re.search(r"labelled (\w+), likely (?!\1)", text)
    examples = [
        attributes["src"] for tag, attributes in tags if attributes.get("src", "").startswith("data:image/jpeg")
    ]
    assert len(examples) == text.count(".png")
    page = (tmp_path / "report.html").read_text(encoding="utf-8").partition("<main>")[2]
    shares = [float(share) for share in re.findall(r'--share: ([\d.]+)"', page)]
    assert shares == sorted(shares) and len(shares) == 3


def test_missing_image_files_are_named(pictures_run, tmp_path, caplog):
    caplog.set_level("INFO")
    run = shutil.copytree(pictures_run, tmp_path / "moved") / "run"
    tensors, names = load_file(run / PREDICTIONS), ["eight", "one", "three"]
    files = ImageFiles(root=str(tmp_path / "gone"), test=[f"{n}.png" for n in range(len(tensors["labels"]))])
    write_tensors_with_classes(run / PREDICTIONS, names, files, **tensors)
    tags, text = report_of(run, tmp_path / "report.html")
    assert re.search(r"no picture \w+, predicted as", text) and "img" in dict(tags)
    problems = [line for line in caplog.messages if "is not shown" in line]
    assert problems and all(line.endswith(".png is not shown: No such file or directory") for line in problems)


def test_wrong_labels_are_found_without_test_images(pictures_run, tmp_path, caplog):
    caplog.set_level("INFO")
    run = shutil.copytree(pictures_run, tmp_path / "untested") / "run"
    (run / PREDICTIONS).unlink()
    scores = dict.fromkeys(("accuracy", "macro_f1", "accuracy_text", "accuracy_zero_shot", "calibration"))
    write_record(run, read_record(run) | scores | {"num_test": 0})
    _, text = report_of(run, tmp_path / "report.html")
    assert re.search(r"\(leave-one-out\), the model classifies \d+ of 24 training images correctly", text)
    assert re.search(r"labelled \w+, likely \w+ \(score \d\.\d\) training image \d", text)
    assert "Not shown: the run has no probabilities of test images" in text
    assert "is not shown" not in caplog.text


def test_groups_of_training_images_are_left_out(pictures_run, tmp_path):
    run = shutil.copytree(pictures_run, tmp_path / "grouped") / "run"
    model = load_model(run)
    support = replace(model.support_set, groups=torch.arange(24) // 3)
    save_model(model.model_copy(update={"support_set": support}), run / "model")
    left_out = leave_one_out_of_run(run, None)
    arguments = (model.known_text, model.logit_scale, model.trusts_text, model.class_prior)
    _, expected = leave_one_group_out(support.keys(), support.labels, support.groups, *arguments)
    assert torch.equal(left_out.predictions.predicted, expected)
    assert left_out.fitted_to == "the training images of other groups (leave-one-group-out)"


@pytest.mark.parametrize(("right", "claim"), [
    (49, "Fitted to the others, the model classifies only 49 of 100 training images as they are labelled: it cannot"),
    (50, "50 of 100 training labels look wrong"),
])  # fmt: skip
def test_model_that_is_mostly_wrong_judges_no_labels(right, claim):
    labels = torch.zeros(100, dtype=torch.long)
    predicted = (torch.arange(100) >= right).long()
    issues = [LabelIssue(index=row, label="a", suggested="b", score=9.0 * (row >= right)) for row in range(100)]
    summary = Summary("", "")
    add_issues(summary, LeaveOneOut(EvaluatedImages(predicted, labels, ["a", "b"], []), issues, ""))
    assert summary.labels.startswith(claim)
    assert bool(summary.issues) == (right == 50)


def test_summary_of_collected_records(run, tmp_path):
    collect([run(1, 60.0), run(2, 80.0, shots=16)], tmp_path / "runs.jsonl")
    _, text = report_of(tmp_path / "runs.jsonl", tmp_path / "report.html")
    assert (
        "classifies 98 of 123 test images correctly: 79.7 %" in text
        and "16 shots, seed 2. The tables below show all 2 runs." in text
    )
    assert "are shown for the output folder of a run" in text and "Labels that look wrong" not in text


def test_summary_without_class_texts_has_no_zero_shot_clip(run, tmp_path):
    collect([run(1, 60.0, accuracy_zero_shot=None)], tmp_path / "runs.jsonl")
    _, text = report_of(tmp_path / "runs.jsonl", tmp_path / "report.html")
    assert "test images correctly: 60.2 %" in text and "CLIP without training images" not in text


@pytest.mark.parametrize("changes", [
    {"accuracy": 99.0, "shots": 2}, {"trainer": "TipAdapter", "shots": -1}, {"accuracy": None, "shots": 16},
    {"finished_at": "2025"}, {"shots": 16, "config": {"DATASET.SUBSAMPLE_CLASSES": "base"}},
])  # fmt: skip
def test_summarised_run_is_tested_and_the_last_one(run, changes):
    chosen = run(finished_at="2026")
    other = run(2) | {"finished_at": "2027"} | changes
    assert choose_run([(None, other), (None, chosen)]) == (None, chosen)


def test_page_is_accessible(pictures_run, tmp_path):
    report_of(pictures_run / "run", tmp_path / "report.html")
    browser = Browser(tmp_path / "profile", (tmp_path / "report.html").as_uri())
    try:
        browser.check_accessibility(lambda: browser.open("h1"))
    finally:
        browser.driver.quit()
