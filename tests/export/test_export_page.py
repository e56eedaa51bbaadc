"""The lines of docs/onnx.md that need no torch, in an environment that has none."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from trainers.hegraph.datasets.digits import load_digits_dataset
from trainers.hegraph.datasets.images import open_image
from trainers.hegraph.export.source import load_source

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "onnx.md"
PACKAGES = ("onnxruntime", "numpy", "pillow")
NUM_LINES = 17
ROTATE_90 = 6  # an EXIF orientation


def block(language: str) -> str:
    """The page's only block of a language."""
    [text] = re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return text


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the page's commands have been run."""
    folder = tmp_path_factory.mktemp("exported")
    for name in ("trainers", "configs"):
        (folder / name).symlink_to(ROOT / name)
    python = folder / "bin" / "python"
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    environment = {**os.environ, "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}"}
    command = ["bash", "-ec", block("bash")]
    ran = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240)
    assert ran.returncode == 0, ran.stderr
    return folder


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
    return dataset.read(dataset.test[7].path)


def wide() -> Image.Image:
    """A picture that is resized by a factor that leaves a remainder, and cropped at both sides."""
    canvas = Image.new("L", (301, 97), 40)
    canvas.paste(digit().convert("L").resize((90, 90)), (104, 3))
    return canvas


def opaque() -> Image.Image:
    return digit().convert("RGBA").resize((41, 73))


def see_through() -> Image.Image:
    """A digit that transparency alone draws: below it all is black."""
    picture = Image.new("RGBA", (64, 64), "black")
    picture.putalpha(digit().convert("L").resize((64, 64)))
    return picture


def on_its_side() -> Image.Image:
    """A digit that its EXIF orientation turns upright."""
    picture = digit().convert("RGB").resize((64, 64)).transpose(Image.Transpose.ROTATE_90)
    picture.getexif()[ExifTags.Base.Orientation] = ROTATE_90
    return picture


def of_16_bits() -> Image.Image:
    return Image.fromarray(np.array(digit().convert("L")).astype(np.uint16) * 256)


def of_32_bits() -> Image.Image:
    """Grey values of 32 bits that are all below 256, which are not scaled."""
    return Image.fromarray(np.array(digit().convert("L")).astype(np.int32))


def of_32_bits_above_255() -> Image.Image:
    """Grey values of 32 bits of which some are above 65535, which count as 65535."""
    return Image.fromarray(np.array(digit().convert("L")).astype(np.int32) * 300)


def colours_of_print() -> Image.Image:
    return digit().convert("CMYK").resize((64, 64))


def no_digit() -> Image.Image:
    """A picture that scores lower than the images of the classes do."""
    return Image.linear_gradient("L")


def test_there_are_seventeen_lines_after_the_imports():
    lines = [line for line in block("python").splitlines() if line and not line.startswith(("import ", "from "))]
    assert len(lines) == NUM_LINES


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (digit, "PNG"),
        (wide, "PNG"),
        (opaque, "PNG"),
        (see_through, "PNG"),
        (on_its_side, "JPEG"),
        (of_16_bits, "PNG"),
        (of_32_bits, "TIFF"),
        (of_32_bits_above_255, "TIFF"),
        (colours_of_print, "JPEG"),
        (no_digit, "PNG"),
    ],
)
def test_the_lines_give_class_and_probability_of_the_package(make, kind, interpreter, exported):
    file, image = exported / "image.png", make()
    image.save(file, format=kind, exif=image.getexif())
    (exported / "lines.py").write_text(block("python"))
    command = [str(interpreter), "-I", "lines.py"]
    ran = subprocess.run(command, cwd=exported, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    said, *marked = ran.stdout.splitlines()
    name, probability = said.split()
    model, backbone = load_source(exported / "output" / "digits_onnx", "full", "", "")
    pixels = backbone.preprocess(open_image(file)).unsqueeze(0)
    logits = model.classifier.logits(backbone.encode_images(pixels))
    expected = model.calibrate(logits)[0]
    assert name == model.classnames[int(expected.argmax())]
    assert float(probability) == pytest.approx(float(expected.max()), abs=1e-5)
    assert marked == ([] if model.is_known(logits, 0.95).item() else ["none of these"])


def test_their_environment_has_no_torch(interpreter):
    ran = subprocess.run([str(interpreter), "-I", "-c", "import torch"], capture_output=True, text=True, timeout=60)
    assert "No module named 'torch'" in ran.stderr
