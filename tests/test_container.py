"""Dockerfile of the server: pinned, without root, with a health check, and with files of the checkout."""

import json
import re
from pathlib import Path

import pytest

parse = pytest.importorskip("dockerfile_parse", reason="dockerfile-parse is not installed")
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def steps(tmp_path_factory) -> list[tuple[str, str]]:
    """Instructions and their values."""
    path = tmp_path_factory.mktemp("container") / "Dockerfile"
    path.write_text((ROOT / "Dockerfile").read_text(encoding="utf-8"))
    return [(step["instruction"], step["value"]) for step in parse.DockerfileParser(path=str(path)).structure]


def values(steps: list[tuple[str, str]], name: str) -> list[str]:
    return [value for instruction, value in steps if instruction == name]


def test_base_images_and_packages_are_pinned(steps):
    bases = values(steps, "FROM")
    assert len(bases) == 2 and all(re.match(r"python:3\.\d+\.\d+-slim-\w+( AS build)?$", base) for base in bases)
    [install] = [value for value in values(steps, "RUN") if "pip install" in value]
    assert "--constraint constraints.txt" in install
    lines = (ROOT / "constraints.txt").read_text().split()
    assert all(re.match(r"[\w.-]+==[\w.]+$", line) for line in lines)
    names = {line.partition("==")[0].lower().replace("_", "-") for line in lines}
    assert {"torch", "torchvision", "open-clip-torch", "fastapi", "uvicorn", "pillow"} <= names


def test_copied_files_are_in_the_checkout_and_not_ignored(steps):
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().split() if line.startswith("!")}
    for value in values(steps, "COPY"):
        if not value.startswith("--from"):
            *sources, _ = value.split()
            assert set(sources) <= kept and all((ROOT / source).exists() for source in sources)


def test_server_has_no_root_a_token_and_a_health_check(steps):
    last = max(position for position, (instruction, _) in enumerate(steps) if instruction == "FROM")
    [user] = values(steps[last:], "USER")
    assert int(user) > 0
    [check] = values(steps, "HEALTHCHECK")
    assert "/health" in check
    command = json.loads(values(steps, "ENTRYPOINT")[0]) + json.loads(values(steps, "CMD")[0])
    assert command[:2] == ["hegraph", "serve"] and "--token-file" in command and "--no-token" not in command


def test_extras_of_the_backbone_are_an_argument(steps):
    assert "EXTRAS=serve" in values(steps, "ARG")
    [install] = [value for value in values(steps, "RUN") if "pip install" in value]
    assert '".[$EXTRAS]"' in install
