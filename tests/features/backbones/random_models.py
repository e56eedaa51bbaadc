"""Tiny models with random weights in the formats of transformers and timm, also copies of open_clip's."""

import json
from pathlib import Path
from typing import Any

import timm
import torch
from open_clip import SimpleTokenizer
from safetensors.torch import save_file
from torch import Tensor, nn

SIDE = 32  # pixels of the input
WORDS = 200  # size of the vocabulary
LAYERS = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION = {**LAYERS, "image_size": SIDE, "patch_size": 8}
TEXT = {**LAYERS, "vocab_size": WORDS, "max_position_embeddings": 16}
ENDS = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
CLIP_IMAGES = {"crop_size": {"height": SIDE, "width": SIDE}, "size": {"shortest_edge": SIDE}}
SQUARE_IMAGES = {"size": {"height": SIDE, "width": SIDE}}

# Class of the configuration, its arguments, class of the image processor, its arguments
TWO_TOWERS: dict[str, tuple[str, dict[str, Any], str, dict[str, Any]]] = {
    "clip": (
        "CLIPConfig", {"vision_config": VISION, "text_config": TEXT | ENDS, "projection_dim": 24},
        "CLIPImageProcessor", CLIP_IMAGES,
    ),
    "siglip": (
        "SiglipConfig", {"vision_config": VISION, "text_config": TEXT | ENDS}, "SiglipImageProcessor", SQUARE_IMAGES,
    ),
    "metaclip_2": (
        "MetaClip2Config", {"vision_config": VISION, "text_config": TEXT | ENDS, "projection_dim": 24},
        "CLIPImageProcessor", CLIP_IMAGES,
    ),
    "chinese_clip": (
        "ChineseCLIPConfig", {"vision_config": VISION, "text_config": TEXT | ENDS, "projection_dim": 24},
        "ChineseCLIPImageProcessor", SQUARE_IMAGES | {"do_center_crop": False},
    ),
    "altclip": (
        "AltCLIPConfig",
        {
            "vision_config": VISION, "projection_dim": 24,
            "text_config": TEXT | ENDS | {"max_position_embeddings": 18, "project_dim": 24},
        },
        "CLIPImageProcessor", CLIP_IMAGES,
    ),
}  # fmt: skip
LARGER = VISION | {"image_size": 56}  # positions of larger images than the input, as DINOv2 has them
IMAGES_ONLY: dict[str, tuple[str, dict[str, Any], str, dict[str, Any]]] = {
    "dinov2": ("Dinov2Config", LARGER, "BitImageProcessor", CLIP_IMAGES | {"size": {"shortest_edge": 37}}),
    "dinov2_with_registers": (
        "Dinov2WithRegistersConfig", LARGER | {"num_register_tokens": 2}, "BitImageProcessor", CLIP_IMAGES,
    ),
    "dinov3_vit": ("DINOv3ViTConfig", VISION, "DINOv3ViTImageProcessor", SQUARE_IMAGES),
    "dinov3_convnext": (
        "DINOv3ConvNextConfig", {"hidden_sizes": [8, 8, 16, 24], "depths": [1, 1, 1, 1], "image_size": SIDE},
        "DINOv3ViTImageProcessor", SQUARE_IMAGES,
    ),
    "vit": ("ViTConfig", VISION, "ViTImageProcessor", SQUARE_IMAGES),
}  # fmt: skip
KINDS = TWO_TOWERS | IMAGES_ONLY


def write_transformers_model(folder: Path, kind: str) -> Path:
    """Write a tiny model of a `model_type` with random weights, its image processor and its tokenizer."""
    import transformers

    from trainers.hegraph.features.backbones.transformers_models import CLASSES

    config, arguments, processor, settings = KINDS[kind]
    torch.manual_seed(0)
    options = {} if CLASSES[kind].pooled else {"add_pooling_layer": False}
    model = getattr(transformers, CLASSES[kind].name)(getattr(transformers, config)(**arguments), **options)
    with torch.no_grad():
        for parameter in model.parameters():  # the library's initial values make all images alike
            if parameter.ndim > 1 and parameter.numel():
                parameter.normal_(std=parameter[0].numel() ** -0.5)
    model.save_pretrained(folder)
    getattr(transformers, processor)(**settings).save_pretrained(folder)
    if kind in TWO_TOWERS:
        write_word_tokenizer(folder)
    return folder


