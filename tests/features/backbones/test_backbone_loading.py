"""Loading of backbones: names, files and OpenAI's archives; features, transforms and identity."""

import json
import logging
import pickle
import shutil
import zipfile
from copy import deepcopy
from pathlib import Path

import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny import AUGMENTATION, SENTENCES, TINY, TINY_CONFIG, Recorder, assert_same_features, cache_file, kinds
from torch import nn
from torchvision import transforms as T

from tools.mini import __main__ as mini_training
from trainers.hegraph import Backbone, UserError, load_backbone
from trainers.hegraph.features.backbones import open_clip_models
from trainers.hegraph.features.backbones.identity import MINI_WEIGHTS, backbone_identity, describe_transform
from trainers.hegraph.features.backbones.open_clip_models import Source, create_model
from trainers.hegraph.utils.files import hash_file

# torch deprecates its TorchScript functions
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit", "ignore::torch.jit.TracerWarning")
MARKS = {"input_resolution": 32, "context_length": 77, "vocab_size": 49408}  # of OpenAI's archives
OF_MINI = {"model": "hegraph-mini", "weights": "68bc1a9fda48b1b2589263b5cd232893ea5ab966b275314b6ac490cd82b80c0b"}
PREPROCESS_OF_MINI = """\
Compose(
    Resize(size=32, interpolation=bicubic, max_size=None, antialias=True)
    CenterCrop(size=(32, 32))
    MaybeConvertMode()
    MaybeToTensor()
    Normalize(mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711))
)"""


@pytest.mark.parametrize(("name", "pretrained", "message"), [
    ("", "auto", r"MODEL\.BACKBONE\.NAME is empty"),
    ("hegraph_mini", "", r"unknown backbone 'hegraph_mini'; did you mean 'hegraph-mini'\?"),
    ("a/clip", "", r"'a/clip': expected hf-hub:, .* before a repository or a folder, such as transformers:a/clip"),
    ("RN-50", "", r"unknown backbone 'RN-50'; did you mean 'RN50'\?"),
    ("RN50", "", "'openai' were trained with QuickGELU: use 'RN50-quickgelu', not 'RN50'"),
    ("RN50", "yfcc15n", r"'yfcc15n'.* did you mean 'yfcc15m'\?.*cc12m"),
    ("ViT-B-16-SigLIP", "auto", "neither a file nor a tag: 'openai'"),
    ("hf-hub:org/birds", "openai", r"hf-hub:org/birds brings its weights along: set MODEL\.BACKBONE"),
    ("local-dir:/birds", "auto", "must be a folder with open_clip_config"),
    ("RN50", "openai", "'openai' were trained with QuickGELU: use 'RN50-quickgelu', not 'RN50'"),
    ("ViT-B-32-quickgelu", "laion2b_s34b_b79k", "without QuickGELU: use 'ViT-B-32', not 'ViT-B-32-quickgelu'"),
    ("roberta-ViT-B-32", "laion2b_s12b_b32k", "which cannot be reached"),  # has QuickGELU under its only name
])  # fmt: skip
def test_unknown_models_and_weights_are_rejected(no_hub, name, pretrained, message):
    with pytest.raises(UserError, match=message):
        load_backbone(name, pretrained)


# --- files


def test_open_clip_reads_temporary_files_only(tiny_model, bundle, monkeypatch):
    """open_clip converts older names, and reads a `.safetensors` file for it, which cannot contain code."""
    paths: list[Path] = []
    real = open_clip.load_checkpoint
    monkeypatch.setattr(open_clip, "load_checkpoint", lambda m, path: paths.append(Path(path)) or real(m, path))
    (bundle / "open_clip_config.json").write_text(json.dumps({"model_cfg": {**TINY_CONFIG, "custom_text": True}}))
    assert_same_features(load_backbone(f"local-dir:{bundle}"), tiny_model)
    [file] = paths
    assert file.suffix == ".safetensors" and file.parent != bundle and not file.exists()


def test_training_checkpoints_load(tiny_model, tmp_path):
    state = {f"module.{name}": value for name, value in tiny_model.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "weights.bin")
    assert_same_features(load_backbone(TINY, str(tmp_path / "weights.bin")), tiny_model)


