"""Table of published models: its figures are those of the libraries, and words filter it."""

import re
import subprocess
import sys

import open_clip
import pytest
import timm
import torch
from timm.data import resolve_model_data_config
from timm.models import get_pretrained_cfg
from tiny import ROOT

from trainers.hegraph import UserError
from trainers.hegraph.commands.backbones import main
from trainers.hegraph.estimator.model_selection.candidates import CANDIDATES, read_candidates
from trainers.hegraph.features.backbones.bundles import PREFIXES, is_bundle, place_of
from trainers.hegraph.features.backbones.known_models import INCLUDED, KnownModel, known_models
from trainers.hegraph.features.backbones.open_clip_models import _tag_config, check_activation

OPEN_CLIP = [model for model in known_models() if not model.name.startswith(PREFIXES)]
TIMM = [model for model in known_models(["timm:"]) if not is_bundle(model.name)]


@pytest.mark.parametrize("model", OPEN_CLIP, ids=lambda model: f"{model.name}-{model.weights}")
def test_open_clip_models_have_the_listed_width_and_size(model):
    config = open_clip.get_model_config(model.name)
    assert (model.width, model.size) == (str(config["embed_dim"]), str(config["vision_cfg"]["image_size"]))
    assert model.input == "images and text"
    if not model.weights.endswith(".pt"):
        assert model.weights in open_clip.list_pretrained_tags_by_model(model.name)
        check_activation(model.name, bool(_tag_config(model.name, model.weights).get("quick_gelu")), model.weights)


@pytest.mark.parametrize("model", TIMM, ids=lambda model: model.name)
def test_timm_models_have_the_listed_width_and_size(model):
    name = place_of(model.name)
    assert name in timm.list_pretrained()
    with torch.device("meta"), torch.no_grad():
        network = timm.create_model(name, num_classes=0).eval()
        channels, height, width = resolve_model_data_config(network)["input_size"]
        features = network(torch.zeros(1, channels, height, width))
    assert (model.width, model.size, model.size) == (str(features.shape[1]), str(height), str(width))
    assert (model.weights, model.input) == (INCLUDED, "images only")
    assert model.licence == get_pretrained_cfg(name).license


def test_every_row_is_complete_and_different():
    models = known_models()
    assert len({model[:3] for model in models}) == len(models) > 50
    assert all(all(cell.strip() == cell != "" for cell in model) for model in models)
    assert all(model.width.isdigit() and model.size.isdigit() for model in models)
    assert {model.link.partition("/")[0] for model in models} == {"https:"}


def test_licences_agree_with_the_candidates():
    listed: dict[tuple[str, str], KnownModel] = {(model.name, model.weights): model for model in known_models()}
    shared = [candidate for candidate in read_candidates() if (candidate.name, candidate.tag) in listed]
    assert len(shared) >= 5, CANDIDATES
    for candidate in shared:
        assert listed[candidate.name, candidate.tag].licence == candidate.licence


def test_words_filter_by_field_name_library_and_source(capsys):
    assert {model.field for model in known_models(["PATHOLOGY"])} == {"pathology"}
    assert [model.name for model in known_models(["timm", "SAT493"])] == ["timm:vit_large_patch16_dinov3.sat493m"]
    assert {model.library for model in known_models(["open_clip"])} == {"open_clip"}
    assert main(["--list", "2311.18803"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["field", "name", "weights", "width", "size", "input", "licence", "source"]
    assert lines[1].split()[:5] == ["biology", "hf-hub:imageomics/bioclip", "included", "512", "224"]
    assert lines[3] == "None of these weights was tried here, because they could not be downloaded."
    with pytest.raises(UserError, match=r"expected words in .* a field \(general, mobile, .*, got 'no such'"):
        known_models(["no", "such"])


def test_help_of_backbone_names_every_library():
    page = (ROOT / "docs" / "reference" / "command-line.md").read_text(encoding="utf-8")
    helps = re.findall(r"--backbone NAME +(image encoder.*?)(?=\n  -)", page, re.DOTALL)
    assert len(helps) > 5
    for text in helps:
        assert "open_clip, transformers or timm (see backbones --list)" in " ".join(text.split())


@pytest.mark.slow
def test_list_imports_no_library_of_models():
    program = "import sys; from trainers.hegraph.commands.backbones import main; main(['--list'])"
    program += "; assert not {'torch', 'open_clip', 'timm', 'transformers', 'pydantic'} & sys.modules.keys()"
    ran = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
