"""The model card: what it says of a model, for people and for the Hub, whatever names the model has."""

from __future__ import annotations

import yaml

from trainers.hegraph.models.card import card_header, model_card
from trainers.hegraph.models.folder import load_model
from trainers.hegraph.models.saved import NOT_TESTED, Backbone
from trainers.hegraph.results.records import read_record


def header_of(card: str) -> dict:
    return yaml.safe_load(card.split("---\n")[1])


def test_the_card_tells_where_a_model_comes_from_and_how_good_it_is(saved_model):
    scores = saved_model().scores
    card = model_card(saved_model(scores=scores.model_copy(update={"ece": 2.5, "ece_zero_shot": 11.25})))
    for line in (
        "# HeGraphAdapter on Tiny",
        "An adapter of the frozen CLIP m/w to 3 classes. It was trained on 2 images of each class (6 in",
        "all, seed 1).",
        "| zero-shot CLIP | 70.00 | 11.25 |",
        "| HeGraphAdapter(T), the text classifier alone | 80.00 |  |",
        "| HeGraphAdapter | 90.00 | 2.50 |",
        "hegraph predict MODEL_FOLDER IMAGE",
        "- crane",
    ):
        assert f"\n{line}\n" in card
    assert "divided by the temperature 1.500" in card and "NAME" not in card
    header = header_of(card)
    assert (header["license"], header["library_name"], header["datasets"]) == ("mit", "hegraph", ["Tiny"])
    assert header["pipeline_tag"] == "image-classification" and "hegraph" in header["tags"]
    [result] = header["model-index"][0]["results"]
    assert result["dataset"] == {"type": "Tiny", "name": "Tiny", "split": "test"}
    assert [(metric["type"], metric["name"], metric["value"]) for metric in result["metrics"]] == [
        ("accuracy", "Accuracy", 0.9),
        ("f1", "Macro F1", 0.89),
        ("accuracy", "Accuracy of the text classifier alone", 0.8),
        ("ece", "Expected calibration error", 0.025),
    ]


def test_what_is_not_known_is_left_out_and_a_long_list_of_classes_is_counted(saved_model):
    scores = saved_model().scores.model_copy(update={"accuracy_text": None})
    card = model_card(saved_model(method="TipAdapter", scores=scores))
    assert "| TipAdapter | 90.00 |  |\n" in card and "(T)" not in card
    [result] = header_of(card)["model-index"][0]["results"]
    assert [metric["name"] for metric in result["metrics"]] == ["Accuracy", "Macro F1"]
    names = tuple(f"class {number}" for number in range(52))
    bank = Backbone(title="ViT-B-32/openai")
    card = model_card(saved_model(scores=NOT_TESTED, classnames=names, class_ids=names, prompts=None, backbone=bank))
    assert "no score is known" in card and "model-index" not in header_of(card)
    assert "\n- class 49\n- and 2 more, in `config.json`\n" in card and "class 50" not in card
    assert "hegraph predict MODEL_FOLDER IMAGE --backbone NAME --pretrained TAG\n" in card
    assert 'from_pretrained("MODEL_FOLDER", backbone="NAME", pretrained="TAG")' in card


def test_names_are_neither_html_nor_markdown(saved_model):
    evil = "<img src=x onerror=alert(1)> [a](javascript:b) ![c](d)\n# `e`|*f*_g_"
    trained = saved_model().trained_on.model_copy(update={"dataset": f"{evil}\n---\nlicense: other"})
    names = {"classnames": (evil, "- list", "c"), "method": evil, "trained_on": trained}
    card = model_card(saved_model(backbone=Backbone(title=evil), **names))
    shown = r"&lt;img src\=x onerror\=alert(1)&gt; \[a\](javascript\:b) \!\[c\](d) \# \`e\`\|\*f\*\_g\_"
    assert f"\n- {shown}\n- \\- list\n" in card
    assert f"the frozen CLIP {shown} to" in card and f"\n# {shown} on {shown}" in card and f"| {shown} |" in card
    assert "<img" not in card and "\n# `" not in card
    header = header_of(card)
    assert header["license"] == "mit"
    assert header["datasets"] == ["img src x onerror alert(1) a (javascript b) c (d) e f _g_ --- license other"]


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
