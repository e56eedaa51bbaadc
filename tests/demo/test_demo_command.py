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
SCRIPT = ["bash", "scripts/hegraph/demo.sh"]


def test_the_script_shows_a_model_and_leaves_no_uploads(model_folder, tmp_path):
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with serving([*SCRIPT, str(model_folder.parent)], PYTHON=sys.executable, TMPDIR=str(tmp_path)) as address:
        assert "HeGraphAdapter on Digits" in opener.open(f"{address}/", timeout=30).read().decode()
        assert list(tmp_path.glob("hegraph-demo-*"))
    assert not list(tmp_path.glob("hegraph-demo-*"))


def test_the_script_without_a_model_trains_the_digits_or_takes_those_that_are_there(tmp_path):
    run = tmp_path / "digits" / "HeGraphAdapter" / "mini_16shots" / "seed1"
    variables = os.environ | {"PYTHON": sys.executable, "OUTPUT": str(tmp_path)}
    written = []
    for name in ("first", "second"):
        subprocess.run([*SCRIPT, "--space", str(tmp_path / name)], cwd=ROOT, env=variables, check=True, timeout=240)
        assert (tmp_path / name / "model" / "thumbnails" / "00159.jpg").is_file()
        written.append((run / "result.json").stat().st_mtime_ns)
    assert written[0] == written[1]
