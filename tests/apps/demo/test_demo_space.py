"""Hugging Face Space of a model, and the script that shows the demo."""

import os
import re
import runpy
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import yaml
from browser import HTTP, serving

from trainers.hegraph.apps.demo.space import write_space
from trainers.hegraph.commands.demo import main
from trainers.hegraph.models.folder import load_model
from trainers.hegraph.models.images import ImageModel
from trainers.hegraph.utils.errors import UserError

pytest.importorskip("gradio", reason="gradio is not installed, whose version a Space names")

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def space(installed, model_folder, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("space")
    shutil.copytree(model_folder, folder / "model")
    (folder / "model" / "notes.txt").write_text("not of the model")
    (folder / "secret").write_text("of this machine")
    for name in ("README.md", "thumbnails/00003.jpg"):
        (folder / "model" / name).unlink()
        (folder / "model" / name).symlink_to(folder / "secret")
    (folder / "my-space").mkdir()
    flags = ["--space", str(folder / "my-space"), "--backbone", "hegraph-mini", "--precision", "fp32"]
    assert main([str(folder / "model"), *flags]) == 0
    return folder / "my-space"


def test_space_has_header_and_model(space, model_folder):
    text = (space / "README.md").read_text(encoding="utf-8")
    header = yaml.safe_load(text.split("---\n")[1])
    expected = {"sdk": "gradio", "sdk_version": version("gradio"), "app_file": "app.py", "colorFrom": "gray"}
    assert header | expected | {"title": "HeGraphAdapter on Digits", "colorTo": "yellow"} == header
    assert "Accuracy on 899 test images" in text
    inside, there = (
        {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
        for folder in (space / "model", model_folder)
    )
    assert there - inside == {"README.md", "thumbnails/00003.jpg"}, "links out of the folder are followed"
    assert inside <= there
    assert load_model(space / "model").classnames == load_model(model_folder).classnames


def test_requirements_are_those_of_the_installed_package(space, digits, model_folder, tmp_path, monkeypatch):
    declared = (ROOT / "pyproject.toml").read_text().partition("\ndependencies = [")[2].partition("]")[0]
    names = {re.split("[<>=]", line)[0] for line in re.findall(r'"(.+?)"', declared.lower().replace("_", "-"))}
    lines = (space / "requirements.txt").read_text().split()
    assert {re.split("[<>=]", line)[0].lower().replace("_", "-") for line in lines} == names
    monkeypatch.setattr("trainers.hegraph.models.package.DISTRIBUTION", "not-installed")
    with pytest.raises(UserError, match="found none; run: .* -m pip install"):
        write_space(digits, model_folder, tmp_path / "space")
    assert not (tmp_path / "space").exists()


def test_space_requires_the_library_of_its_backbone(digits, model_folder, tmp_path, monkeypatch):
    declared = ["torch>=2.4", "timm>=1.0.20; extra == 'timm'", "transformers>=5.4; extra == 'transformers'"]
    monkeypatch.setattr("trainers.hegraph.models.package.requires", lambda name: declared)
    write_space(digits, model_folder, tmp_path / "space", backbone="timm:test_vit.r160_in1k")
    assert (tmp_path / "space" / "requirements.txt").read_text() == "torch>=2.4\ntimm>=1.0.20\n"


@pytest.mark.slow
def test_space_shows_the_page_from_its_own_files(space):
    program = "from hegraph.commands.demo import main; main()"
    with serving([sys.executable, "-c", program, "model"], cwd=space, PYTHONPATH="") as address:
        assert address.startswith("http://127.0.0.1:")


def test_app_passes_model_host_and_backbone(space, monkeypatch):
    words = []
    monkeypatch.setitem(sys.modules, "hegraph.commands.demo", SimpleNamespace(main=lambda given: words.extend(given)))
    monkeypatch.setitem(sys.modules, "hegraph.commands", ModuleType("hegraph.commands"))
    monkeypatch.setitem(sys.modules, "hegraph", ModuleType("hegraph"))
    with pytest.raises(SystemExit):
        runpy.run_path(str(space / "app.py"), run_name="__main__")
    assert words == [str(space / "model"), "--host", "0.0.0.0", "--backbone", "hegraph-mini", "--precision", "fp32"]


def test_existing_folder_and_local_weights_are_refused(digits, model_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for file in (tmp_path / "folder" / "README.md", tmp_path / "weights.pt"):
        file.write_text("mine")
    for name in ("weights.pt", "folder", "link"):
        with pytest.raises(UserError, match="exists and is not overwritten"):
            write_space(digits, model_folder, tmp_path / name)
    for name, weights in (("ViT-B-32", str(tmp_path / "weights.pt")), ("local-dir:~", "")):
        backbone = digits.model.backbone.model_copy(update={"model": name, "pretrained": weights})
        images = ImageModel(digits.model.model_copy(update={"backbone": backbone}), digits.backbone)
        with pytest.raises(UserError, match="got local weights"):
            write_space(images, model_folder, tmp_path / "space")
    assert (tmp_path / "folder" / "README.md").read_text() == (tmp_path / "weights.pt").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "link", "weights.pt"]


# The script

SCRIPT = ["bash", "scripts/hegraph/demo.sh"]


@pytest.mark.slow
def test_script_shows_a_model_and_deletes_uploads(model_folder, tmp_path):
    with serving([*SCRIPT, str(model_folder.parent)], PYTHON=sys.executable, TMPDIR=str(tmp_path)) as address:
        assert "HeGraphAdapter on Digits" in HTTP.get(address, timeout=240).text
        assert list(tmp_path.glob("hegraph-demo-*"))
    assert not list(tmp_path.glob("hegraph-demo-*"))


@pytest.mark.slow
def test_script_trains_the_digits_once(tmp_path, python):
    run = tmp_path / "digits" / "HeGraphAdapter" / "mini_16shots" / "seed1"
    variables = os.environ | {"PYTHON": str(python), "OUTPUT": str(tmp_path)}
    written = []
    for name in ("first", "second"):
        subprocess.run([*SCRIPT, "--space", str(tmp_path / name)], cwd=ROOT, env=variables, check=True, timeout=240)
        assert (tmp_path / name / "model" / "thumbnails" / "00159.jpg").is_file()
        written.append((run / "result.json").stat().st_mtime_ns)
    assert written[0] == written[1]
