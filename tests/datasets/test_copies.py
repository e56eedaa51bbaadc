"""Own images that are in two splits under two names."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from trainers.hegraph.__main__ import main
from trainers.hegraph.datasets import own as module
from trainers.hegraph.datasets.own import HEAD, files_among

ROOT = Path(__file__).parents[2]
MINI = str(ROOT / "configs" / "trainers" / "HeGraphAdapter" / "mini.yaml")


def save(path: Path, grey: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (28, 28), grey).save(path)


@pytest.fixture
def own(tmp_path) -> Path:
    """Two classes of two training, one val and one test image, all of them different."""
    for number, name in enumerate(("ant", "bee")):
        greys = iter(range(100 * number, 100 * number + 4))
        for split, count in (("train", 2), ("val", 1), ("test", 1)):
            for image in range(count):
                save(tmp_path / "own" / split / name / f"{split}{image}.png", next(greys))
    return tmp_path / "own"


def start(own: Path, tmp_path: Path) -> int:
    flags = ["--dataset-config-file", "folder", "--root", str(own), "--config-file", MINI, "--trainer", "ZeroShot"]
    return main([*flags, "--shots", "1", "--output-dir", str(tmp_path / "out")])


def test_images_that_differ_are_run(own, tmp_path):
    assert start(own, tmp_path) == 0


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_file_that_is_in_test_too_is_refused_before_anything_is_written(own, tmp_path, capsys, split):
    for number, path in enumerate((own / split).rglob("*.png")):
        (own / "test" / "ant" / f"copy{number}.png").write_bytes(path.read_bytes())
    assert start(own, tmp_path) == 2
    error = capsys.readouterr().err
    assert f"2 of 2 {split} images are test images as well, such as " in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_bank_is_not_made_of_them_either(own, tmp_path, capsys):
    (own / "test" / "ant" / "copy.png").write_bytes((own / "train" / "bee" / "train1.png").read_bytes())
    flags = ["--dataset-config-file", "folder", "--root", str(own), "--config-file", MINI]
    assert main(["features", "extract", *flags, "--out", str(tmp_path / "bank.safetensors")]) == 2
    assert "1 of 4 train images are test images as well" in capsys.readouterr().err
    assert not (tmp_path / "bank.safetensors").exists()


def test_a_file_that_cannot_be_compared_is_named_and_so_is_the_command_that_finds_all(
    own, tmp_path, capsys, monkeypatch
):
    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(module, "_head", refuse)  # root may read everything
    assert start(own, tmp_path) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: cannot read the image {own}/") and error.count("\n") == 1
    assert "Permission denied; list all: python -m trainers" in error


def test_files_are_alike_in_every_byte_or_not_at_all(tmp_path):
    contents = {"a": b"x" * HEAD + b"a", "b": b"x" * HEAD + b"b", "c": b"x" * HEAD, "d": b"y" * HEAD + b"a", "e": b""}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "twin").write_bytes(contents["a"])
    others = [tmp_path / name for name in "bcd"]
    assert files_among([tmp_path / "a", tmp_path / "e"], others) == []
    assert files_among([tmp_path / "a", tmp_path / "e"], [*others, tmp_path / "twin"]) == [tmp_path / "a"]