def write_word_tokenizer(folder: Path) -> None:
    """Write a tokenizer with one token a word, which begins and ends sentences as `ENDS` has it."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = "a photo of no the digit zero one two three four five six seven eight nine cat dog . scan written".split()
    vocabulary = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3}
    for number, word in enumerate(words):
        vocabulary[word] = 4 + number
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>",
        model_max_length=16,
    ).save_pretrained(folder)  # fmt: skip


def write_timm_model(folder: Path, name: str = "test_vit.r160_in1k", **arguments: Any) -> Path:
    """Write a model of timm with random weights, in timm's format."""
    torch.manual_seed(0)
    model = timm.create_model(name, **arguments)
    folder.mkdir(exist_ok=True)
    save_file(model.state_dict(), folder / "model.safetensors")
    keys = ("input_size", "interpolation", "mean", "std", "crop_pct", "crop_mode", "classifier", "first_conv")
    entry = {key: model.pretrained_cfg[key] for key in keys if key in model.pretrained_cfg}
    architecture = name.partition(".")[0]
    config = {"architecture": architecture, "num_classes": model.num_classes, "pretrained_cfg": entry}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


# --- copies of open_clip's models


def write_clip_tokenizer(folder: Path, padding: str = "<|endoftext|>") -> None:
    """Write OpenAI's tokenizer, which open_clip includes, in the format of transformers."""
    own = SimpleTokenizer()
    renamed = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocabulary = {renamed.get(word, word): number for word, number in own.encoder.items()}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    merges = [" ".join(pair) for pair in own.bpe_ranks]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]))
    end = "<|endoftext|>"
    config = {
        "tokenizer_class": "CLIPTokenizer", "bos_token": "<|startoftext|>", "eos_token": end, "unk_token": end,
        "pad_token": padding, "model_max_length": 77,
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def _blocks(state: dict[str, Tensor], source: str, target: str, renamed: dict[str, Tensor]) -> None:
    """Copy the blocks of open_clip's transformer `source` to the names of transformers."""
    names = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
    names["attn.out_proj"] = "self_attn.out_proj"
    for key, value in state.items():
        if not key.startswith(f"{source}.resblocks."):
            continue
        number, _, rest = key.removeprefix(f"{source}.resblocks.").partition(".")
        layer, _, kind = rest.rpartition(".")
        place = f"{target}.encoder.layers.{number}"
        if rest in ("attn.in_proj_weight", "attn.in_proj_bias"):
            for part, of_part in zip("qkv", value.chunk(3)):
                renamed[f"{place}.self_attn.{part}_proj.{rest.rpartition('_')[2]}"] = of_part
        else:
            renamed[f"{place}.{names[layer]}.{kind}"] = value


def copy_clip(model: nn.Module, folder: Path, layers: dict[str, int], activation: str = "quick_gelu") -> Path:
    """Write a CLIP of open_clip, a ViT with OpenAI's text tower, as a `CLIPModel`.

    Args:
        model: The model.
        folder: Folder to write.
        layers: "patch" size, and "heads" of the image tower; "text_heads".
        activation: Name of the activation in transformers.
    """
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    state = model.state_dict()
    renamed: dict[str, Tensor] = {"logit_scale": state["logit_scale"]}
    _blocks(state, "visual.transformer", "vision_model", renamed)
    _blocks(state, "transformer", "text_model", renamed)
    same = {
        "visual.class_embedding": "vision_model.embeddings.class_embedding",
        "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
        "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
        "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
        "positional_embedding": "text_model.embeddings.position_embedding.weight",
    }
    for norm, target in (
        ("visual.ln_pre", "vision_model.pre_layrnorm"),
        ("visual.ln_post", "vision_model.post_layernorm"),
        ("ln_final", "text_model.final_layer_norm"),
    ):
        for kind in ("weight", "bias"):
            same[f"{norm}.{kind}"] = f"{target}.{kind}"
    for source, target in same.items():
        renamed[target] = state[source]
    renamed["visual_projection.weight"] = state["visual.proj"].t()
    renamed["text_projection.weight"] = state["text_projection"].t()
    width, size = len(state["visual.class_embedding"]), model.visual.image_size[0]
    vision = {
        "hidden_size": width, "intermediate_size": 4 * width, "num_attention_heads": layers["heads"],
        "num_hidden_layers": len(model.visual.transformer.resblocks), "patch_size": layers["patch"], "image_size": size,
    }  # fmt: skip
    words, width = state["token_embedding.weight"].shape
    text = {
        "hidden_size": width, "intermediate_size": 4 * width, "num_attention_heads": layers["text_heads"],
        "num_hidden_layers": len(model.transformer.resblocks), "vocab_size": words, "max_position_embeddings": 77,
        "bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 49407,
    }  # fmt: skip
    config = CLIPConfig(
        vision_config=vision | {"hidden_act": activation}, text_config=text | {"hidden_act": activation},
        projection_dim=state["visual.proj"].shape[1],
    )  # fmt: skip
    copied = CLIPModel(config)
    missing = copied.load_state_dict(renamed, strict=False).missing_keys
    assert not [key for key in missing if not key.endswith("position_ids")]
    folder.mkdir(exist_ok=True)
    copied.save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size}).save_pretrained(folder)
    write_clip_tokenizer(folder)
    return folder


