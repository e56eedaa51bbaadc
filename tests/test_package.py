"""Wheel: its contents, and a run of the digits in an environment without the checkout."""

import json
import os
import re
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from standin.hosts import contents

from trainers.hegraph import __version__
from trainers.hegraph.utils.commit import git_commit

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
ABOUT = f"hegraph_adapter-{__version__}.dist-info"
QUICK = ("--shots", "1", "--seed", "1", "OPTIM.MAX_EPOCH", "2", "TRAINER.HEGRAPHADAPTER.MIN_STEPS", "0")
ENVIRONMENT = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV", "CONDA_PREFIX")}


def start(*command: object, cwd: Path) -> str:
    """Run a command without this checkout in its environment; returns its output, or its error output if it fails."""
    environment = ENVIRONMENT | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    words = [str(word) for word in command]
    ran = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, timeout=900)
    if re.search("(No matching distribution found for|Could not find a version .*) hatchling", ran.stderr):
        pytest.skip("the package registry cannot be reached, and building the wheel fetches hatchling from it")
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built as `pip install .` builds it; skips where the build backend cannot be fetched."""
    pytest.importorskip("pip", reason="this interpreter has no pip, which builds the wheel")
    folder = tmp_path_factory.mktemp("wheel")
    pip = (sys.executable, "-m", "pip", "wheel", "--no-deps", "--retries", "1")
    start(*pip, "--wheel-dir", folder, ROOT, cwd=folder)
    [file] = folder.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """The programs of a virtual environment with the wheel, which sees the packages of this interpreter as well."""
    environment = tmp_path_factory.mktemp("installed") / "environment"
    venv.create(environment, with_pip=True)
    [site_packages] = environment.glob("lib/python*/site-packages")
    at_hand = [path for path in sys.path if path.endswith("-packages")]
    (site_packages / "at_hand.pth").write_text("".join(f"{path}\n" for path in at_hand))
    alone = ("--no-deps", "--no-index", "--ignore-installed")
    start(environment / "bin" / "python", "-m", "pip", "install", *alone, wheel, cwd=environment)
    return environment / "bin"


def files_of(wheel: Path) -> dict[str, bytes]:
    """Content of the files in a wheel by name, without the list of the files."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist() if not name.endswith("/RECORD")}


def test_wheel_holds_package_and_configurations_only(wheel):
    package = {f"hegraph/{name}": content for name, content in contents(ROOT / "trainers" / "hegraph").items()}
    configurations = {f"hegraph/configs/{name}": content for name, content in contents(ROOT / "configs").items()}
    found = files_of(wheel)
    assert found.pop("hegraph/.hegraph-installed").decode().strip() == (git_commit() or "unknown")
    assert {name: found[name] for name in found if ".dist-info/" not in name} == package | configurations
    assert found[f"{ABOUT}/licenses/LICENSE"] == (ROOT / "LICENSE").read_bytes()
    metadata = found[f"{ABOUT}/METADATA"].decode()
    assert f"\nVersion: {__version__}\n" in metadata and "\nLicense-Expression: MIT\n" in metadata


def test_release_has_the_wheel_of_the_checkout(wheel, tmp_path):
    pytest.importorskip("build", reason="the extra `dev` is not installed, which builds a release")
    start(sys.executable, "-m", "build", "--outdir", tmp_path, ROOT, cwd=tmp_path)  # by way of the source distribution
    [released] = tmp_path.glob("*.whl")
    assert files_of(released) == files_of(wheel)


def requirements(text: str) -> set[str]:
    """Requirements such as `torch>=2.4`, with names as registries compare them and bounds in one order."""
    parsed = (Requirement(line.lower().replace("_", "-")) for line in text.splitlines() if line)
    return {f"{requirement.name}{requirement.specifier}" for requirement in parsed}


def test_requirements_txt_matches_the_wheel(wheel):
    with zipfile.ZipFile(wheel) as archive:
        metadata = archive.read(f"{ABOUT}/METADATA").decode()
    required = "\n".join(re.findall(r"^Requires-Dist: ([^;\n]+)$", metadata, re.MULTILINE))
    extras = set(re.findall(r"^Requires-Dist: (\S+); extra == '(?:pyg|dev)'$", metadata, re.MULTILINE))
    listed = requirements((ROOT / "requirements.txt").read_text())
    assert requirements(required) <= listed
    of_the_tests = {"torch-geometric>=2.5.3", "pytest>=8.0", "pytest-xdist>=3.6"}
    assert listed - requirements(required) == of_the_tests and of_the_tests <= extras


def test_installed_package_is_hegraph(installed, tmp_path):
    program = (
        "import importlib.util, json, sys, hegraph\n"
        "found = [hegraph.__file__, hegraph.__version__, importlib.util.find_spec('trainers') is None]\n"
        "print(json.dumps([*found, 'torch' in sys.modules, hegraph.UserError.__module__]))"
    )
    file, *found = json.loads(start(installed / "python", "-c", program, cwd=tmp_path))
    assert Path(file).is_relative_to(installed.parent)
    assert found == [__version__, True, False, "hegraph.utils.errors"]


def test_wheel_gives_the_adapter_of_the_checkout(installed, tmp_path):
    names = ("--config-file", "mini", "--dataset-config-file", "digits", *QUICK)
    features = ("TRAINER.HEGRAPHADAPTER.FEATURES.DIR", tmp_path / "features")
    printed = start(installed / "hegraph", "--output-dir", "OUT", *names, *features, cwd=tmp_path)
    assert printed.startswith("Digits, 1 shot, seed 1: zero-shot 78.09, ")
    record = json.loads((tmp_path / "OUT" / "result.json").read_text())
    assert (record["dataset"], record["shots"], record["seed"]) == ("Digits", 1, 1)
    assert record["git_commit"] == (git_commit() or "unknown")

    other, features = tmp_path / "of the checkout", (features[0], tmp_path / "its features")
    start(sys.executable, "-m", "trainers.hegraph", "--output-dir", other, *names, *features, cwd=ROOT)
    adapters = [folder / "adapter.safetensors" for folder in (tmp_path / "OUT", other)]
    assert adapters[0].read_bytes() == adapters[1].read_bytes()
    assert json.loads((other / "result.json").read_text())["accuracy"] == record["accuracy"]
    table = start(installed / "hegraph", "results", "compare", "OUT", "--format", "text", cwd=tmp_path)
    assert table.startswith("Digits, hegraph-mini/hegraph-mini, 1 shot")
