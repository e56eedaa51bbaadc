"""The lines of docs/onnx.md that need no torch, in an environment that has none."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from trainers.hegraph.datasets.digits import load_digits_dataset
from trainers.hegraph.export.__main__ import main
from trainers.hegraph.export.source import load_source
from trainers.hegraph.features.views import open_image

PAGE = Path(__file__).parents[2] / "docs" / "onnx.md"
PACKAGES = ("onnxruntime", "numpy", "pillow")
LONGEST_LINES = 10


@pytest.fixture(scope="module")
def lines() -> str:
    [block] = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return block


@pytest.fixture(scope="module")
def interpreter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a new environment that has onnxruntime, numpy and pillow, and what they need themselves."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, timeout=120)
    python = folder / "bin" / "python"
    command = [str(python), "-I", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *PACKAGES]
    installed = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if installed.returncode:
        pytest.skip(f"{', '.join(PACKAGES)} cannot be installed: {installed.stderr.strip().splitlines()[-1]}")
    return python


def digit() -> Image.Image:
    dataset = load_digits_dataset()
    return open_image(dataset, dataset.test[7])


def wide() -> Image.Image:
    """A picture that is resized by a factor that leaves a remainder, and cropped at both sides."""
    canvas = Image.new("L", (301, 97), 40)
    canvas.paste(digit().convert("L").resize((90, 90)), (104, 3))
    return canvas


def see_through() -> Image.Image:
    return digit().convert("RGBA").resize((41, 73))


def test_there_are_ten_of_them(lines):
    counted = [line for line in lines.splitlines() if line and not line.startswith(("import ", "from "))]
    assert len(counted) == LONGEST_LINES


@pytest.mark.parametrize("make", [digit, wide, see_through])
def test_they_give_class_and_probability_of_torch(make, lines, interpreter, trained, tmp_path):
    image = make()
    image.save(tmp_path / "image.png")
    (tmp_path / "lines.py").write_text(lines)
    assert main([str(trained), "--onnx", str(tmp_path / "model.onnx")]) == 0
    command = [str(interpreter), "-I", "lines.py"]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    name, probability = ran.stdout.split()
    model, backbone = load_source(trained, "full", "", "")
    pixels = backbone.preprocess(image.convert("RGB")).unsqueeze(0)
    expected = model.probabilities(backbone.encode_images(pixels))[0]
    assert name == model.classnames[int(expected.argmax())]
    assert float(probability) == pytest.approx(float(expected.max()), abs=1e-5)


def test_their_environment_has_no_torch(interpreter):
    ran = subprocess.run([str(interpreter), "-I", "-c", "import torch"], capture_output=True, text=True, timeout=60)
    assert "No module named 'torch'" in ran.stderr
