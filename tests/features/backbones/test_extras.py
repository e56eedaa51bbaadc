"""Models of libraries that are not installed: the message names the extra."""

import json
import sys

import pytest

from trainers.hegraph import UserError, load_backbone
from trainers.hegraph.features.backbones.loading import extras_of, local_weights


@pytest.mark.parametrize("extra", ["timm", "transformers"])
def test_missing_library_names_its_extra(extra, monkeypatch):
    monkeypatch.setitem(sys.modules, extra, None)  # as if it were not installed
    name = f"{extra}:organisation/name"
    for load in (load_backbone, lambda name: local_weights(name, "")):
        with pytest.raises(UserError) as caught:
            load(name)
        assert str(caught.value) == f"{name} needs the extra {extra}: pip install '.[{extra}]'"
    assert extras_of(name) == (extra,)


def test_siglip_of_open_clip_names_the_extra_of_its_tokenizer(siglip, monkeypatch):
    config = json.loads((siglip / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"]["hf_tokenizer_name"] = "timm/ViT-B-16-SigLIP"
    (siglip / "open_clip_config.json").write_text(json.dumps(config))
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError) as caught:
        load_backbone(f"local-dir:{siglip}")
    assert str(caught.value) == f"local-dir:{siglip} needs the extra transformers: pip install '.[transformers]'"


def test_siglip_of_transformers_reads_a_sentencepiece_vocabulary(tmp_path):
    pytest.importorskip("transformers.models")
    sentencepiece = pytest.importorskip("sentencepiece")
    from random_models import write_transformers_model

    folder = write_transformers_model(tmp_path / "model", "siglip")
    for file in folder.glob("*token*"):
        file.unlink()
    words = iter(["a photo of a cat", "a photo of no dog", "the digit one two three"] * 30)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=words, model_prefix=str(folder / "spiece"), vocab_size=22, pad_id=3
    )
    config = {"tokenizer_class": "SiglipTokenizer", "pad_token": "</s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    backbone = load_backbone(f"transformers:{folder}")
    assert backbone.tokenizer(["a photo of a cat"]).shape == (1, 16)
