"""Coverage and size of prediction sets on the test images of a run."""

from dataclasses import replace

import pytest
import torch

from trainers.hegraph import load_bank
from trainers.hegraph.experiments.evaluation import Predictions
from trainers.hegraph.experiments.record import sets_on_test
from trainers.hegraph.method.training.confidence import Calibration
from trainers.hegraph.method.training.prediction_sets import SetScores
from trainers.hegraph.models.folder import load_model
from trainers.hegraph.results.records import read_record

NODE = "TRAINER.HEGRAPHADAPTER"


def calibration_with(scores: list[float], **changes) -> Calibration:
    sets = SetScores(scores=scores, temperature=2.0, **changes)
    return Calibration(2.0, "held-out images", len(scores), sets=sets)


def predictions_of(probabilities: list[list[float]], labels: list[int], **changes) -> Predictions:
    """Predictions with these probabilities at temperature 2."""
    logits = 2 * torch.tensor(probabilities).log()
    return Predictions("Toy", ["ant", "bee", "cat"], logits=logits, labels=torch.tensor(labels), **changes)


def test_coverage_and_size_by_hand():
    # The threshold of 9 scores for 0.9 is the smallest. The sets are {0, 1}, {0}, {1, 2}
    scores = [0.34, *[0.9] * 8]
    predictions = predictions_of([[0.6, 0.35, 0.05], [0.4, 0.3, 0.3], [0.1, 0.5, 0.4]], [1, 1, 2])
    found = sets_on_test(predictions, calibration_with(scores))
    assert (found.nominal, found.threshold, found.num_images, found.of_zero_shot) == (0.9, 0.34, 9, False)
    assert found.coverage == pytest.approx(200 / 3)
    assert found.mean_size == pytest.approx(5 / 3)
    assert found.single == pytest.approx(100 / 3)


def test_sets_of_zero_shot_with_the_predicted_class():
    clip = 2 * torch.tensor([[0.8, 0.1, 0.1]]).log()
    predictions = predictions_of([[0.1, 0.8, 0.1]], [1], zero_shot=clip)
    found = sets_on_test(predictions, calibration_with([0.3] * 9, of_zero_shot=True))
    assert (found.of_zero_shot, found.coverage, found.mean_size, found.single) == (True, 100.0, 2.0, 0.0)


def test_few_held_out_images_have_no_sets():
    predictions = predictions_of([[0.6, 0.3, 0.1]], [0])
    assert sets_on_test(predictions, calibration_with([0.3] * 8)) is None
    assert sets_on_test(predictions, Calibration()) is None


def test_threshold_without_test_images():
    found = sets_on_test(Predictions("Toy", ["ant", "bee", "cat"]), calibration_with([0.3] * 9))
    assert (found.threshold, found.coverage, found.mean_size, found.single) == (0.3, None, None, None)


@pytest.mark.parametrize("options", [(f"{NODE}.VARIANT", "training_free"), ("--trainer", "TipAdapter")])
def test_record_agrees_with_the_saved_model(run, tiny_bank, tmp_path, options):
    no_val = tmp_path / "no_val.safetensors"
    replace(load_bank(tiny_bank), val_features=None, val_labels=None).save(no_val)
    record, out = run(*options, bank=no_val)
    model = load_model(out)
    bank = load_bank(tiny_bank)
    logits = model.classifier.logits(bank.test_features)
    sets = model.prediction_sets(bank.test_features, logits, 0.9)
    covered = sets[torch.arange(len(sets)), bank.test_labels].double().mean().item()
    found = record["prediction_sets"]
    assert found["threshold"] == model.set_threshold(0.9)
    assert (found["coverage"], found["mean_size"]) == (100 * covered, sets.sum().item() / len(sets))


def test_eval_only_has_the_sets_of_the_model(run, finished_run_once, tmp_path):
    before = read_record(finished_run_once)["prediction_sets"]
    record, _ = run("--eval-only", "--model-dir", str(finished_run_once), name="tested")
    assert record["prediction_sets"] == before
