"""The model card: what it says of a model, for people and for the Hub, whatever names the model has."""

from __future__ import annotations

from collections.abc import Callable

import yaml

from trainers.hegraph.models.card import card_header, model_card
from trainers.hegraph.models.folder import load_model
from trainers.hegraph.models.saved import NOT_TESTED, Backbone, SavedModel
from trainers.hegraph.results.records import read_record


def with_scores(saved_model: Callable[..., SavedModel], **changes: object) -> SavedModel:
    model = saved_model()
    return model.model_copy(update={"scores": model.scores.model_copy(update=changes)})


def header_of(card: str) -> dict:
    return yaml.safe_load(card.split("---\n")[1])


def measured(header: dict) -> list[tuple[str, str, float]]:
    [model] = header["model-index"]
    [result] = model["results"]
    return [(metric["type"], metric["name"], metric["value"]) for metric in result["metrics"]]


def test_the_card_tells_where_a_model_comes_from_and_how_good_it_is(saved_model):
    card = model_card(with_scores(saved_model, ece=2.5, ece_zero_shot=11.25))
    for line in (
        "# HeGraphAdapter on Tiny",
        "An adapter of the frozen CLIP m/w to 3 classes. It was trained on 2 images of each class (6 in",
        "all, seed 1).",
        "| zero-shot CLIP | 70.00 | 11.25 |",
        "| HeGraphAdapter(T), the text classifier alone | 80.00 |  |",
        "| HeGraphAdapter | 90.00 | 2.50 |",
        "hegraph predict MODEL_FOLDER IMAGE",
        "- ant",
        "- bee",
        "- crane",
    ):
        assert f"\n{line}\n" in card
    assert "divided by the temperature 1.500" in card
    header = header_of(card)
    assert (header["license"], header["library_name"], header["datasets"]) == ("mit", "hegraph", ["Tiny"])
    assert header["pipeline_tag"] == "image-classification" and "hegraph" in header["tags"]
    assert header["model-index"][0]["results"][0]["dataset"] == {"type": "Tiny", "name": "Tiny", "split": "test"}
    assert measured(header) == [
        ("accuracy", "Accuracy", 0.9),
        ("f1", "Macro F1", 0.89),
        ("accuracy", "Accuracy of the text classifier alone", 0.8),
        ("ece", "Expected calibration error", 0.025),
    ]


def test_what_is_not_known_is_left_out(saved_model):
    card = model_card(with_scores(saved_model, accuracy_text=None).model_copy(update={"method": "TipAdapter"}))
    assert "| TipAdapter | 90.00 |  |\n" in card and "(T)" not in card
    assert [name for _, name, _ in measured(header_of(card))] == ["Accuracy", "Macro F1"]
    card = model_card(saved_model(scores=NOT_TESTED))
    assert "no score is known" in card and "model-index" not in header_of(card)


def test_a_model_of_a_bank_says_that_the_backbone_has_to_be_named(saved_model):
    assert "NAME" not in model_card(saved_model())
    of_bank = model_card(saved_model(backbone=Backbone(title="ViT-B-32/openai")))
    assert "hegraph predict MODEL_FOLDER IMAGE --backbone NAME --pretrained TAG\n" in of_bank
    assert 'from_pretrained("MODEL_FOLDER", backbone="NAME", pretrained="TAG")' in of_bank


def test_a_long_list_of_classes_is_counted(saved_model):
    names = tuple(f"class {number}" for number in range(52))
    card = model_card(saved_model(classnames=names, class_ids=names, prompts=None))
    assert "\n- class 49\n- and 2 more, in `config.json`\n" in card and "class 50" not in card


def test_names_are_neither_html_nor_markdown(saved_model):
    evil = "<img src=x onerror=alert(1)> [a](javascript:b) ![c](d)\n# `e`|*f*_g_"
    trained = saved_model().trained_on.model_copy(update={"dataset": f"{evil}\n---\nlicense: other"})
    names = {"classnames": (evil, "- list", "c"), "method": evil, "trained_on": trained}
    card = model_card(saved_model(backbone=Backbone(title=evil), **names))
    shown = r"&lt;img src\=x onerror\=alert(1)&gt; \[a\](javascript\:b) \!\[c\](d) \# \`e\`\|\*f\*\_g\_"
    assert f"\n- {shown}\n- \\- list\n" in card
    assert f"the frozen CLIP {shown} to" in card and f"\n# {shown} on {shown}" in card and f"| {shown} |" in card
    for mark in ("<img", "\n# `"):
        assert mark not in card
    assert header_of(card)["license"] == "mit"
    assert header_of(card)["datasets"] == [
        "img src x onerror alert(1) a (javascript b) c (d) e f _g_ --- license other"
    ]


def test_the_backbone_is_named_as_the_hub_names_it_or_not_at_all(saved_model):
    named = {("ViT-B-32-quickgelu", "openai"): "timm/vit_base_patch32_clip_224.openai"}
    named |= {("RN50-quickgelu", "auto"): "timm/resnet50_clip.openai", ("hf-hub:org/birds", ""): "org/birds"}
    unnamed = (("hf-hub:<b>/birds", ""), ("hegraph-mini", "auto"), ("local-dir:birds", ""), ("ViT-B-32", __file__))
    for (name, pretrained), expected in (named | dict.fromkeys((*unnamed, ("", "")))).items():
        backbone = Backbone(title="any", model=name, pretrained=pretrained)
        assert card_header(saved_model(backbone=backbone)).to_dict().get("base_model") == expected


def test_a_run_leaves_the_scores_of_its_record(finished_run_once):
    record, model = read_record(finished_run_once), load_model(finished_run_once)
    assert (model.scores.accuracy, model.scores.accuracy_text) == (record["accuracy"], record["accuracy_text"])
    assert model.scores.ece == record["calibration"]["after"]["ece"]
    assert model.scores.ece_zero_shot == record["calibration"]["zero_shot"]["ece"]
    assert model.trained_on.num_train == record["num_train"]
