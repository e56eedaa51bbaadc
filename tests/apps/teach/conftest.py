"""Sessions of the teach page, and a backbone with random weights."""

import json
import shutil

import open_clip
import pytest
from safetensors.torch import save_file
from teach_files import NAMES

from trainers.hegraph.apps.teach.project import Project
from trainers.hegraph.apps.teach.session import Session
from trainers.hegraph.datasets.digits import load_digits_dataset
from trainers.hegraph.features.backbones.identity import MINI_CONFIG


@pytest.fixture
def session(mini, tmp_path) -> Session:
    """Four classes of three scans, a wrongly labelled scan, and eleven unlabelled scans."""
    dataset = load_digits_dataset()
    for name in NAMES:
        for number, item in enumerate([item for item in dataset.train if item.classname == name][:6]):
            folder = tmp_path / "project" / (f"train/{name}" if number < 3 else "unlabelled")
            folder.mkdir(parents=True, exist_ok=True)
            dataset.open(item.path).save(folder / f"{name}-{number}.png")
    shutil.move(folder / "zero-3.png", tmp_path / "project/train/one")
    return Session(Project(tmp_path / "project"), mini, "hegraph-mini")


@pytest.fixture
def gradio() -> None:
    pytest.importorskip("gradio", reason="gradio is not installed, which shows the page")


@pytest.fixture
def untrained(tmp_path) -> str:
    """Name of a model with the architecture of hegraph-mini and random weights."""
    folder, config = tmp_path / "untrained", json.loads(MINI_CONFIG.read_text())
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    save_file(open_clip.CLIP(**config).state_dict(), folder / "open_clip_model.safetensors")
    return f"local-dir:{folder}"
