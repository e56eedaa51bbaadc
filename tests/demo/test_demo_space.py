"""A Space: a folder that has all it needs, and that overwrites nothing; the script, which trains the digits first."""

from __future__ import annotations

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

from trainers.hegraph.demo.__main__ import main
from trainers.hegraph.demo.space import REQUIREMENTS, write_space
from trainers.hegraph.models.folder import load_model
from trainers.hegraph.models.images import ImageModel
from trainers.hegraph.utils.errors import UserError

pytest.importorskip("gradio", reason="gradio is not installed, whose version a Space names")

ROOT = Path(__file__).parents[2]
UNUSED = ("yacs", "matplotlib", "gdown")


@pytest.fixture(scope="module")
def space(model_folder, tmp_path_factory) -> Path:
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


def test_the_readme_has_the_header_that_the_hub_reads_and_the_model_is_inside_with_nothing_else(space, model_folder):
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


def test_the_requirements_are_those_of_the_package_but_what_a_page_never_imports(space):
    lines = (space / "requirements.txt").read_text().split()
    assert lines == list(REQUIREMENTS)
    declared = (ROOT / "pyproject.toml").read_text().partition("\ndependencies = [")[2].partition("]")[0]
    others = {re.split("[>=]", other)[0] for other in {*re.findall(r'"(.+?)"', declared)} - {*lines}}
    assert others == {*UNUSED, "pandas", "scipy"}, "other packages bring the last two"


@pytest.mark.slow
def test_the_space_shows_the_page_from_its_own_files_and_with_its_requirements_alone(space):
    program = f"import sys; sys.modules.update(dict.fromkeys({UNUSED}))\nfrom hegraph.demo.__main__ import main; main()"
    with serving([sys.executable, "-c", program, "model"], cwd=space, PYTHONPATH="") as address:
        assert address.startswith("http://127.0.0.1:")


def test_the_app_listens_for_the_space_and_names_its_model_and_the_backbone_that_was_given(space, monkeypatch):
    words = []
    monkeypatch.setitem(sys.modules, "hegraph.demo.__main__", SimpleNamespace(main=lambda given: words.extend(given)))
    monkeypatch.setitem(sys.modules, "hegraph.demo", ModuleType("hegraph.demo"))
    monkeypatch.setitem(sys.modules, "hegraph", ModuleType("hegraph"))
    with pytest.raises(SystemExit):
        runpy.run_path(str(space / "app.py"), run_name="__main__")
    assert words == [str(space / "model"), "--host", "0.0.0.0", "--backbone", "hegraph-mini", "--precision", "fp32"]


def test_a_space_overwrites_nothing_and_has_no_backbone_from_files_of_this_machine(digits, model_folder, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for file in (tmp_path / "folder" / "README.md", tmp_path / "weights.pt"):
        file.write_text("mine")
    for name in ("weights.pt", "folder", "link"):
        with pytest.raises(UserError, match="is there already, and is not overwritten"):
            write_space(digits, model_folder, tmp_path / name)
    for name, weights in (("ViT-B-32", str(tmp_path / "weights.pt")), (f"local-dir:{tmp_path}", "")):
        backbone = digits.model.backbone.model_copy(update={"model": name, "pretrained": weights})
        images = ImageModel(digits.model.model_copy(update={"backbone": backbone}), digits.backbone)
        with pytest.raises(UserError, match="files of this machine"):
            write_space(images, model_folder, tmp_path / "space")
    assert (tmp_path / "folder" / "README.md").read_text() == (tmp_path / "weights.pt").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "link", "weights.pt"]


# The script

SCRIPT = ["bash", "scripts/hegraph/demo.sh"]


@pytest.mark.slow
def test_the_script_shows_a_model_and_leaves_no_uploads(model_folder, tmp_path):
    with serving([*SCRIPT, str(model_folder.parent)], PYTHON=sys.executable, TMPDIR=str(tmp_path)) as address:
        assert "HeGraphAdapter on Digits" in HTTP.get(address, timeout=30).text
        assert list(tmp_path.glob("hegraph-demo-*"))
    assert not list(tmp_path.glob("hegraph-demo-*"))


@pytest.mark.slow
def test_the_script_without_a_model_trains_the_digits_or_takes_those_that_are_there(tmp_path):
    run = tmp_path / "digits" / "HeGraphAdapter" / "mini_16shots" / "seed1"
    variables = os.environ | {"PYTHON": sys.executable, "OUTPUT": str(tmp_path)}
    written = []
    for name in ("first", "second"):
        subprocess.run([*SCRIPT, "--space", str(tmp_path / name)], cwd=ROOT, env=variables, check=True, timeout=240)
        assert (tmp_path / name / "model" / "thumbnails" / "00159.jpg").is_file()
        written.append((run / "result.json").stat().st_mtime_ns)
    assert written[0] == written[1]
