"""Weights in the cache of OpenAI's `clip` package."""

import hashlib
import logging

import open_clip
import pytest

from trainers.hegraph.features.backbones import clip_cache
from trainers.hegraph.features.backbones.clip_cache import find_cached_by_clip
from trainers.hegraph.features.backbones.identity import MINI_WEIGHTS
from trainers.hegraph.features.backbones.loading import local_weights
from trainers.hegraph.features.backbones.open_clip_models import find_source
from trainers.hegraph.utils.errors import UserError

CONTENT = MINI_WEIGHTS.read_bytes()


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """Folder of the cache."""
    monkeypatch.setattr(clip_cache, "CLIP_CACHE", tmp_path)
    return tmp_path


def url(content: bytes) -> str:
    return f"https://host/clip/models/{hashlib.sha256(content).hexdigest()}/RN50.pt"


def test_cached_file_with_its_checksum_is_found(cache):
    (cache / "RN50.pt").write_bytes(CONTENT)
    assert find_cached_by_clip(url(CONTENT)) == cache / "RN50.pt"


def test_file_with_another_checksum_is_not_used(cache, caplog):
    (cache / "RN50.pt").write_bytes(CONTENT[:-1])
    with caplog.at_level(logging.WARNING):
        assert find_cached_by_clip(url(CONTENT)) is None
    assert f"{cache / 'RN50.pt'} is not used" in caplog.text


@pytest.mark.parametrize("address", ["", "https://host/RN50.pt", url(CONTENT)])
def test_missing_file_or_other_weights_are_not_found(cache, address):
    assert find_cached_by_clip(address) is None


def test_openai_weights_are_read_from_the_cache_of_clip(cache, monkeypatch):
    """Without a request to the Hub, which the tag would need."""
    config = open_clip.get_pretrained_cfg("RN50", "openai") | {"url": url(CONTENT)}
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda name, tag: config)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (cache / "RN50.pt").write_bytes(CONTENT)
    source = find_source("RN50-quickgelu", "openai")
    assert (source.weights, source.tag) == (cache / "RN50.pt", "openai")
    assert local_weights("RN50-quickgelu", "openai") == cache / "RN50.pt"


@pytest.mark.parametrize(("name", "ours"), [
    ("ViT-B/16", "ViT-B-16-quickgelu"), ("ViT-L/14@336px", "ViT-L-14-336-quickgelu"),
])  # fmt: skip
def test_names_of_clip_are_answered_with_ours(name, ours):
    with pytest.raises(UserError, match=f"'{ours}'"):
        find_source(name, "openai")
