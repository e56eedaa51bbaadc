"""Models in the format of transformers: features, preprocessing, precision, and what is refused."""

import json
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from random_models import KINDS, TWO_TOWERS, copy_clip, copy_siglip, write_transformers_model
from safetensors.torch import load_file, save_file
from tiny import SENTENCES

pytest.importorskip("transformers.models")

from trainers.hegraph import UserError, load_backbone
from trainers.hegraph.features.backbones.identity import backbone_identity, encodes_text
from trainers.hegraph.features.backbones.transformers_classes import CLASSES


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, str]:
    """Names of tiny random models, by `model_type`."""
    root = tmp_path_factory.mktemp("models")
    return {kind: f"transformers:{write_transformers_model(root / kind, kind)}" for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_every_class_encodes_images(models, kind):
    backbone = load_backbone(models[kind])
    pixels = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    features = backbone.encode_images(pixels)
    assert backbone.name == f"transformers/{kind}" and backbone.input_size == (32, 32)
    assert features.shape == (3, backbone.width)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(3))
    assert (features[0] @ features[1]).item() < 0.999
    assert backbone.has_text == encodes_text(models[kind]) == (kind in TWO_TOWERS)


@pytest.mark.parametrize("kind", ["dinov2", "dinov2_with_registers"])
def test_positions_of_larger_images_are_resized_as_in_transformers(models, kind):
    import transformers

    own = getattr(transformers, CLASSES[kind].name).from_pretrained(models[kind].partition(":")[2]).eval()
    pixels = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = F.normalize(own(pixels).pooler_output, dim=-1)
    assert own.embeddings.position_embeddings.shape[1] == 1 + 7 * 7
    assert torch.equal(load_backbone(models[kind]).encode_images(pixels), expected)


@pytest.mark.parametrize("kind", TWO_TOWERS)
def test_sentence_has_equal_features_in_any_batch(models, kind):
    backbone = load_backbone(models[kind])
    sentences = ["a photo of a cat", "a photo of no dog and many more words than a tokenizer may take " * 3, "", "a"]
    alone = torch.cat([backbone.encode_text([sentence]) for sentence in sentences])
    torch.testing.assert_close(backbone.encode_text(sentences), alone)
    assert (alone[0] @ alone[3]).item() < 0.9999


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_converts_the_whole_model(models, kind):
    exact, half = load_backbone(models[kind]), load_backbone(models[kind], precision="bf16")
    pixels = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    cosines = (exact.encode_images(pixels) * half.encode_images(pixels)).sum(dim=1)
    assert {parameter.dtype for parameter in half.model.network.parameters()} == {torch.bfloat16}
    assert 0.99 < cosines.min() and cosines.min() < 1
    assert half.fingerprint["precision"] == "bf16"
    if kind in TWO_TOWERS:
        assert half.logit_scale == exact.logit_scale
        assert (exact.encode_text(SENTENCES) * half.encode_text(SENTENCES)).sum(dim=1).min() > 0.99


@pytest.mark.parametrize("precision", ["fp16", "amp"])
@pytest.mark.parametrize("kind", ["clip", "siglip", "dinov2"])
def test_half_precision_gives_nearly_equal_features(models, kind, precision):
    exact, half = load_backbone(models[kind]), load_backbone(models[kind], precision=precision)
    pixels = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert (exact.encode_images(pixels) * half.encode_images(pixels)).sum(dim=1).min() > 0.999


def test_copy_of_clip_gives_the_features_of_open_clip(tiny, tiny_model, tmp_path):
    folder = copy_clip(tiny_model, tmp_path / "copy", {"patch": 8, "heads": 2, "text_heads": 2})
    copied = load_backbone(f"transformers:{folder}")
    pixels = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert (copied.encode_images(pixels) - tiny.encode_images(pixels)).abs().max() < 1e-5
    sentences = [*SENTENCES, "A photo of THE cat's 12 dogs, " * 20]
    assert (copied.encode_text(sentences) - tiny.encode_text(sentences)).abs().max() < 1e-5
    assert copied.logit_scale == tiny.logit_scale
    assert (copied.mean, copied.std, copied.input_size) == (tiny.mean, tiny.std, tiny.input_size)