@pytest.mark.parametrize(("model", "change", "reason"), [
    (TINY, lambda s: [torch.zeros(3)], r"expected a state dict in .*other\.pt, got list"),
    (TINY, lambda s: {"model": s, "epoch": 3}, r"other\.pt': it is of another model: Missing key\(s\) in state_dict: "),
    (
        TINY,
        lambda s: {**s, "visual.proj": torch.zeros(64, 8)},
        r"other\.pt': .* size mismatch for visual.proj: copying a param",
    ),
    (
        "tiny-48",
        lambda s: {f"module.{k}": v for k, v in s.items()},
        r"other\.pt': .* visual\.positional_embedding is \[17, 64\], not \[37, 64\]",
    ),
])  # fmt: skip
def test_weights_of_other_models_are_rejected(tiny_model, tmp_path, model, change, reason):
    torch.save(change(dict(tiny_model.state_dict())), tmp_path / "other.pt")
    with pytest.raises(UserError, match=reason) as caught:
        load_backbone(model, str(tmp_path / "other.pt"))
    assert str(caught.value).count("key(s)") <= 1 and len(str(caught.value)) < 400


def test_ambiguous_preprocessing_is_logged(caplog):
    source = Source("ViT-L-14", "", "ViT-L-14", Path("weights.pt"))
    with caplog.at_level(logging.WARNING):
        assert open_clip_models._preprocessing(source)["image_mean"] == open_clip.OPENAI_DATASET_MEAN
        assert open_clip_models._preprocessing(source._replace(tag="laion2b_s32b_b82k"))["image_mean"] == (
            0.5,
            0.5,
            0.5,
        )
    assert ["weights.pt" in record.getMessage() for record in caplog.records] == [True]


def test_logging_of_the_program_stays(monkeypatch, tmp_path):
    load = open_clip_models.load_weights

    def load_beside(*arguments: object) -> bool:  # while a model is built, as another thread would
        logging.warning("of the program")
        return load(*arguments)

    monkeypatch.setattr(logging.root, "handlers", [])  # pytest's
    load_backbone("hegraph-mini")
    assert not logging.root.handlers
    logging.basicConfig(filename=tmp_path / "log.txt")
    monkeypatch.setattr(open_clip_models, "load_weights", load_beside)
    load_backbone("hegraph-mini")
    assert (tmp_path / "log.txt").read_text() == "WARNING:root:of the program\n"


# --- OpenAI's archives


def save_archive(model: nn.Module, path: Path, marks: dict[str, int]) -> Path:
    """Save an archive like OpenAI's: traced, with matrices in half precision and integers as tensors."""
    model = deepcopy(model)
    for name, value in marks.items():
        model.__dict__.pop(name, None)  # open_clip has some of them as plain numbers
        model.register_buffer(name, torch.tensor(value))
    pixels, tokens = torch.zeros(1, 3, 32, 32), torch.zeros(1, 77, dtype=torch.long)
    traced = torch.jit.trace(model, (pixels, tokens), check_trace=False)
    for parameter in traced.parameters():
        if parameter.ndim > 1:
            parameter.data = parameter.data.half()
    traced.save(str(path))
    return path


@pytest.fixture(scope="module")
def archive(tiny_model, tmp_path_factory) -> Path:
    return save_archive(tiny_model, tmp_path_factory.mktemp("archive") / "TINY.pt", MARKS)


def test_openai_archives_load(archive, tiny_model, tiny):
    assert {torch.float16, torch.float32} == {p.dtype for p in torch.jit.load(str(archive)).parameters()}
    backbone = load_backbone(TINY, str(archive))
    assert backbone.name == f"{TINY}/TINY"
    assert_same_features(backbone, tiny_model)
    for name, value in tiny.model.state_dict().items():
        loaded = backbone.model.state_dict()[name]
        assert loaded.dtype == value.dtype and torch.equal(value, loaded), name


def test_openai_archives_need_quickgelu(archive, tiny_model, tmp_path, bundle):
    state = tmp_path / "state.pt"
    torch.save({**tiny_model.state_dict(), **{k: torch.tensor(v) for k, v in MARKS.items()}}, state)
    for path in (archive, state):  # the archive, and a state dict with its content
        with pytest.raises(UserError, match=rf"{path.name} is an archive .* QuickGELU: use '{TINY}', not 'tiny-vit'"):
            load_backbone("tiny-vit", str(path))
    assert_same_features(load_backbone(TINY, str(state)), tiny_model)
    (bundle / "open_clip_pytorch_model.bin").unlink()
    shutil.copy(archive, bundle)
    assert_same_features(load_backbone(f"local-dir:{bundle}"), tiny_model)
    config = bundle / "open_clip_config.json"
    config.write_text(config.read_text().replace("true", "false"))
    with pytest.raises(UserError, match='QuickGELU: use a configuration with "quick_gelu"'):
        load_backbone(f"local-dir:{bundle}")


