"""Encoding in chunks: a killed run goes on where it was, and several processes make the bank that one makes."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from trainers.hegraph.backbones.clip import Backbone
from trainers.hegraph.backbones.loading import load_backbone
from trainers.hegraph.config_files import load_cfg
from trainers.hegraph.datasets import load_dataset
from trainers.hegraph.features import parts as chunks
from trainers.hegraph.features.extract import ImageViews, encode_chunks, encode_images
from trainers.hegraph.features.options import EncodingOptions
from trainers.hegraph.features.parts import Chunks

ROOT = Path(__file__).parents[2]
MINI = ROOT / "configs" / "trainers" / "HeGraphAdapter" / "mini.yaml"
DIGITS = ROOT / "configs" / "datasets" / "digits.yaml"
BATCH, IMAGES = 4, 22  # two batches a chunk: 8 + 8 + 6 images


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return load_backbone("hegraph-mini")


@pytest.fixture
def images(backbone) -> ImageViews:
    digits = load_dataset("Digits")
    return ImageViews(digits, digits.test[:IMAGES], backbone.preprocess)


@pytest.fixture
def options(monkeypatch) -> EncodingOptions:
    monkeypatch.setattr(chunks, "CHUNK_BATCHES", 2)
    return load_cfg(opts=["DATALOADER.TEST.BATCH_SIZE", BATCH]).encoding


@pytest.fixture
def encoded(monkeypatch) -> list[int]:
    """The number of images of every call of the backbone."""
    calls: list[int] = []
    real = Backbone.encode_images

    def counted(self: Backbone, batch: torch.Tensor) -> torch.Tensor:
        calls.append(len(batch))
        return real(self, batch)

    monkeypatch.setattr(Backbone, "encode_images", counted)
    return calls


def kill_after(monkeypatch, batches: int) -> None:
    """Ends encoding as a killed process would: inside the batch after so many."""
    real, calls = Backbone.encode_images, []

    def dies(self: Backbone, batch: torch.Tensor) -> torch.Tensor:
        calls.append(len(batch))
        if len(calls) > batches:
            raise KeyboardInterrupt
        return real(self, batch)

    monkeypatch.setattr(Backbone, "encode_images", dies)


@pytest.mark.parametrize(("batches", "kept"), [(0, 0), (1, 0), (2, 8), (3, 8), (4, 16), (5, 16)])
def test_a_killed_run_goes_on_after_its_last_whole_chunk(
    backbone, images, options, encoded, tmp_path, monkeypatch, caplog, batches, kept
):
    uninterrupted = encode_images(backbone, images, options, tmp_path / "other", "test")
    with monkeypatch.context() as patch:
        kill_after(patch, batches)
        with pytest.raises(KeyboardInterrupt):
            encode_images(backbone, images, options, tmp_path / "parts", "test")
    encoded.clear()
    with caplog.at_level(logging.INFO):
        resumed = encode_images(backbone, images, options, tmp_path / "parts", "test")
    assert sum(encoded) == IMAGES - kept
    assert torch.equal(resumed, uninterrupted)
    assert (f"{kept} of {IMAGES} test images were encoded before" in caplog.text) == (kept > 0)
    assert f"encoded {IMAGES - kept} test images" in caplog.text
    assert [path.suffix for path in (tmp_path / "parts").iterdir()] == [".safetensors"]  # no chunk is left


@pytest.mark.parametrize("spoil", [lambda path: path.write_bytes(b"damaged"), Path.unlink], ids=["damaged", "gone"])
def test_a_chunk_that_cannot_be_used_is_encoded_anew(backbone, images, options, encoded, tmp_path, monkeypatch, spoil):
    uninterrupted = encode_images(backbone, images, options, tmp_path / "other", "test")
    with monkeypatch.context() as patch:
        kill_after(patch, 5)
        with pytest.raises(KeyboardInterrupt):
            encode_images(backbone, images, options, tmp_path / "parts", "test")
    [first, _] = sorted((tmp_path / "parts").rglob("0*.safetensors"))
    spoil(first)
    encoded.clear()
    assert torch.equal(encode_images(backbone, images, options, tmp_path / "parts", "test"), uninterrupted)
    assert encoded == [4, 4, 4, 2]


def test_chunks_of_another_batch_size_are_not_taken(backbone, images, options, encoded, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        kill_after(patch, 5)
        with pytest.raises(KeyboardInterrupt):
            encode_images(backbone, images, options, tmp_path / "parts", "test")
    encoded.clear()
    threes = replace(options, batch_size=3)
    resumed = encode_images(backbone, images, threes, tmp_path / "parts", "test")
    assert sum(encoded) == IMAGES
    assert torch.equal(resumed, encode_images(backbone, images, threes, tmp_path / "other", "test"))


def test_the_part_has_the_bytes_of_a_file_that_is_written_at_once(backbone, images, options, tmp_path):
    features = encode_images(backbone, replace(images, views=3), options, tmp_path, "test")
    [part] = tmp_path.iterdir()
    with safe_open(part, framework="pt") as file:
        metadata = file.metadata()
    save_file({"features": features}, tmp_path / "at_once", metadata)
    assert features.shape[:2] == (3, IMAGES)
    (header, content), at_once = (parts_of(path.read_bytes()) for path in (part, tmp_path / "at_once"))
    assert (header, content) == at_once  # but for the order of the metadata, which safetensors leaves to chance


def parts_of(file: bytes) -> tuple[dict, bytes]:
    """The header of a safetensors file, and what follows it."""
    length = int.from_bytes(file[:8], "little")
    return json.loads(file[8 : 8 + length]), file[8 + length :]


def test_chunks_can_be_driven_one_by_one_in_any_order(backbone, images, options, tmp_path):
    expected = encode_images(backbone, images, options, tmp_path / "parts", "test")
    chunks_of_part = Chunks(len(images), BATCH, tmp_path / "part.safetensors", key="key")
    assert chunks_of_part.missing() == [0, 1, 2]
    for number in (2, 0, 1):
        [features] = encode_chunks(backbone, images, chunks_of_part, [number], num_workers=0)
        chunks_of_part.keep(number, features)
    assert chunks_of_part.missing() == []
    chunks_of_part.join(views=1)
    assert torch.equal(load_file(tmp_path / "part.safetensors")["features"], expected)


@pytest.mark.slow
def test_two_processes_of_torchrun_make_the_bank_of_one_bit_for_bit(tmp_path):
    flags = [
        "--config-file",
        str(MINI),
        "--dataset-config-file",
        str(DIGITS),
        "--shots",
        "2",
        "--seed",
        "1",
        "--no-train",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # torchrun sets it as well

    def encode(name: str, *launcher: str) -> subprocess.CompletedProcess:
        options = ["DATALOADER.TEST.BATCH_SIZE", "10", "TRAINER.HEGRAPHADAPTER.FEATURES.DIR", str(tmp_path / name)]
        command = [sys.executable, *launcher, "-m", "trainers.hegraph", *flags]
        command += ["--output-dir", str(tmp_path / f"out-{name}"), *options]
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)

    one = encode("one")
    assert one.returncode == 0, one.stderr
    two = encode("two", "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    assert two.returncode == 0, two.stderr
    files = {
        name: sorted(p.relative_to(tmp_path / name) for p in (tmp_path / name).rglob("*") if p.is_file())
        for name in ("one", "two")
    }
    assert files["one"] == files["two"]
    assert sorted(path.name.split("-")[0] for path in files["one"]) == ["test", "text", "train", "val"]
    for path in files["one"]:
        ours, theirs = load_file(tmp_path / "one" / path), load_file(tmp_path / "two" / path)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours), path
    # The 899 test images are six chunks of 16 batches: both processes had some
    counts = [int(line.split()[1]) for line in two.stderr.splitlines() if line.startswith("encoded") and "test" in line]
    assert len(counts) == 2
    assert sum(counts) == 899
    assert min(counts) > 300
