"""The client of docs/guides/serve.md classifies images and reports errors."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from serving import serving

GUIDE = Path(__file__).parents[3] / "docs" / "guides" / "serve.md"
MAX_LINES = 20  # without empty lines


@pytest.mark.slow
def test_client_of_the_guide_classifies_images(own_model, tmp_path, python):
    [code] = re.findall(r"^```python\n(# needs the server,.*?)^```$", GUIDE.read_text(), re.DOTALL | re.MULTILINE)
    assert len([line for line in code.splitlines() if line and not line.startswith("#")]) <= MAX_LINES
    names = [f"{number}.png" for number in range(66)]  # more than the server takes in a request
    for name in names:
        Image.effect_noise((9, 9), 60).save(tmp_path / name)
    (tmp_path / names[65]).write_text("no image")
    with serving(own_model(), python=python) as server:
        address = str(server.client.base_url).rstrip("/")
        (tmp_path / "client.py").write_text(code.replace("http://127.0.0.1:8000", address))
        words = [sys.executable, "client.py", *names]
        ran = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    lines = ran.stdout.splitlines()
    assert ran.returncode == 0, ran.stderr
    assert [line.split()[0] for line in lines] == names
    assert all("'probability'" in line for line in lines[:65]) and "not an image" in lines[65]
