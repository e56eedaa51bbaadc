"""OpenAI's archives: their tensors are read, and nothing else."""

from __future__ import annotations

import pickle
import shutil
import zipfile
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from tiny import TINY, assert_same_features
from torch import nn

from trainers.hegraph.backbones.loading import load_backbone
from trainers.hegraph.utils.errors import UserError

# torch says of each of its TorchScript functions that it is deprecated
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit", "ignore::torch.jit.TracerWarning")
MARKS = {"input_resolution": 32, "context_length": 77, "vocab_size": 49408}


def save_archive(model: nn.Module, path: Path, marks: dict[str, int]) -> Path:
    """As OpenAI's: traced, matrices in half precision, and integers as tensors."""
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


def test_an_archive_of_openais_gives_the_model(archive, tiny_model, tiny):
    assert {torch.float16, torch.float32} == {p.dtype for p in torch.jit.load(str(archive)).parameters()}
    backbone = load_backbone(TINY, str(archive))
    assert backbone.name == f"{TINY}/TINY"
    assert_same_features(backbone, tiny_model)
    for name, value in tiny.model.state_dict().items():
        found = backbone.model.state_dict()[name]
        assert found.dtype == value.dtype and torch.equal(value, found), name


def test_an_archive_of_openais_is_refused_for_a_model_without_quickgelu(archive, tiny_model, tmp_path, bundle):
    state = tmp_path / "state.pt"
    torch.save({**tiny_model.state_dict(), **{k: torch.tensor(v) for k, v in MARKS.items()}}, state)
    for path in (archive, state):  # the archive, and its content in another file
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
def test_pickled_code_is_refused_and_not_executed(archive, tmp_path, kind):
    """That the code of an archive is not run either is seen in the sources: none calls `torch.jit.load`."""

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
        UserError, match=r"evil\.pt is damaged or not weights of a model: it (does not hold|holds pathlib)"
    ):
        load_backbone(TINY, str(path))
    assert not (tmp_path / "executed").exists()
