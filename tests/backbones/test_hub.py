"""Names of the Hugging Face hub: downloaded, cached, or said where to put what."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from tiny import assert_same_features, cache_file, save_weights
from torchvision import transforms as T

from trainers.hegraph.backbones import identity, loading
from trainers.hegraph.backbones.loading import create_model, find_source, load_backbone
from trainers.hegraph.utils.errors import UserError


def test_weights_that_cannot_be_downloaded_are_named_with_where_to_put_them_at_once(no_hub, monkeypatch):
    asked, session = [], identity.get_session()

    def head(url: str, timeout: float) -> None:
        asked.append((url, timeout))
        session.head(url, timeout=timeout)

    monkeypatch.setattr(identity, "get_session", lambda: SimpleNamespace(head=head))
    monkeypatch.setattr(identity, "hf_hub_download", lambda *_: pytest.fail("huggingface_hub tries for a minute"))
    with pytest.raises(UserError) as caught:
        load_backbone("RN50-quickgelu", "openai")
    assert asked == [("http://127.0.0.1:9", 5)]  # seconds: once, and no longer
    assert str(caught.value) == (
        "RN50-quickgelu with the weights 'openai' is not on this machine, and http://127.0.0.1:9 cannot be reached: "
        "download open_clip_model.safetensors or open_clip_pytorch_model.bin from "
        "http://127.0.0.1:9/timm/resnet50_clip.openai elsewhere and give its path in place of the tag"
    )


@pytest.mark.parametrize(
    ("name", "pretrained", "message"),
    [
        ("ViTamin-S", "datacomp1b", r"pytorch_model\.bin from http.*/jienengchen/ViTamin-S elsewhere"),
        ("hf-hub:org/birds", "", r"open_clip_config\.json and open_clip_model\.safetensors from .*local-dir:"),
        ("hf-hub:a/b/c", "", r"'a/b/c' is no repository"),
    ],
)
def test_what_cannot_be_had_names_the_files(no_hub, name, pretrained, message):
    with pytest.raises(UserError, match=message):
        load_backbone(name, pretrained)


def test_cached_weights_of_a_tag_need_no_hub(no_hub):
    weights = cache_file(no_hub, "timm/PE-Core-T-16-384", "open_clip_model.safetensors")
    model, _, _ = create_model("PE-Core-T-16-384")
    save_weights(model, weights)
    backbone = load_backbone("PE-Core-T-16-384", "meta")
    assert (backbone.name, backbone.fingerprint["weights"]) == ("PE-Core-T-16-384/meta", "meta")
    # another resolution, normalisation and text length than OpenAI's
    assert backbone.input_size == (384, 384)
    assert backbone.mean == backbone.std == (0.5, 0.5, 0.5)
    assert backbone.tokenizer(["a cat"]).shape == (1, 32)
    resize = backbone.preprocess.transforms[0]
    assert (tuple(resize.size), resize.interpolation) == ((384, 384), T.InterpolationMode.BILINEAR)
    # a file of the same weights is preprocessed alike
    of_file = loading._preprocessing(find_source("PE-Core-T-16-384", str(weights)))
    assert of_file == loading._preprocessing(find_source("PE-Core-T-16-384", "meta"))
    assert_same_features(backbone, model.eval(), torch.randn(1, 3, 384, 384))


def test_a_hub_name_is_downloaded_by_the_first_name_that_the_repository_has(bundle, no_hub, tiny_model, monkeypatch):
    monkeypatch.setattr(identity, "get_session", lambda: SimpleNamespace(head=lambda url, timeout: None))
    asked: list[str] = []

    def download(repository: str, filename: str) -> str:
        asked.append(f"{repository} {filename}")
        if repository != "org/birds" or not (bundle / filename).exists():
            raise FileNotFoundError(f"404: {filename}\nhelp")
        return str(bundle / filename)

    monkeypatch.setattr(identity, "hf_hub_download", download)
    remote, local = load_backbone("hf-hub:org/birds"), load_backbone(f"local-dir:{bundle}")
    names = ("open_clip_config.json", "open_clip_model.safetensors", "open_clip_pytorch_model.bin")
    assert asked[:3] == [f"org/birds {name}" for name in names]
    assert (remote.name, local.name, remote.fingerprint == local.fingerprint) == ("org/birds", "birds", True)
    assert_same_features(remote, tiny_model)
    with pytest.raises(UserError, match=r"cannot download open_clip_config\.json of org/bees: 404: open_clip_con\S+$"):
        load_backbone("hf-hub:org/bees")
