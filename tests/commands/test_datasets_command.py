"""`datasets check --backbone`, which lists class names that say nothing to a backbone."""

from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from trainers.hegraph.__main__ import main


def digit_folders(root: Path, names: tuple[str, ...]) -> Path:
    """Class folders of sixteen real digits for each name, digit 0 first."""
    digits = load_digits()
    for digit, name in enumerate(names):
        for number, pixels in enumerate(digits.images[digits.target == digit][:16]):
            image = Image.fromarray((15 * pixels).astype(np.uint8)).resize((64, 64))
            (root / name).mkdir(parents=True, exist_ok=True)
            image.save(root / name / f"{number}.png")
    return root


def test_check_names_classes_without_meaningful_text(tmp_path, capsys):
    names = ("zero", "one", "part 43", "three", "four", "part 44", "six", "seven")
    root = digit_folders(tmp_path / "digits", names)
    assert main(["datasets", "check", "--root", str(root), "--backbone", "mini"]) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert any("the names say nothing to the encoder: part 43, part 44 (2 of 8 classes)." in line for line in lines)
    assert lines[-1].endswith(f"train {root} --backbone mini")


def test_check_judges_names_of_own_images_only(cli_error):
    error = cli_error("datasets", "check", "dtd", "--root", "data", "--backbone", "mini")
    assert "--backbone encodes your own images only: leave out dtd" in error