@pytest.mark.parametrize("kind", ["archive", "state dict"])
def test_pickled_code_is_not_executed(archive, tmp_path, kind):
    class Evil:
        def __reduce__(self):
            return Path.touch, (tmp_path / "executed",)

    path = tmp_path / "evil.pt"
    torch.save({"state_dict": Evil()}, path)
    if kind == "archive":
        with zipfile.ZipFile(archive) as good, zipfile.ZipFile(path, "w") as bad:
            for name in good.namelist():
                bad.writestr(name, pickle.dumps(Evil()) if name.endswith("/data.pkl") else good.read(name))
    with pytest.raises(
        UserError, match=r"evil\.pt is damaged or not weights of a model: it (does not hold|contains pathlib)"
    ):
        load_backbone(TINY, str(path))
    assert not (tmp_path / "executed").exists()


# --- features and transforms


def test_model_is_frozen_and_features_have_unit_norm(mini):
    assert not any(parameter.requires_grad for parameter in mini.model.parameters())
    assert not any(module.training for module in mini.model.modules())
    assert mini.logit_scale == pytest.approx(mini.model.logit_scale.exp().item()) and mini.logit_scale > 1
    features = mini.encode_text(SENTENCES, batch_size=2)
    assert (features.dtype, features.requires_grad, features.shape) == (torch.float32, False, (3, mini.width))
    torch.testing.assert_close(features, mini.encode_text(SENTENCES))
    assert mini.encode_text([]).shape == mini.encode_images([]).shape == (0, mini.width)
    lengths = mini.encode_text(SENTENCES, normalize=False).norm(dim=1, keepdim=True)
    torch.testing.assert_close(features * lengths, mini.encode_text(SENTENCES, normalize=False))


def test_training_transform_has_the_requested_steps(mini):
    before = repr(mini.preprocess)
    transform = mini.training_transform(AUGMENTATION, (0.3, 0.9), "bilinear")
    flip, crop, *_, normalize = transform.transforms
    assert isinstance(flip, T.RandomHorizontalFlip) and isinstance(crop, T.RandomResizedCrop)
    assert not {"Resize", "CenterCrop"} & set(kinds(transform))
    assert (crop.size, crop.scale, crop.interpolation) == ((32, 32), (0.3, 0.9), T.InterpolationMode.BILINEAR)
    assert (tuple(normalize.mean), tuple(normalize.std)) == (mini.mean, mini.std)
    assert kinds(mini.training_transform(("normalize",), (0.08, 1.0), "bicubic")) == kinds(mini.preprocess)
    assert "RandomHorizontalFlip" not in kinds(mini.training_transform(AUGMENTATION[:1], (0.08, 1.0), "bicubic"))
    assert repr(mini.preprocess) == before
    for each in (mini.preprocess, transform):
        assert each(Image.new("RGB", (50, 20))).shape == (3, 32, 32)


# --- identity


def identity_of(backbone: Backbone) -> dict[str, str]:
    return {key: value for key, value in backbone.fingerprint.items() if key != "preprocess"}


@pytest.mark.parametrize("pretrained", ["", "auto", str(MINI_WEIGHTS)])
def test_mini_is_identified_by_its_weights(pretrained):
    """Keys of cached features contain this value."""
    assert backbone_identity("hegraph-mini", pretrained, "auto", "cpu") == OF_MINI
    assert identity_of(load_backbone("mini", pretrained)) == OF_MINI
    assert backbone_identity("hegraph-mini", pretrained, "amp", "cuda:1") == {**OF_MINI, "precision": "amp"}


def test_text_of_the_test_transform_is_stable(mini):
    """Keys of cached features and model folders contain it."""
    assert describe_transform(mini.preprocess) == mini.fingerprint["preprocess"] == PREPROCESS_OF_MINI


