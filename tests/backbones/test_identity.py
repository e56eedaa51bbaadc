"""What tells one backbone from another, known without loading it."""

from __future__ import annotations

import shutil

import pytest
import torch
from tiny import TINY, cache_file, save_weights

from trainers.hegraph.backbones.clip import Backbone
from trainers.hegraph.backbones.identity import MINI_WEIGHTS, backbone_identity, describe_transform
from trainers.hegraph.backbones.loading import create_model, load_backbone
from trainers.hegraph.utils.errors import UserError
from trainers.hegraph.utils.files import hash_file


def test_other_weights_have_another_fingerprint(mini, tmp_path):
    model, _, _ = create_model("hegraph-mini")
    torch.save(model.state_dict(), tmp_path / "other.pt")
    other = load_backbone("hegraph-mini", str(tmp_path / "other.pt"))
    assert other.fingerprint["weights"] != mini.fingerprint["weights"]
    assert other.name == "hegraph-mini/other"


OF_FILE = {"model": "hegraph-mini", "weights": hash_file(MINI_WEIGHTS)}


def without_preprocess(backbone: Backbone) -> dict[str, str]:
    return {key: value for key, value in backbone.fingerprint.items() if key != "preprocess"}


@pytest.mark.parametrize("pretrained", ["", "auto", str(MINI_WEIGHTS)])
def test_minis_identity_is_the_hash_of_its_weights_however_they_are_named(pretrained):
    assert backbone_identity("hegraph-mini", pretrained, "fp32", "cpu") == OF_FILE
    assert without_preprocess(load_backbone("hegraph-mini", pretrained)) == OF_FILE


def test_a_fingerprint_is_the_identity_and_the_test_transform(mini):
    """Features that were encoded by an earlier version are kept under this value, and must be found."""
    assert mini.fingerprint == {
        "model": "hegraph-mini",
        "weights": "68bc1a9fda48b1b2589263b5cd232893ea5ab966b275314b6ac490cd82b80c0b",
        "preprocess": describe_transform(mini.preprocess),
    }


def test_a_weights_file_is_known_by_its_content_and_not_by_its_name(tiny_model, tmp_path):
    for name in ("one.safetensors", "two.safetensors"):
        save_weights(tiny_model, tmp_path / name)
        identity = backbone_identity(TINY, str(tmp_path / name), "fp32", "cpu")
        assert identity == {"model": TINY, "weights": hash_file(tmp_path / name)}
        assert without_preprocess(load_backbone(TINY, str(tmp_path / name))) == identity


def test_a_tag_is_known_by_its_name(no_hub):
    assert backbone_identity("RN50-quickgelu", "auto", "fp32", "cpu") == {
        "model": "RN50-quickgelu",
        "weights": "openai",
    }
    identity = backbone_identity("PE-Core-T-16-384", "meta", "fp32", "cpu")
    assert identity == {"model": "PE-Core-T-16-384", "weights": "meta"}
    model, _, _ = create_model("PE-Core-T-16-384")
    save_weights(model, cache_file(no_hub, "timm/PE-Core-T-16-384", "open_clip_model.safetensors"))
    assert without_preprocess(load_backbone("PE-Core-T-16-384", "meta")) == identity


def test_an_existing_file_goes_before_a_tag_of_its_name(tiny_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(tiny_model.state_dict(), tmp_path / "openai")
    identity = backbone_identity(TINY, "auto", "fp32", "cpu")
    assert identity == {"model": TINY, "weights": hash_file(tmp_path / "openai")}
    assert without_preprocess(load_backbone(TINY, "auto")) == identity


def test_a_folder_is_known_by_its_files(bundle):
    (bundle / "tokenizer.json").write_text("{}")
    identity = backbone_identity(f"local-dir:{bundle}", "auto", "fp32", "cpu")
    assert identity == {
        "model": hash_file(bundle / "open_clip_config.json"),
        "weights": hash_file(bundle / "open_clip_pytorch_model.bin"),
        "tokenizer.json": hash_file(bundle / "tokenizer.json"),
    }
    assert without_preprocess(load_backbone(f"local-dir:{bundle}")) == identity


def test_a_repository_is_known_by_its_files_in_the_cache(bundle, no_hub):
    for name in ("open_clip_config.json", "open_clip_pytorch_model.bin"):
        shutil.copy(bundle / name, cache_file(no_hub, "org/birds", name))
    identity = backbone_identity("hf-hub:org/birds", "", "fp32", "cpu")
    assert identity == backbone_identity(f"local-dir:{bundle}", "", "fp32", "cpu")
    assert without_preprocess(load_backbone("hf-hub:org/birds")) == identity


def test_a_precision_below_fp32_is_part_of_the_identity():
    for device in ("cpu", "cuda:1"):
        assert backbone_identity("hegraph-mini", "", "amp", device) == {**OF_FILE, "precision": "amp"}
        assert backbone_identity("hegraph-mini", "", "fp32", device) == OF_FILE


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("", "auto", "fp32", "cpu"), r"MODEL\.BACKBONE\.NAME is empty"),
        (("RN50", "", "fp32", "cpu"), r"MODEL\.BACKBONE\.PRETRAINED is empty; 'RN50' needs"),
        (("hf-hub:org/birds", "openai", "fp32", "cpu"), "hf-hub:org/birds brings its weights along"),
        (("hegraph-mini", "", "fp61", "cpu"), r"unknown precision 'fp61'; did you mean 'fp16'\?"),
        (("local-dir:/nowhere", "", "fp32", "cpu"), "must be a folder with open_clip_config"),
    ],
)
def test_what_cannot_be_identified_is_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        backbone_identity(*arguments)


def test_a_repository_that_is_not_here_and_cannot_be_downloaded_is_refused(no_hub):
    with pytest.raises(UserError, match="hf-hub:org/birds is not on this machine, and .* cannot be reached"):
        backbone_identity("hf-hub:org/birds", "", "fp32", "cpu")
