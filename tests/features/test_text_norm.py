"""A bank may keep the norms of its text features, images encode them, and where they are not known the log says so."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file

from trainers.hegraph.backbones.clip import Backbone
from trainers.hegraph.backbones.identity import MINI_NAME
from trainers.hegraph.backbones.loading import load_backbone
from trainers.hegraph.config_files import load_cfg
from trainers.hegraph.features.bank import FeatureBank
from trainers.hegraph.features.options import EncodingOptions
from trainers.hegraph.features.text import encode_prompts, text_norms, text_with_norm

SENTENCES = "TRAINER.HEGRAPHADAPTER.PROMPTS"
NAMES = ["one", "two"]


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return load_backbone(MINI_NAME)


@pytest.fixture
def bank(unit_features) -> FeatureBank:
    """K = 3 classes, d = 4."""
    return FeatureBank(
        train_features=unit_features(3, 4, seed=1)[None],
        train_labels=torch.arange(3),
        text_positive=unit_features(3, 4, seed=2),
        text_negative=unit_features(3, 4, seed=3),
        classnames=["ant", "bee", "cow"],
        dataset="Toy",
        backbone="toy/weights",
        logit_scale=100.0,
    )


def contents(path: Path) -> tuple[dict, dict]:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118


def options_of(*opts: object) -> EncodingOptions:
    return load_cfg(opts=list(opts)).encoding


# Where it is not known


def test_the_text_of_a_bank_has_the_norms_that_it_keeps(bank, caplog):
    with caplog.at_level(logging.INFO, "trainers.hegraph"):
        text = text_with_norm(replace(bank, text_norms=torch.tensor([9.0, 10.0, 11.0])))
    torch.testing.assert_close(text.norm(dim=1), torch.tensor([9.0, 10.0, 11.0]))
    torch.testing.assert_close(F.normalize(text, dim=1), bank.text_positive)
    assert caplog.messages == []


@pytest.mark.parametrize("name", ["ViT-B-32-quickgelu/openai", "ViT-B/32/openai"])
def test_of_openais_vit_b_32_the_norm_is_known_and_said(bank, caplog, name):
    with caplog.at_level(logging.INFO, "trainers.hegraph"):
        norms = text_norms(replace(bank, backbone=name))
    torch.testing.assert_close(norms, torch.tensor([9.9, 9.9, 9.9]))
    [message] = caplog.messages
    assert "the bank of Toy holds no norms of its text features: 9.9 is taken for all" in message


@pytest.mark.parametrize("name", ["ViT-B-32/laion2b_s34b_b79k", "my-ViT-B-32/openai"])
def test_of_other_backbones_the_norm_is_1_and_that_is_said(bank, caplog, name):
    with caplog.at_level(logging.INFO, "trainers.hegraph"):
        norms = text_norms(replace(bank, backbone=name))
    assert norms.tolist() == [1.0, 1.0, 1.0]
    [message] = caplog.messages
    assert f"1.0 is taken for all, since that of {name!r} is not known" in message


# Encoded


def raw_mean(backbone: Backbone, sentences: list[str]) -> torch.Tensor:
    """The mean of what the text tower gives for sentences, from the model itself."""
    with torch.no_grad():
        return backbone.model.encode_text(backbone.tokenizer(sentences)).mean(dim=0)


def test_the_norm_is_that_of_the_mean_of_what_the_text_tower_gives(backbone, tmp_path):
    templates = ["a photo of a {}.", "the digit {}."]
    options = options_of(f"{SENTENCES}.SOURCE", "templates", f"{SENTENCES}.TEMPLATES", templates)
    text = encode_prompts(backbone, "Digits", NAMES, options, tmp_path)
    expected = torch.stack([raw_mean(backbone, [t.format(name) for t in templates]).norm() for name in NAMES])
    torch.testing.assert_close(text["norms"], expected, rtol=1e-5, atol=0)
    assert not torch.allclose(expected, torch.ones(2), atol=0.1)  # or the test would show nothing


def test_with_groups_the_norm_is_that_of_the_mean_of_their_means(backbone, tmp_path):
    described = {"one": ["a stroke.", "a thin line.", "a bar."], "two": ["a swan."]}
    (tmp_path / "cupl.json").write_text(json.dumps(described))
    options = options_of(
        f"{SENTENCES}.SOURCE", "both", f"{SENTENCES}.DESCRIPTIONS", str(tmp_path / "cupl.json"),
        f"{SENTENCES}.TEMPLATES", ["the digit {}."],
    )  # fmt: skip
    text = encode_prompts(backbone, "Digits", NAMES, options, tmp_path / "parts")
    groups = [(raw_mean(backbone, [f"the digit {name}."]), raw_mean(backbone, described[name])) for name in NAMES]
    expected = torch.stack([((one + other) / 2).norm() for one, other in groups])
    torch.testing.assert_close(text["norms"], expected, rtol=1e-5, atol=0)


def test_features_that_were_kept_before_their_norms_were_are_encoded_anew(backbone, tmp_path, caplog):
    first = encode_prompts(backbone, "Digits", NAMES, options_of(), tmp_path)
    [path] = tmp_path.glob("text-*.safetensors")
    tensors, metadata = contents(path)
    del tensors["norms"], metadata["checksum"]
    save_file(tensors, path, metadata)
    again = encode_prompts(backbone, "Digits", NAMES, options_of(), tmp_path)
    assert "it is of an earlier version: encoding anew" in caplog.text
    assert all(torch.equal(again[name], first[name]) for name in ("positive", "negative", "norms"))
