"""Names of the Hugging Face hub: downloaded, cached, or said where to put what."""

from __future__ import annotations

import http.server
import os
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import (
    ROOT,
    assert_same_features,
    cache_file,
    save_weights,
)
from torchvision import transforms as T

from trainers.hegraph.backbones import hub, loading
from trainers.hegraph.backbones.loading import create_model, find_source, load_backbone
from trainers.hegraph.utils.errors import UserError


def test_weights_that_cannot_be_downloaded_are_named_with_where_to_put_them_at_once(no_hub, monkeypatch):
    asked, session = [], hub.get_session()

    def head(url: str, timeout: float) -> None:
        asked.append((url, timeout))
        session.head(url, timeout=timeout)

    monkeypatch.setattr(hub, "get_session", lambda: SimpleNamespace(head=head))
    monkeypatch.setattr(hub, "hf_hub_download", lambda *_: pytest.fail("huggingface_hub tries for a minute"))
    with pytest.raises(UserError) as caught:
        load_backbone("RN50-quickgelu", "openai")
    assert asked == [("http://127.0.0.1:9", 5)]  # seconds: once, and no longer
    message = str(caught.value)
    assert "\n" not in message
    for words in (
        "RN50-quickgelu with the weights 'openai' is not on this machine",
        "http://127.0.0.1:9 cannot be reached",
        "open_clip_model.safetensors",
        "http://127.0.0.1:9/timm/resnet50_clip.openai",
        "give its path in place of the tag",
    ):
        assert words in message


def test_a_file_that_the_repository_names_itself_is_named(no_hub):
    with pytest.raises(UserError, match=r"pytorch_model\.bin from http.*/jienengchen/ViTamin-S elsewhere"):
        load_backbone("ViTamin-S", "datacomp1b")


def test_a_hub_name_that_cannot_be_downloaded_names_both_files(no_hub):
    with pytest.raises(UserError, match=r"open_clip_config\.json and open_clip_model\.safetensors from .*local-dir:"):
        load_backbone("hf-hub:org/birds")


def test_an_impossible_hub_name_is_refused(no_hub):
    with pytest.raises(UserError, match=r"'a/b/c' is no repository"):
        load_backbone("hf-hub:a/b/c")


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
    assert backbone.logit_scale == pytest.approx(model.logit_scale.exp().item())
    # a file of the same weights is preprocessed alike
    of_file = loading._preprocessing(find_source("PE-Core-T-16-384", str(weights)))
    assert of_file == loading._preprocessing(find_source("PE-Core-T-16-384", "meta"))
    assert of_file["image_resize_mode"] == "squash"
    assert_same_features(backbone, model.eval(), torch.randn(1, 3, 384, 384))


class Hub(http.server.BaseHTTPRequestHandler):
    """Answers as huggingface.co does for the files of a folder `repository`."""

    repository: Path

    def do_HEAD(self) -> bytes:
        path = self.repository / self.path.rpartition("/")[2]
        found = "/org/birds/resolve/main/" in self.path and path.is_file()
        body = path.read_bytes() if found else b""
        self.send_response(200 if found or self.path == "/" else 404)
        if not found and "/resolve/" in self.path:
            self.send_header("X-Error-Code", "EntryNotFound")
        for name, value in (("X-Repo-Commit", "a" * 40), ("ETag", f'"{path.name}"'), ("Content-Length", len(body))):
            self.send_header(name, str(value))
        self.end_headers()
        return body

    def do_GET(self) -> None:
        self.wfile.write(self.do_HEAD())

    def log_message(self, *_: Any) -> None:
        pass


@pytest.mark.slow
def test_a_hub_name_is_downloaded_and_then_cached(bundle, no_hub, tiny_model):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Birds", (Hub,), {"repository": bundle}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    loaded = "from trainers.hegraph.backbones.loading import load_backbone as load"
    code = f"{loaded}; load('hf-hub:org/birds'), load('hf-hub:org/bees')"
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("HF_")},
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HUB_CACHE": str(no_hub),
    }
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    server.shutdown()
    server.server_close()
    # the second is not there, which is said
    assert "UserError: cannot download open_clip_config.json of org/bees: 404" in done.stderr

    cached = load_backbone("hf-hub:org/birds")
    local = load_backbone(f"local-dir:{bundle}")
    assert (cached.name, local.name) == ("org/birds", "birds")
    assert cached.fingerprint == local.fingerprint
    assert_same_features(cached, tiny_model)