def test_weights_files_are_identified_by_content(tiny_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(tiny_model.state_dict(), "openai")
    shutil.copy("openai", "two.pt")
    expected = {"model": TINY, "weights": hash_file(Path("openai"))}
    for pretrained in ("auto", "two.pt"):
        assert backbone_identity(TINY, pretrained, "fp32", "cpu") == expected
        assert identity_of(load_backbone(TINY, pretrained)) == expected


def test_bundles_are_identified_by_content(bundle, no_hub, monkeypatch):
    monkeypatch.setenv("HOME", str(bundle.parent))
    of_files = {
        "model": hash_file(bundle / "open_clip_config.json"),
        "weights": hash_file(bundle / "open_clip_pytorch_model.bin"),
    }
    for name in ("open_clip_config.json", "open_clip_pytorch_model.bin"):
        shutil.copy(bundle / name, cache_file(no_hub, "org/birds", name))
    for name in ("hf-hub:org/birds", f"local-dir:{bundle}", f"local-dir:~/{bundle.name}"):
        assert backbone_identity(name, "auto", "fp32", "cpu") == of_files
        assert identity_of(load_backbone(name)) == of_files
    with_tokenizer = dict(of_files)
    for name in ("tokenizer.json", "vocab.txt", "special_tokens_map.json"):
        (bundle / name).write_text("{}")
        with_tokenizer[name] = hash_file(bundle / name)
    assert backbone_identity(f"local-dir:{bundle}", "", "fp32", "cpu") == with_tokenizer


def test_tokenizer_on_the_hub_is_in_the_identity(bundle, no_hub):
    config = json.loads((bundle / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"]["hf_tokenizer_name"] = "org/words"
    cache_file(no_hub, "org/birds", "open_clip_config.json").write_text(json.dumps(config))
    shutil.copy(bundle / "open_clip_pytorch_model.bin", cache_file(no_hub, "org/birds", "open_clip_pytorch_model.bin"))
    with pytest.raises(UserError, match=r"^the tokenizer of hf-hub:org/birds needs tokenizer.json and"):
        backbone_identity("hf-hub:org/birds", "auto", "fp32", "cpu")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        cache_file(no_hub, "org/words", name).write_text("{}")
    before = backbone_identity("hf-hub:org/birds", "auto", "fp32", "cpu")
    cache_file(no_hub, "org/words", "tokenizer.json").write_text('{"other": 1}')
    after = backbone_identity("hf-hub:org/birds", "auto", "fp32", "cpu")
    assert [key for key in after if after[key] != before[key]] == ["tokenizer.json"]


def test_training_of_mini_is_deterministic(tmp_path, one_thread):
    assert mini_training.parse_arguments([]).out.resolve() != MINI_WEIGHTS
    files = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for file in files:
        assert mini_training.main(["--steps", "1", "--out", str(file)]) == 0  # it changes the number of threads
    assert sorted(tmp_path.iterdir()) == files and files[0].read_bytes() == files[1].read_bytes()


def test_loaded_backbone_gets_no_random_weights_before():
    with Recorder() as recorder:
        create_model("hegraph-mini", "auto")
    assert "clone" in recorder.names and not recorder.names & {"normal_", "uniform_", "kaiming_uniform_"}


def test_model_keeps_the_weights_that_were_read():
    with Recorder() as recorder:
        network, _, _ = create_model("hegraph-mini", "auto")
    assert "copy_" not in recorder.names
    stored = load_file(MINI_WEIGHTS)
    assert network.state_dict().keys() == stored.keys()
    assert all(torch.equal(value, stored[name]) for name, value in network.state_dict().items())


def test_both_formats_of_weights_give_equal_fp16(tmp_path):
    torch.save(load_file(MINI_WEIGHTS), tmp_path / "mini.pt")
    kept = load_backbone("mini", precision="fp16").model.state_dict()
    copied = load_backbone("mini", str(tmp_path / "mini.pt"), precision="fp16").model.state_dict()
    assert {name: value.dtype for name, value in kept.items()} == {name: value.dtype for name, value in copied.items()}
    assert kept["visual.conv1.weight"].dtype == torch.float16
    assert all(torch.equal(value, copied[name]) for name, value in kept.items())


def test_backbone_without_weights_is_random():
    network, _, _ = create_model("hegraph-mini")
    weights = network.visual.conv1.weight
    assert weights.isfinite().all() and weights.std() > 0.01
