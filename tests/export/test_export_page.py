"""The lines of docs/onnx.md that need no torch give what the package gives."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed: pip install onnx onnxruntime")
pytest.importorskip("onnx", reason="the extra `onnx` is not installed: pip install onnx onnxruntime")

from trainers.hegraph.datasets.digits import open_digit
from trainers.hegraph.export.__main__ import main
from trainers.hegraph.models.images import ImageModel

PAGE = Path(__file__).parents[2] / "docs" / "onnx.md"
ROTATE_90 = 6  # an EXIF orientation


def block(language: str) -> str:
    """The page's only block of a language."""
    [text] = re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return text


@pytest.fixture(scope="module")
def exported(finished_digits_once: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the model as the page's lines read it."""
    folder = tmp_path_factory.mktemp("exported")
    assert main([str(finished_digits_once), "--onnx", str(folder / "model.onnx")]) == 0
    return folder


def digit(*size: int) -> Image.Image:
    return open_digit("digits/0007").convert("L").resize(size or (8, 8))


def wide() -> Image.Image:
    """A picture that is resized by a factor that leaves a remainder, and cropped at both sides."""
    canvas = Image.new("L", (301, 97), 40)
    canvas.paste(digit(90, 90), (104, 3))
    return canvas


def see_through() -> Image.Image:
    """A digit that transparency alone draws: below it all is black."""
    picture = Image.new("RGBA", (64, 64), "black")
    picture.putalpha(digit(64, 64))
    return picture


def on_its_side() -> Image.Image:
    """A digit that its EXIF orientation turns upright."""
    picture = digit(64, 64).convert("RGB").transpose(Image.Transpose.ROTATE_90)
    picture.getexif()[ExifTags.Base.Orientation] = ROTATE_90
    return picture


PICTURES = {
    "wide": (wide, "PNG"),
    "see-through": (see_through, "PNG"),
    "on its side": (on_its_side, "JPEG"),
    "16 bits": (lambda: Image.fromarray(np.array(digit()).astype(np.uint16) * 256), "PNG"),
    "32 bits, some above 65535": (lambda: Image.fromarray(np.array(digit()).astype(np.int32) * 300), "TIFF"),
    "no digit, and so below the threshold": (lambda: Image.linear_gradient("L"), "PNG"),
}


@pytest.mark.parametrize(("make", "kind"), PICTURES.values(), ids=PICTURES)
def test_the_lines_give_class_and_probability_of_the_package(
    make, kind, exported, finished_digits_once, monkeypatch, capsys
):
    file, image = exported / "image.png", make()
    image.save(file, format=kind, exif=image.getexif())
    monkeypatch.chdir(exported)
    exec(compile(block("python"), str(PAGE), "exec"), {})
    said, *marked = capsys.readouterr().out.splitlines()
    name, probability = said.split()
    images = ImageModel.load(finished_digits_once)
    logits = images.logits(images.features([file]))
    expected = images.model.calibrate(logits)[0]
    assert name == images.model.classnames[int(expected.argmax())]
    assert float(probability) == pytest.approx(float(expected.max()), abs=1e-5)
    assert marked == ([] if images.model.is_known(logits, 0.95).item() else ["none of these"])


@pytest.mark.slow
def test_the_lines_run_where_there_is_neither_torch_nor_this_package(exported):
    digit().save(exported / "image.png")
    without = "import sys\nsys.modules |= dict.fromkeys(['torch', 'torchvision', 'trainers', 'hegraph'])\n"
    program = [sys.executable, "-c", without + block("python")]
    ran = subprocess.run(program, cwd=exported, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0 and len(ran.stdout.split()) == 2, ran.stderr
