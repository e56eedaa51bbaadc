"""Precision of backbones: "auto", bfloat16, and how it is stored."""

import pickle
import re
from pathlib import Path
from types import SimpleNamespace

import open_clip
import pytest
import torch
import torch.nn.functional as F
from open_clip.model import CLIP
from tiny import SENTENCES, TINY, TINY_CONFIG, save_weights
from torch import nn

from trainers.hegraph import Backbone, HeGraphClassifier, UserError, load_backbone, load_cfg
from trainers.hegraph.__main__ import main
from trainers.hegraph.commands import features, predict
from trainers.hegraph.datasets.digits import open_digit
from trainers.hegraph.experiments.run_folder import precision_of, run_config
from trainers.hegraph.features.backbones import identity, precision
from trainers.hegraph.features.backbones.base import encode_in_parts
from trainers.hegraph.features.backbones.identity import backbone_identity, has_fast_bfloat16, resolve_precision
from trainers.hegraph.features.backbones.open_clip_models import create_model
from trainers.hegraph.features.backbones.precision import (
    CAN_PACK,
    PackedBlock,
    PackedLinear,
    PackedPatches,
    encode_short,
    to_bfloat16,
)
from trainers.hegraph.features.bank import BankFile
from trainers.hegraph.models.folder import load_model
from trainers.hegraph.utils.reading import read_json