def test_copy_of_siglip_gives_the_features_of_open_clip(siglip, tmp_path):
    own = load_backbone(f"local-dir:{siglip}")
    # The SigLIP of transformers has no class token, like the one of the paper
    trunk = timm.create_model("vit_tiny_patch16_224", num_classes=0, global_pool="map", class_token=False)
    own.model.visual.trunk = trunk.eval()
    folder = copy_siglip(own.model, tmp_path / "copy", heads=3, text_heads=2)
    copied = load_backbone(f"transformers:{folder}")
    pixels = torch.randn(3, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    assert (copied.encode_images(pixels) - own.encode_images(pixels)).abs().max() < 1e-5
    assert (copied.encode_text(SENTENCES) - own.encode_text(SENTENCES)).abs().max() < 1e-5
    assert copied.logit_scale == own.logit_scale
    assert (copied.mean, copied.std, copied.input_size) == (own.mean, own.std, own.input_size)


# --- what is refused


def change(folder: Path, name: str, **values: object) -> None:
    content = json.loads((folder / name).read_text()) | values
    (folder / name).write_text(json.dumps(content))


@pytest.mark.parametrize(
    "name, values, message",
    [
        ("config.json", {"model_type": "bert"}, r"'bert'; expected one of clip \(CLIPModel\), siglip"),
        ("config.json", {"model_type": "siglip2"}, "'siglip2'; NaFlex models have no fixed resolution; expected"),
        ("config.json", {"quantization_config": {"bits": 4}}, "has quantised weights; expected"),
        ("preprocessor_config.json", {"image_processor_type": "BeitImageProcessor"}, "has the image processor Beit"),
        ("preprocessor_config.json", {"size": {"shortest_edge": 32, "longest_edge": 40}}, "resizes to"),
        ("preprocessor_config.json", {"do_rescale": False}, "does not rescale bytes by 1/255"),
        ("preprocessor_config.json", {"do_pad": True, "pad_size": {"height": 40, "width": 40}}, "pads images to"),
        ("preprocessor_config.json", {"resample": 17}, r"expected one of 0 \(nearest\), .*, got 17"),
        ("preprocessor_config.json", {"image_mean": [0.5]}, "expected a number, or one for each of three colours"),
        ("config.json", {"transformers_weights": "more.safetensors"}, "names its weights more.safetensors; rename"),
    ],
)
def test_other_models_and_processors_are_refused(name, values, message, tmp_path):
    folder = write_transformers_model(tmp_path / "model", "clip")
    change(folder, name, **values)
    with pytest.raises(UserError, match=message):
        load_backbone(f"transformers:{folder}")


def test_adapter_is_refused(tmp_path):
    folder = write_transformers_model(tmp_path / "model", "dinov2")
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="has adapter_config.json: merge the adapter into the weights"):
        load_backbone(f"transformers:{folder}")


def test_weights_of_another_size_are_named(tmp_path):
    folder = write_transformers_model(tmp_path / "model", "vit")
    change(folder, "config.json", image_size=48)  # 6 x 6 patches and the class token
    shapes = r"position_embeddings is \[1, 17, 32\], and config.json expects \[1, 37, 32\]"
    with pytest.raises(UserError, match=f"are of another model: .*{shapes}"):
        load_backbone(f"transformers:{folder}")


def test_images_of_another_size_are_refused(tmp_path):
    folder = write_transformers_model(tmp_path / "model", "clip")
    change(folder, "preprocessor_config.json", crop_size=48)
    with pytest.raises(UserError, match=r"cannot encode 48x48 images in bf16.*; choose another backbone, or try"):
        load_backbone(f"transformers:{folder}", precision="bf16")


def test_missing_folder_is_no_repository():
    with pytest.raises(UserError, match="must name a folder, or a repository .*; there is no folder './nope'"):
        load_backbone("transformers:./nope")


@pytest.mark.parametrize("name", ["model.safetensors", "preprocessor_config.json", "tokenizer.json"])
def test_missing_file_is_named(name, tmp_path):
    folder = write_transformers_model(tmp_path / "model", "clip")
    (folder / name).unlink()
    with pytest.raises(UserError, match=name):
        load_backbone(f"transformers:{folder}")


def test_missing_weight_is_not_random(tmp_path):
    folder = write_transformers_model(tmp_path / "model", "dinov2")
    state = load_file(folder / "model.safetensors")
    del state["layernorm.weight"]
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="lack layernorm.weight and 0 others of Dinov2Model"):
        load_backbone(f"transformers:{folder}")


def test_without_the_hub_the_message_names_the_files(no_hub):
    with pytest.raises(UserError) as caught:
        load_backbone("transformers:openai/clip-vit-base-patch32")
    message = str(caught.value)
    assert "needs config.json, model.safetensors, preprocessor_config.json and, for text, the tokenizer" in message
    assert "put them into a folder, set MODEL.BACKBONE.NAME (or --backbone) to transformers:FOLDER" in message


def test_identity_changes_with_each_file(tmp_path):
    folder = write_transformers_model(tmp_path / "model", "clip")
    name = f"transformers:{folder}"
    before = backbone_identity(name, "", "fp32", "cpu")
    assert load_backbone(name).fingerprint.items() >= before.items()
    change(folder, "tokenizer_config.json", more=1)
    change(folder, "preprocessor_config.json", image_mean=[0.5, 0.5, 0.5])
    after = backbone_identity(name, "", "fp32", "cpu")
    changed = [key for key in before if before[key] != after[key]]
    assert sorted(changed) == ["preprocessor_config.json", "tokenizer_config.json"]
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors", *before} - {
        "model", "weights"
    }  # fmt: skip


def test_siglip_lower_cases_sentences_for_a_tokenizer_that_keeps_capitals(tmp_path):
    """The files of SigLIP 2 name the tokenizer of Gemma."""
    folder = write_transformers_model(tmp_path / "model", "siglip")
    change(folder, "tokenizer.json", normalizer=None)
    backbone = load_backbone(f"transformers:{folder}")
    assert torch.equal(backbone.tokenizer(["A Photo of THE Dog"]), backbone.tokenizer(["a photo of the dog"]))
    assert backbone.tokenizer(["dog"])[0, 1] != backbone.tokenizer(["cat"])[0, 1]


def test_one_number_stands_for_three_colours(tmp_path):
    folder = write_transformers_model(tmp_path / "model", "clip")
    change(folder, "preprocessor_config.json", image_mean=0.5, image_std=0.25)
    backbone = load_backbone(f"transformers:{folder}")
    assert (backbone.mean, backbone.std) == ((0.5,) * 3, (0.25,) * 3)
