"""scripts/hegraph/demo.sh shows a model, or trains the digits first."""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from browser import serving

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def bash(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    command = ["bash", "scripts/hegraph/demo.sh", *arguments]
    variables = os.environ | {"PYTHON": sys.executable} | environment
    return subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=240)


def test_the_script_shows_a_model_and_leaves_no_uploads(model_folder, tmp_path):
    command = ["bash", "scripts/hegraph/demo.sh", str(model_folder.parent)]
    with serving(command, PYTHON=sys.executable, TMPDIR=str(tmp_path)) as address:
        assert "HeGraphAdapter on Digits" in OPENER.open(f"{address}/", timeout=30).read().decode()
        assert list(tmp_path.glob("hegraph-demo-*"))
    assert not list(tmp_path.glob("hegraph-demo-*"))


def test_the_script_without_a_model_trains_the_digits_or_takes_those_that_are_there(tmp_path):
    run = tmp_path / "digits" / "HeGraphAdapter" / "mini_16shots" / "seed1"
    written = []
    for name in ("first", "second"):
        ran = bash("--space", str(tmp_path / name), OUTPUT=str(tmp_path))
        assert ran.returncode == 0, ran.stderr
        assert (tmp_path / name / "model" / "thumbnails" / "00159.jpg").is_file()
        written.append((run / "result.json").stat().st_mtime_ns)
    assert written[0] == written[1]


def test_a_training_that_fails_ends_the_script(tmp_path):
    (tmp_path / "output").write_text("no folder")
    ran = bash(OUTPUT=str(tmp_path / "output"))
    assert ran.returncode == 2
    [line] = ran.stderr.splitlines()
    assert line.startswith("error: cannot write")
