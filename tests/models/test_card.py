"""The model card: what it says of a model's scores, for people and for the Hub."""

from __future__ import annotations

import json

from trainers.hegraph.__main__ import main as train
from trainers.hegraph.models.card import card_header, model_card
from trainers.hegraph.models.folder import load_model
from trainers.hegraph.models.schema import Backbone, Scores


def scores(**changes: object) -> Scores:
    fields = {"accuracy": 90.0, "accuracy_text": 80.0, "accuracy_zero_shot": 70.0, "macro_f1": 89.0, "num_test": 10}
    return Scores(**fields | changes)


def measured(header: dict) -> list[tuple[str, str, float]]:
    [model] = header["model-index"]
    [result] = model["results"]
    return [(metric["type"], metric["name"], metric["value"]) for metric in result["metrics"]]


def test_the_card_tells_the_accuracies_and_the_calibration_of_each_classifier(saved_model):
    model = saved_model(scores=scores(ece=2.5, ece_zero_shot=11.25))
    card = model_card(model)
    for line in (
        "| zero-shot CLIP | 70.00 | 11.25 |",
        "| HeGraphAdapter(T), the text classifier alone | 80.00 |  |",
        "| HeGraphAdapter | 90.00 | 2.50 |",
    ):
        assert f"\n{line}\n" in card
    assert "divided by the temperature 1.500" in card
    assert measured(card_header(model)) == [
        ("accuracy", "Accuracy", 0.9),
        ("f1", "Macro F1", 0.89),
        ("accuracy", "Accuracy of the text classifier alone", 0.8),
        ("ece", "Expected calibration error", 0.025),
    ]


def test_scores_that_are_not_known_are_left_out(saved_model):
    model = saved_model(scores=scores(accuracy_text=None), method="TipAdapter")
    assert "| TipAdapter | 90.00 |  |\n" in model_card(model)
    assert "(T)" not in model_card(model)
    assert [name for _, name, _ in measured(card_header(model))] == ["Accuracy", "Macro F1"]


def test_a_model_that_was_not_tested_has_no_scores(saved_model):
    none = dict.fromkeys(("accuracy", "accuracy_text", "accuracy_zero_shot", "macro_f1"))
    model = saved_model(scores=scores(**none, num_test=0))
    assert "no score is known" in model_card(model)
    assert "model-index" not in card_header(model)


def test_a_model_of_a_bank_says_that_the_backbone_has_to_be_named(saved_model):
    assert "hegraph predict MODEL_FOLDER IMAGE\n" in model_card(saved_model())
    assert "NAME" not in model_card(saved_model())
    of_bank = model_card(saved_model(backbone=Backbone(title="ViT-B-32/openai")))
    assert "hegraph predict MODEL_FOLDER IMAGE --backbone NAME --pretrained TAG\n" in of_bank
    assert 'from_pretrained("MODEL_FOLDER", backbone="NAME", pretrained="TAG")' in of_bank


def test_a_run_leaves_the_scores_of_its_record(tiny_bank, tmp_path):
    quick = ("OPTIM.MAX_EPOCH", "2", "TRAINER.HEGRAPHADAPTER.MIN_STEPS", "0")
    assert train(["--features", str(tiny_bank), "--output-dir", str(tmp_path), *quick]) == 0
    record = json.loads((tmp_path / "result.json").read_text())
    found = load_model(tmp_path).scores
    assert (found.accuracy, found.accuracy_text) == (record["accuracy"], record["accuracy_text"])
    assert found.ece == record["calibration"]["after"]["ece"]
    assert found.ece_zero_shot == record["calibration"]["zero_shot"]["ece"]