def copy_siglip(model: nn.Module, folder: Path, heads: int, text_heads: int) -> Path:
    """Write a SigLIP of open_clip, with a ViT of timm and open_clip's text tower, as a `SiglipModel`.

    The padding of the tokenizer is token 0, as in open_clip's.
    """
    from transformers import SiglipConfig, SiglipImageProcessor, SiglipModel

    state = {key.removeprefix("visual.trunk."): value for key, value in model.state_dict().items()}
    renamed = {key: state[key].reshape(1) for key in ("logit_scale", "logit_bias")}
    same = {
        "patch_embed.proj.weight": "vision_model.embeddings.patch_embedding.weight",
        "patch_embed.proj.bias": "vision_model.embeddings.patch_embedding.bias",
        "attn_pool.latent": "vision_model.head.probe",
        "text.token_embedding.weight": "text_model.embeddings.token_embedding.weight",
        "text.positional_embedding": "text_model.embeddings.position_embedding.weight",
    }
    layers = {
        "norm": "vision_model.post_layernorm", "text.ln_final": "text_model.final_layer_norm",
        "attn_pool.proj": "vision_model.head.attention.out_proj", "attn_pool.norm": "vision_model.head.layernorm",
        "attn_pool.mlp.fc1": "vision_model.head.mlp.fc1", "attn_pool.mlp.fc2": "vision_model.head.mlp.fc2",
    }  # fmt: skip
    depth = len(model.visual.trunk.blocks)
    for number in range(depth):
        of_block = {"norm1": "layer_norm1", "norm2": "layer_norm2", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
        of_block["attn.proj"] = "self_attn.out_proj"
        place = f"vision_model.encoder.layers.{number}"
        for source, target in of_block.items():
            layers[f"blocks.{number}.{source}"] = f"{place}.{target}"
        for kind in ("weight", "bias"):
            for part, value in zip("qkv", state[f"blocks.{number}.attn.qkv.{kind}"].chunk(3)):
                renamed[f"{place}.self_attn.{part}_proj.{kind}"] = value
    for kind in ("weight", "bias"):
        of_pool = [state[f"attn_pool.{part}.{kind}"] for part in ("q", "kv")]
        renamed[f"vision_model.head.attention.in_proj_{kind}"] = torch.cat(of_pool)
        for source, target in layers.items():
            same[f"{source}.{kind}"] = f"{target}.{kind}"
    for source, target in same.items():
        renamed[target] = state[source]
    _blocks(state, "text.transformer", "text_model", renamed)
    renamed["vision_model.embeddings.position_embedding.weight"] = state["pos_embed"][0]
    renamed["text_model.head.weight"] = state["text.text_projection"].t()
    renamed["text_model.head.bias"] = torch.zeros(len(renamed["text_model.head.weight"]))
    width, size = state["norm.weight"].shape[0], model.visual.trunk.patch_embed.img_size[0]
    vision = {
        "hidden_size": width, "intermediate_size": 4 * width, "num_attention_heads": heads, "num_hidden_layers": depth,
        "patch_size": model.visual.trunk.patch_embed.patch_size[0], "image_size": size, "hidden_act": "gelu",
    }  # fmt: skip
    words, text_width = state["text.token_embedding.weight"].shape
    text = {
        "hidden_size": text_width, "intermediate_size": 4 * text_width, "num_attention_heads": text_heads,
        "num_hidden_layers": len(model.text.transformer.resblocks), "vocab_size": words, "projection_size": width,
        "max_position_embeddings": len(state["text.positional_embedding"]), "layer_norm_eps": 1e-5,
        "hidden_act": "gelu",
    }  # fmt: skip
    copied = SiglipModel(SiglipConfig(vision_config=vision, text_config=text))
    missing = copied.load_state_dict(renamed, strict=False).missing_keys
    assert not [key for key in missing if not key.endswith("position_ids")]
    folder.mkdir(exist_ok=True)
    copied.save_pretrained(folder)
    SiglipImageProcessor(size={"height": size, "width": size}).save_pretrained(folder)
    write_clip_tokenizer(folder, padding="!")
    return folder
