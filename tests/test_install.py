"""scripts/hegraph/install.sh: what it puts into a CoOp checkout, and that it leaves everything else alone."""

import os
from pathlib import Path

import pytest
from standin.hosts import KINDS, ROOT, contents, copy_coop, install, run_install

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


def refused(coop: Path, **options: object) -> str:
    """What the script says that leaves a checkout as it is."""
    before = contents(coop)
    ran = run_install(coop, **options)
    assert (ran.returncode, contents(coop)) == (2, before)
    return ran.stderr


def test_no_file_of_coops_is_changed_ours_are_all_there_and_the_next_time_those_that_we_no_longer_have_go(coop):
    before = of_coop(coop)
    installed = run_install(coop)
    assert installed.returncode == 0, installed.stderr
    assert "bash scripts/hegraph/main.sh caltech101 rn50 16" in installed.stdout
    assert of_coop(coop) == before
    after = contents(coop)
    for name, content in contents(ROOT / "trainers" / "hegraph").items():
        assert after[f"trainers/hegraph/{name}"] == content
    assert after["requirements-hegraph.txt"] == (ROOT / "requirements.txt").read_bytes()
    assert after["LICENSE-hegraph"] == (ROOT / "LICENSE").read_bytes()
    assert {"scripts/hegraph/main.sh", "configs/trainers/HeGraphAdapter/rn50.yaml", *FILES} <= set(after)
    (coop / "trainers" / "hegraph" / "old.py").write_text("of an earlier version\n")
    assert contents(install(coop)) == after


def test_links_and_copies_may_take_each_others_place(coop):
    folder = install(coop, "--link") / "trainers" / "hegraph"
    assert folder.is_symlink() and folder.resolve() == ROOT / "trainers" / "hegraph"
    ours = contents(ROOT / "trainers" / "hegraph")
    install(coop)
    assert not folder.is_symlink()
    install(coop, "--link")
    assert contents(ROOT / "trainers" / "hegraph") == ours  # not removed through the link


@pytest.mark.parametrize("folder", OURS)
def test_a_folder_of_somebody_else_is_refused_before_anything_is_changed(coop, folder):
    (coop / folder).mkdir(parents=True)
    (coop / folder / "mine.txt").write_text("mine\n")
    assert f"{coop / folder} exists and was not put there by this script" in refused(coop)


def test_from_a_checkout_that_has_it_into_another_but_not_into_itself(coop, tmp_path):
    install(coop)
    assert "is this checkout itself" in refused(coop, source=coop)
    other = install(copy_coop("standin", tmp_path / "other"), source=coop)
    ours = [{k: v for k, v in contents(folder).items() if k.startswith(OURS + FILES)} for folder in (coop, other)]
    assert ours[0] == ours[1]


def test_a_path_with_spaces_and_a_relative_one_with_cdpath_set(tmp_path):
    coop = copy_coop("standin", tmp_path / "my CoOp")
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "my CoOp").mkdir(parents=True)
    install("my CoOp", cwd=tmp_path, env=os.environ | {"CDPATH": str(elsewhere)})
    assert (coop / "trainers" / "hegraph" / "__main__.py").is_file()
    assert not list((elsewhere / "my CoOp").iterdir())


@pytest.mark.parametrize("words", [("--lnk", "x"), ("x", "y")])
def test_wrong_arguments_print_the_usage(words):
    assert "usage: bash scripts/hegraph/install.sh PATH_TO_COOP [--link]" in run_install(*words).stderr


def test_what_is_no_coop_checkout_is_refused(tmp_path):
    assert "is no CoOp checkout" in refused(tmp_path)