@pytest.mark.parametrize(("machine", "expected"), [
    ("sse2 avx512_bf16 avx512f", "bf16"), ("amx_bf16", "bf16"), ("sse2 avx512f avx512_bf16x", "fp32"),
    ((7, 5), "fp32"), ((8, 0), "bf16"), ((12, 0), "bf16"),
])  # fmt: skip
def test_auto_precision_follows_the_hardware(monkeypatch, tmp_path, machine, expected):
    device, name = ("cpu" if isinstance(machine, str) else "cuda:1"), "ViT-B-32-quickgelu"
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: {machine}\nvmx flags\t: amx_bf16\n")
    monkeypatch.setattr(identity, "CPU_INFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: machine)
    monkeypatch.setattr(identity, "has_fast_bfloat16", has_fast_bfloat16.__wrapped__)  # without its cache
    assert resolve_precision("auto", name, device) == expected
    assert resolve_precision("auto", "hegraph-mini", device) == resolve_precision("fp32", name, device) == "fp32"
    expected_identity = {"model": name, "weights": "openai"} | ({"precision": "bf16"} if expected == "bf16" else {})
    assert backbone_identity(name, "openai", "auto", device) == expected_identity
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert resolve_precision("auto", name, "cpu") == "fp32"


def test_unknown_precision_is_rejected():
    with pytest.raises(UserError, match=r"unknown precision 'fp61'; did you mean 'fp16'\?"):
        load_backbone("hegraph-mini", precision="fp61")


def pair(name: str, folder: Path, precision: str = "bf16") -> tuple[Backbone, Backbone]:
    """Load a random model in fp32 and in another precision; none of its normalisations is the identity."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, _, _ = create_model(name)
        with torch.no_grad():
            model.logit_scale.fill_(4.60517)  # 100.0 in float32, 100.03 in half precision
            for module in model.modules():
                if isinstance(module, (nn.BatchNorm2d, nn.LayerNorm)):
                    for values in (module.weight, module.bias, getattr(module, "running_mean", None)):
                        if values is not None:
                            values.add_(0.2 * torch.randn_like(values))
                    if isinstance(module, nn.BatchNorm2d):
                        module.running_var.uniform_(0.5, 1.5)
                elif isinstance(module, nn.MultiheadAttention):
                    module.in_proj_bias.normal_()
    save_weights(model, folder / "weights.safetensors")
    weights = str(folder / "weights.safetensors")
    return load_backbone(name, weights), load_backbone(name, weights, precision=precision)


def assert_nearly_equal(exact: Backbone, fast: Backbone, least: float = 0.9995) -> None:
    """Features of `fast` have float32 and unit norm, and at least this cosine with those of `exact`."""
    assert fast.fingerprint == {**exact.fingerprint, "precision": fast.precision}
    assert fast.logit_scale == exact.logit_scale
    noise = torch.rand(5, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    pixels = F.interpolate(4 * noise - 2, size=exact.input_size, mode="bicubic")
    for expected, encoded in (
        (exact.encode_images(pixels), fast.encode_images(pixels)),
        (exact.encode_text(SENTENCES), fast.encode_text(SENTENCES)),
    ):
        assert (encoded.dtype, encoded.device.type) == (torch.float32, "cpu")
        torch.testing.assert_close(encoded.norm(dim=1), torch.ones(len(encoded)))
        assert least < (expected * encoded).sum(dim=1).min() and not torch.equal(expected, encoded)


@pytest.mark.parametrize(("precision", "dtype"), [("fp16", torch.float16), ("amp", torch.float32)])
def test_fp16_converts_weights_and_amp_operations(tmp_path, precision, dtype):
    exact, fast = pair(TINY, tmp_path, precision)
    assert_nearly_equal(exact, fast)
    assert (fast.model.visual.conv1.weight.dtype, fast.model.ln_final.weight.dtype) == (dtype, torch.float32)


@pytest.mark.parametrize("name", [TINY, "tiny-vit"])  # with QuickGELU, and with GELU
def test_bf16_vit_keeps_sums_in_fp32(tmp_path, name, caplog):
    exact, fast = pair(name, tmp_path)
    assert not caplog.records  # the packed layers pass their check
    assert_nearly_equal(exact, fast, 0.9999)
    sums: list[torch.dtype] = []
    for blocks in (fast.model.visual.transformer.resblocks, fast.model.transformer.resblocks):
        for block in blocks:
            block.register_forward_hook(lambda module, given, x: sums.append(x.dtype))
            block.mlp.register_forward_hook(lambda module, given, x: sums.append(x.dtype))
    fast.encode_images(torch.zeros(1, 3, *fast.input_size)), fast.encode_text(["a"])
    assert sums == [torch.bfloat16, torch.float32] * 4
    if CAN_PACK:
        kinds = [type(module) for module in fast.model.modules()]
        assert (kinds.count(PackedLinear), kinds.count(PackedBlock), kinds.count(PackedPatches)) == (2 * 4 + 1, 2, 1)


class OwnAttention(nn.Module):
    """Attention with the layout of open_clip's own one from version 4 on, without `embed_dim`."""

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        self.num_heads = attention.num_heads
        self.head_dim = attention.head_dim
        self.in_proj_weight = attention.in_proj_weight
        self.in_proj_bias = attention.in_proj_bias
        self.q_proj_weight = self.k_proj_weight = self.v_proj_weight = None
        self.out_proj = nn.Linear(len(self.in_proj_weight) // 3, len(self.in_proj_weight) // 3)
        self.out_proj.load_state_dict(attention.out_proj.state_dict())

    def forward(self, x, k_x=None, v_x=None, attn_mask=None, need_weights=None):
        projected = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        heads = [each.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for each in projected.chunk(3, dim=-1)]
        attended = F.scaled_dot_product_attention(*heads, attn_mask=attn_mask)
        out = self.out_proj(attended.transpose(1, 2).flatten(2))
        return out if need_weights is None else (out, None)  # version 3 expects weights as well


@pytest.mark.parametrize("packs", [True, False])
def test_own_attention_of_open_clip_is_converted(tmp_path, monkeypatch, caplog, packs):
    if packs and not CAN_PACK:
        pytest.skip("this torch or processor has no bfloat16 products of oneDNN")
    monkeypatch.setattr(precision, "CAN_PACK", packs)
    exact = pair(TINY, tmp_path, "fp32")[0].model
    blocks = [*exact.visual.transformer.resblocks, *exact.transformer.resblocks]
    images = torch.randn(3, 3, *exact.visual.image_size, generator=torch.Generator().manual_seed(1))
    tokens = torch.tensor([[1, 5, 9, *[0] * (exact.context_length - 3)]])
    expected = [exact.encode_image(images), exact.encode_text(tokens)]
    for block in blocks:
        if isinstance(block.attn, nn.MultiheadAttention):  # version 3
            block.attn = OwnAttention(block.attn)
    exact.requires_grad_(False)
    torch.testing.assert_close([exact.encode_image(images), exact.encode_text(tokens)], expected)
    to_bfloat16(exact)
    encoded = [exact.encode_image(images.to(torch.bfloat16)), exact.encode_text(tokens)]
    for before, after in zip(expected, encoded):
        assert F.cosine_similarity(before, after.float()).min() > 0.9999
    kinds = {type(block) for block in exact.visual.transformer.resblocks}
    assert (PackedBlock in kinds) == packs and not caplog.records
    attention = exact.transformer.resblocks[0].attn
    assert {each.dtype for each in attention.parameters()} == {torch.bfloat16}


def operators(linear) -> SimpleNamespace:
    return SimpleNamespace(_reorder_linear_weight=lambda weight: weight, _linear_pointwise=linear)


@pytest.mark.parametrize(("broken", "reason"), [
    (SimpleNamespace(), "no attribute '_reorder_linear_weight'"),
    (operators(lambda x, weight, bias: x), "takes 3 positional arguments"),
    (
        operators(lambda x, weight, bias, *_: F.linear(x, weight, bias).flip(-1)),
        "cosine -?0[.][0-9]+ with float32, expected 0.9995 or more",
    ),
    (operators(lambda x, weight, bias, *_: F.linear(x, weight, bias) * float("nan")), "cosine nan"),
], ids=["no such operator", "other signature", "other result", "NaN"])  # fmt: skip
def test_broken_packed_operators_fall_back_to_plain_layers(tmp_path, monkeypatch, caplog, broken, reason):
    monkeypatch.setattr(precision, "CAN_PACK", False)
    exact, plain = pair(TINY, tmp_path)
    monkeypatch.setattr(precision, "CAN_PACK", True)
    monkeypatch.setattr(torch.ops, "mkldnn", broken)
    fallback = load_backbone(TINY, str(tmp_path / "weights.safetensors"), precision="bf16")
    assert_nearly_equal(exact, fallback, 0.9999)
    images = torch.randn(3, 3, *exact.input_size, generator=torch.Generator().manual_seed(1))
    assert torch.equal(fallback.encode_images(images), plain.encode_images(images))
    [record] = caplog.records
    assert re.search(rf"bfloat16 operators of torch .* failed a check \(.*{reason}.*\)", record.getMessage())


def test_bf16_resnet_folds_batch_norms(tmp_path):
    exact, fast = pair("hegraph-mini", tmp_path)
    assert_nearly_equal(exact, fast)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fast.model.modules())
    assert fast.model.visual.layer1[0].conv2.weight.is_contiguous(memory_format=torch.channels_last)


def test_text_padding_is_not_computed(tmp_path):
    exact, fast = pair(TINY, tmp_path)
    tokens = exact.tokenizer(SENTENCES)
    torch.testing.assert_close(encode_short(exact.model, tokens), exact.model.encode_text(tokens))
    lengths: list[int] = []
    fast.model.transformer.register_forward_hook(lambda module, given, x: lengths.append(x.shape[1]))
    fast.encode_text(SENTENCES)
    assert lengths == [int((tokens != 0).sum(dim=1).max())] and lengths[0] < tokens.shape[1]


def test_text_of_another_pooling_is_computed_whole():
    text = {**TINY_CONFIG["text_cfg"], "pool_type": "last"}
    model = CLIP(32, TINY_CONFIG["vision_cfg"], text, quick_gelu=True).eval().requires_grad_(False)
    tokens = open_clip.tokenize(SENTENCES)
    expected = model.encode_text(tokens)
    precision.to_bfloat16(model)
    assert F.cosine_similarity(model.encode_text(tokens).float(), expected).min() > 0.99


@pytest.mark.parametrize(("rows", "sizes"), [(1, [1]), (4, [2, 2]), (6, [3, 3]), (7, [2, 2, 2, 1])])
def test_batches_are_split_between_threads(two_threads, rows, sizes):
    seen: list[tuple[int, int]] = []

    def encode(part: torch.Tensor) -> torch.Tensor:
        seen.append((len(part), torch.get_num_threads()))
        assert not torch.is_grad_enabled()
        return part + 1

    with torch.no_grad():
        assert encode_in_parts(encode, torch.arange(rows), 3).tolist() == list(range(1, rows + 1))
    assert sorted(size for size, _ in seen) == sorted(sizes)
    assert ({threads for _, threads in seen}, torch.get_num_threads()) == ({1} if rows > 1 else {2}, 2)


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_timm_towers_are_converted(siglip, precision, dtype):
    name = f"local-dir:{siglip}"
    fast = load_backbone(name, precision=precision)
    assert_nearly_equal(load_backbone(name), fast)
    assert {parameter.dtype for parameter in fast.model.visual.parameters()} == {dtype}


def test_learned_context_has_gradients_in_bf16(tmp_path):
    _, fast = pair(TINY, tmp_path)
    context = torch.zeros(2, fast.token_embedding.embedding_dim, requires_grad=True)
    features = fast.encode_with_context(fast.context_tokens(["X X cat.", "X X dog."], 2), context)
    features[0, 0].backward()
    assert context.grad is not None and context.grad.isfinite().all() and context.grad.abs().sum() > 0


# --- through the commands

DIGITS = ("--dataset-config-file", "digits", "--config-file", "mini")
NODE = "TRAINER.HEGRAPHADAPTER"
BASE = (f"{NODE}.VARIANT", "base")


@pytest.mark.parametrize(("words", "expected"), [
    ([], "fp32"), (["--precision", "bf16"], "bf16"), ([f"{NODE}.PREC", "bf16"], "bf16"),
    (["--precision", "fp32", f"{NODE}.PREC", "bf16"], "bf16"),
    (["--precision", "bf16", f"{NODE}.PREC", "fp32"], "fp32"),
])  # fmt: skip
def test_precision_of_keys_flags_and_files(tmp_path, words, expected):
    for number in (0, 1, 10, 11):  # zero, one, zero, one
        path = tmp_path / "images" / "train" / str(number % 10) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        open_digit(f"digits/{number:04d}").save(path)
    (tmp_path / "method.yaml").write_text(
        "MODEL: {BACKBONE: {NAME: hegraph-mini}}\nTRAINER: {HEGRAPHADAPTER: {PREC: fp32}}"
    )
    files = ["--dataset-config-file", "folder", "--root", str(tmp_path / "images"), "--config-file"]
    keys = [f"{NODE}.FEATURES.DIR", str(tmp_path / "features")]
    bank = tmp_path / "bank.safetensors"
    assert features.main(["extract", "--out", str(bank), *files, str(tmp_path / "method.yaml"), *words, *keys]) == 0
    assert BankFile(bank).encoder.precision == expected


def test_records_models_and_banks_store_the_precision(tmp_path, caplog):
    keys = [*BASE, f"{NODE}.FEATURES.VIEWS", "1", f"{NODE}.FEATURES.DIR", str(tmp_path / "features")]
    for name in ("bf16", "fp32"):
        assert features.main(["extract", "--out", str(tmp_path / name), *DIGITS, "--precision", name, *keys]) == 0
    # The images of three splits and the sentences, in two precisions
    assert len(list((tmp_path / "features").rglob("*.safetensors"))) == 8
    exact, fast = BankFile(tmp_path / "fp32"), BankFile(tmp_path / "bf16")
    assert (exact.encoder.precision, fast.encoder.precision) == ("fp32", "bf16")
    cosines = (exact.features("test") * fast.features("test")).sum(dim=1)
    assert 0.9999 < cosines.mean() and 0.9998 < cosines.min() < 1 - 1e-6
    sources = {"run": [*DIGITS, *keys, f"{NODE}.PREC", "bf16"], "bank": ["--features", str(tmp_path / "bf16"), *BASE]}
    for out, source in sources.items():
        assert main(["--shots", "-1", "--seed", "1", "--output-dir", str(tmp_path / out), *source]) == 0
        record, backbone = read_json(tmp_path / out / "result.json"), load_model(tmp_path / out).backbone
        named = record["precision"], record["config"][f"{NODE}.PREC"], backbone.precision
        assert (*named, backbone.fingerprint["precision"]) == ("bf16",) * 4
    for bank, expected in (("bf16", 0), ("fp32", 1)):
        assert predict.main([str(tmp_path / "run"), "--features", str(tmp_path / bank)]) == 0
        assert caplog.text.count("trained on features in bf16, and is used here with features in fp32") == expected


def test_a_run_of_an_earlier_version_is_recognised():
    """Records of earlier versions without a precision are fp32, the only precision on CPUs then."""
    cfg, exact = load_cfg("digits", "mini"), load_cfg("digits", "mini", opts=[f"{NODE}.PREC", "fp32"])
    for earlier in ({"backbone": {"model": "a"}}, {"bank": "0"}):
        assert run_config(cfg, precision_of(earlier)) == run_config(exact)
    fast = precision_of({"backbone": {"model": "a", "precision": "bf16"}})
    assert [run_config(each, fast)[f"{NODE}.PREC"] for each in (cfg, exact)] == ["bf16", "fp32"]


def test_classifier_keeps_the_precision_of_training(caplog):
    images = [open_digit(f"digits/{number:04d}") for number in (0, 1, 10, 11)]  # zero, one, zero, one
    fitted = HeGraphClassifier("hegraph-mini", precision="bf16", options=dict([BASE])).fit(images, [0, 1, 0, 1])
    assert fitted.model_.backbone.precision == "bf16"
    again = pickle.loads(pickle.dumps(fitted.set_params(precision=None)))
    assert (again.decision_function(images) == fitted.decision_function(images)).all() and not caplog.records
    pickle.loads(pickle.dumps(fitted.set_params(precision="fp32"))).predict(images)
    assert "trained on features in bf16, and is used here with features in fp32" in caplog.text


@pytest.mark.parametrize("as_list", [False, True])
def test_options_override_the_precision_parameter(caplog, as_list):
    images = [open_digit(f"digits/{number:04d}") for number in (0, 1, 10, 11)]
    options = dict([BASE, (f"{NODE}.PREC", "bf16")])
    parameter = [part for pair in options.items() for part in pair] if as_list else options
    fitted = HeGraphClassifier("hegraph-mini", precision="fp32", options=parameter).fit(images, [0, 1, 0, 1])
    assert fitted.model_.backbone.precision == "bf16"
    pickle.loads(pickle.dumps(fitted)).predict(images)
    assert not caplog.records
