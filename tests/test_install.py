"""scripts/hegraph/install.sh adds our files to a CoOp checkout and changes nothing else."""

import os
from pathlib import Path

import pytest
from standin.hosts import KINDS, ROOT, contents, copy_coop, install, run_install

pytestmark = pytest.mark.slow
OURS = ("trainers/hegraph/", "configs/trainers/HeGraphAdapter/", "scripts/hegraph/")
FILES = (
    "configs/datasets/digits.yaml", "configs/datasets/digits_low.yaml", "configs/datasets/digits_high.yaml",
    "configs/datasets/folder.yaml", "configs/sweeps/graph.yaml",
    "requirements-hegraph.txt", "LICENSE-hegraph",
)  # fmt: skip


@pytest.fixture(params=KINDS)
def coop(request, tmp_path) -> Path:
    return copy_coop(request.param, tmp_path / "CoOp")


def of_coop(folder: Path) -> dict[str, bytes]:
    return {name: content for name, content in contents(folder).items() if not name.startswith(OURS + FILES)}


def refused(coop: Path, *flags: str, **options: object) -> str:
    """Error of the script, which must not change the checkout."""
    before = contents(coop)
    ran = run_install(coop, *flags, **options)
    assert (ran.returncode, contents(coop)) == (2, before)
    return ran.stderr


def test_install_adds_our_files_and_changes_none(coop):
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


@pytest.mark.parametrize("flags", [(), ("--link",)], ids=["copied", "linked"])
def test_removal_leaves_nothing(coop, flags):
    before = sorted(coop.rglob("*"))
    install(coop, *flags)
    removed = run_install(coop, "--remove")
    assert removed.returncode == 0, removed.stderr
    assert sorted(coop.rglob("*")) == before


def test_removal_refuses_to_remove_files_of_the_user(coop):
    install(coop)
    (coop / "scripts" / "hegraph" / "mine.sh").touch()
    assert "--remove would remove your files" in refused(coop, "--remove")


def test_script_of_the_tests_is_not_installed(coop):
    assert not (install(coop) / "scripts" / "hegraph" / "test.sh").exists()


def test_update_keeps_files_of_the_user(coop):
    install(coop)
    names = [f"{folder}{name}" for folder in OURS[1:] for name in ("my own.txt", "deeper/other.txt")]
    for name in names:
        (coop / name).parent.mkdir(exist_ok=True)
        (coop / name).write_text("mine\n")
    before = contents(coop)
    assert contents(install(coop)) == before
    linked = run_install(coop, "--link")
    assert (linked.returncode, contents(coop)) == (2, before)
    assert "a link would replace your files" in linked.stderr and "my own.txt" in linked.stderr


def test_links_and_copies_replace_each_other(coop):
    folder = install(coop, "--link") / "trainers" / "hegraph"
    assert folder.is_symlink() and folder.resolve() == ROOT / "trainers" / "hegraph"
    ours = contents(ROOT / "trainers" / "hegraph")
    install(coop)
    assert not folder.is_symlink()
    install(coop, "--link")
    assert contents(ROOT / "trainers" / "hegraph") == ours  # not removed through the link


@pytest.mark.parametrize("folder", OURS)
def test_foreign_folder_is_refused_before_any_change(coop, folder):
    (coop / folder).mkdir(parents=True)
    (coop / folder / "mine.txt").write_text("mine\n")
    assert f"{coop / folder} exists, but was not installed by this script" in refused(coop)


def test_install_from_another_checkout(coop, tmp_path):
    install(coop)
    assert "is this checkout" in refused(coop, source=coop)
    other = install(copy_coop("standin", tmp_path / "other"), source=coop)
    ours = [{k: v for k, v in contents(folder).items() if k.startswith(OURS + FILES)} for folder in (coop, other)]
    assert ours[0] == ours[1]


def test_paths_with_spaces_and_cdpath(tmp_path):
    coop = copy_coop("standin", tmp_path / "my CoOp")
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "my CoOp").mkdir(parents=True)
    install("my CoOp", cwd=tmp_path, env=os.environ | {"CDPATH": str(elsewhere)})
    assert (coop / "trainers" / "hegraph" / "__main__.py").is_file()
    assert not list((elsewhere / "my CoOp").iterdir())


@pytest.mark.parametrize("words", [("--lnk", "x"), ("x", "y")])
def test_wrong_arguments_print_the_usage(words):
    assert "usage: bash scripts/hegraph/install.sh PATH_TO_COOP [--link | --remove]" in run_install(*words).stderr


def test_folder_without_coop_is_refused(tmp_path):
    assert "is not a CoOp checkout" in refused(tmp_path)
