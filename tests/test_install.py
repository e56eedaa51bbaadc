"""scripts/hegraph/install.sh: what it puts into a CoOp checkout, and that it leaves everything else alone."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from standin.hosts import KINDS, ROOT, contents, copy_coop, install

pytestmark = pytest.mark.slow
OURS = ("trainers/hegraph/", "configs/trainers/HeGraphAdapter/", "scripts/hegraph/")
FILES = (
    "configs/datasets/digits.yaml", "configs/datasets/folder.yaml", "configs/sweeps/graph.yaml",
    "requirements-hegraph.txt", "LICENSE-hegraph",
)  # fmt: skip


@pytest.fixture(params=KINDS)
def coop(request, tmp_path) -> Path:
    return copy_coop(request.param, tmp_path / "CoOp")


def of_coop(folder: Path) -> dict[str, bytes]:
    return {name: content for name, content in contents(folder).items() if not name.startswith(OURS + FILES)}


def test_no_file_of_coops_is_changed_and_ours_are_all_there(coop):
    before = of_coop(coop)
    installed = install(coop)
    assert installed.returncode == 0, installed.stderr
    assert of_coop(coop) == before
    after = contents(coop)
    for name, content in contents(ROOT / "trainers" / "hegraph").items():
        assert after[f"trainers/hegraph/{name}"] == content
    assert after["requirements-hegraph.txt"] == (ROOT / "requirements.txt").read_bytes()
    assert after["LICENSE-hegraph"] == (ROOT / "LICENSE").read_bytes()
    assert {"scripts/hegraph/main.sh", "configs/trainers/HeGraphAdapter/rn50.yaml", *FILES} <= set(after)
    assert "bash scripts/hegraph/main.sh caltech101 rn50 16" in installed.stdout


def test_a_second_time_removes_what_we_no_longer_have(coop):
    install(coop)
    before = contents(coop)
    (coop / "trainers" / "hegraph" / "old.py").write_text("of an earlier version\n")
    assert install(coop).returncode == 0
    assert contents(coop) == before


def test_links_and_copies_may_take_each_others_place(coop):
    assert install(coop, "--link").returncode == 0
    folder = coop / "trainers" / "hegraph"
    assert folder.is_symlink()
    assert folder.resolve() == ROOT / "trainers" / "hegraph"
    ours = contents(ROOT / "trainers" / "hegraph")
    assert install(coop).returncode == 0
    assert not folder.is_symlink()
    assert install(coop, "--link").returncode == 0
    assert contents(ROOT / "trainers" / "hegraph") == ours  # not removed through the link


@pytest.mark.parametrize("folder", OURS)
def test_a_folder_of_somebody_else_is_refused_before_anything_is_changed(coop, folder):
    (coop / folder).mkdir(parents=True)
    (coop / folder / "mine.txt").write_text("mine\n")
    before = contents(coop)
    refused = install(coop)
    assert refused.returncode == 2
    assert f"{coop / folder} exists and was not put there by this script" in refused.stderr
    assert contents(coop) == before


def test_from_a_checkout_that_has_it_into_another(coop, tmp_path):
    assert install(coop).returncode == 0
    other = Path(shutil.copytree(ROOT / "tests" / "standin" / "coop", tmp_path / "other"))
    passed_on = install(other, source=coop)
    assert passed_on.returncode == 0, passed_on.stderr
    for name in (*OURS, *FILES):
        there = {k: v for k, v in contents(other).items() if k.startswith(name)}
        assert there == {k: v for k, v in contents(coop).items() if k.startswith(name)}


def test_a_path_with_spaces_and_a_relative_one_with_cdpath_set(tmp_path):
    coop = copy_coop("standin", tmp_path / "my CoOp")
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "my CoOp").mkdir(parents=True)
    environment = os.environ | {"CDPATH": str(elsewhere)}
    installed = install("my CoOp", cwd=tmp_path, env=environment)
    assert installed.returncode == 0, installed.stderr
    assert (coop / "trainers" / "hegraph" / "__main__.py").is_file()
    assert not list((elsewhere / "my CoOp").iterdir())


@pytest.mark.parametrize("arguments", [(), ("--lnk", "x"), ("x", "y")])
def test_wrong_arguments_print_the_usage(arguments):
    command = ["bash", str(ROOT / "scripts" / "hegraph" / "install.sh"), *arguments]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert ran.returncode == 2
    assert "usage: bash scripts/hegraph/install.sh PATH_TO_COOP [--link]" in ran.stderr


def test_what_is_no_coop_checkout_is_refused(tmp_path):
    assert "is no CoOp checkout" in install(tmp_path).stderr
    assert not list(tmp_path.iterdir())


def test_this_checkout_itself_is_refused(coop):
    assert install(coop).returncode == 0
    refused = install(coop, source=coop)
    assert refused.returncode == 2
    assert "is this checkout itself" in refused.stderr
