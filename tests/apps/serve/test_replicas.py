"""Replicas with Ray Serve: the code of the guide on this machine."""

import os
import re
import shutil
import subprocess
import sys

import pytest

from tools.free_ports import free_port
from tools.outputs import ROOT, make_checkout

GUIDE = ROOT / "docs" / "guides" / "serve.md"
DRIVER = """
import sys
from pathlib import Path

import httpx
import ray
from ray import serve

from replicas import application

port, image = sys.argv[1:]
ray.init(address="local", num_cpus=2, include_dashboard=False)
serve.start(http_options={"port": int(port)})
serve.run(application)
[deployment] = serve.status().applications["default"].deployments.values()
answer = httpx.post(f"http://127.0.0.1:{port}/v1/predict/files", files={"files": Path(image).read_bytes()})
print("\\n", deployment.replica_states["RUNNING"], answer.json()["predictions"][0]["top"][0]["class"])
"""


@pytest.mark.slow
def test_replicas_of_the_guide_answer(own_model, scans, tmp_path):
    pytest.importorskip("ray.serve", reason="the extra `ray` is not installed", exc_type=ImportError)
    checkout = make_checkout(tmp_path)
    shutil.copytree(own_model(), checkout / "output" / "pictures" / "model")
    [code] = [block for block in re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.S) if "num_replicas" in block]
    (checkout / "replicas.py").write_text(code)
    (checkout / "driver.py").write_text(DRIVER)
    environment = os.environ | {"PYTHONPATH": str(checkout / "lib"), "RAY_USAGE_STATS_ENABLED": "0"}
    command = [sys.executable, "driver.py", str(free_port()), str(scans.files[0])]
    done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert re.search(rf"^ 2 {scans.labels[0]}$", done.stdout, re.MULTILINE), done.stdout
