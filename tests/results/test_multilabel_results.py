"""Tables, paired intervals and the page for runs with several labels per image."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from sklearn.metrics import average_precision_score

from trainers.hegraph.commands.results import main
from trainers.hegraph.commands.train import summary
from trainers.hegraph.results.comparison import compare, multilabel_table
from trainers.hegraph.results.intervals import Ranking, mean_precision
from trainers.hegraph.results.records import PREDICTIONS, write_record, write_tensors_with_classes
from trainers.hegraph.results.table import as_text, markdown
from trainers.hegraph.utils.errors import UserError

LABELS = np.random.default_rng(1).random((40, 3)) < 0.3


@pytest.fixture
def several(run):
    """Function that makes the record of a run with several labels per image."""

    def make(seed: int = 1, score: float = 60.0, trainer: str = "HeGraphAdapter", **changes) -> dict:
        parts = {"accuracy_text": None, "accuracy_zero_shot": None, "map": score, "map_zero_shot": 40.0}
        parts |= {"macro_f1": score - 5, "micro_f1": score - 4, "average_precision": {"ant": score, "bee": score + 1}}
        variant = "training_free" if trainer == "HeGraphAdapter" else ""
        return run(seed, trainer=trainer, variant=variant) | {"accuracy": None, **parts, **changes}

    return make


@pytest.fixture
def folders(several, tmp_path) -> Path:
    """Runs of two methods with two seeds; the scores of the first are closer to the labels."""
    for trainer, noise in (("HeGraphAdapter", 0.5), ("Ridge", 2.0)):
        for seed in (1, 2):
            scores = LABELS + noise * np.random.default_rng(seed).standard_normal(LABELS.shape)
            folder = tmp_path / "runs" / trainer / str(seed)
            write_record(folder, several(seed, trainer=trainer))
            tensors = {"scores": torch.tensor(scores), "labels": torch.tensor(LABELS).byte()}
            write_tensors_with_classes(folder / PREDICTIONS, ["ant", "bee", "cow"], **tensors)
    return tmp_path / "runs"


def test_comparison_is_of_map(several):
    table = compare([several(1, 60.0), several(2, 62.0)])
    assert table.caption.startswith("mAP on test (%) by shots, Toy")
    assert "mAP on 123 test images" in as_text(table)
    assert [row[0] for row in table.text_rows(str)] == ["zero-shot", "HeGraphAdapter(training-free)"]
    assert "61.00" in markdown(table) and "40.00" in markdown(table)


def test_kinds_of_labels_are_not_mixed(several, run):
    with pytest.raises(UserError, match="one label per image and others several"):
        compare([several(), run(2)])


def test_table_has_f1_and_precision_by_class(several, run):
    table = multilabel_table([several(1, 60.0), several(2, 62.0)])
    assert list(table.columns.values()) == ["mAP", "macro F1", "micro F1", "AP ant", "AP bee"]
    assert table.text_rows(str) == [["HeGraphAdapter(training-free)", "61.00", "56.00", "57.00", "61.00", "62.00"]]
    with pytest.raises(UserError, match="no run has several labels per image; `results compare`"):
        multilabel_table([run()])


def test_summary_names_map_and_f1(several):
    scores = "zero-shot mAP 40.00, HeGraphAdapter (training_free) mAP 60.00, macro F1 55.00, micro F1 56.00"
    assert summary(several()) == f"Toy, 4 shots, seed 1: {scores}"


def test_weighted_precision_is_scikit_learns():
    rng = np.random.default_rng(2)
    scores = rng.integers(0, 8, LABELS.shape).astype(float)  # with ties
    weights = rng.integers(0, 3, (5, len(LABELS))).astype(float)
    weights[4, LABELS[:, 0]] = 0  # no positive image of the first class
    expected = [
        np.mean([
            average_precision_score(LABELS[:, k], scores[:, k], sample_weight=row)
            for k in range(3)
            if row[LABELS[:, k]].any()
        ])
        for row in weights
    ]  # fmt: skip
    assert mean_precision(Ranking(scores, LABELS), weights) == pytest.approx(expected)


def test_paired_difference_is_of_map(folders, capsys):
    assert main(["paired", str(folders), "--of", "HeGraphAdapter(training-free)"]) == 0
    caption, _, _, _, row, *_ = capsys.readouterr().out.splitlines()
    assert caption.startswith("mAP of HeGraphAdapter(training-free) minus the method in the row")
    differences = []
    for seed in (1, 2):
        noise = np.random.default_rng(seed).standard_normal(LABELS.shape)
        differences.append([average_precision_score(LABELS, LABELS + scale * noise) for scale in (0.5, 2.0)])
    expected = 100 * np.mean([first - second for first, second in differences])
    assert row.startswith(f"| Ridge | **{expected:+.2f} (")


def test_damaged_scores_are_refused(folders, capsys):
    path = folders / "Ridge" / "1" / PREDICTIONS
    save_file({"scores": torch.ones(40, 2), "labels": torch.ones(40, 3).byte()}, path, {"classnames": '["a","b","c"]'})
    assert main(["paired", str(folders), "--of", "Ridge"]) == 2
    assert "expected finite scores and labels of shape [M, 3]" in capsys.readouterr().err


def test_confusion_matrix_needs_one_label(folders, tmp_path, capsys):
    assert main(["confusion", str(folders / "Ridge" / "1"), "--out", str(tmp_path / "figure")]) == 2
    assert "a confusion matrix needs one label per image" in capsys.readouterr().err


def test_report_shows_map_and_precision_by_class(folders, tmp_path):
    assert main(["report", str(folders), "--out", str(tmp_path / "report.html")]) == 0
    page = (tmp_path / "report.html").read_text()
    assert "mAP on test (%)" in page and "AP bee" in page and "Hardest pairs" not in page
