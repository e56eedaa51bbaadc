"""Features that were kept are used only if they are what was written."""

from __future__ import annotations

import logging

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from trainers.hegraph.features.parts import is_whole, read_part, write_part


@pytest.fixture
def part(tmp_path, unit_features):
    path = tmp_path / "train-1.safetensors"
    write_part(path, {"features": unit_features(2, 5, 8)}, "key")
    return path


def rewrite(path, change) -> None:
    with safe_open(path, framework="pt") as file:
        features, metadata = file.get_tensor("features").clone(), dict(file.metadata())
    change(features, metadata)
    save_file({"features": features}, path, metadata)


def swap_rows(features, metadata):
    features[0, [0, 1]] = features[0, [1, 0]]


def swap_views(features, metadata):
    features[[0, 1]] = features[[1, 0]]


def zero_a_block(features, metadata):
    features[1, 3:] = 0


def flip_one_bit(features, metadata):
    features.view(torch.int32)[0, 0, 0] ^= 1


def lose_the_checksum(features, metadata):
    del metadata["checksum"]


def test_what_was_written_is_read(part, unit_features):
    assert is_whole(part, "key")
    assert torch.equal(read_part(part)["features"], unit_features(2, 5, 8))


def test_the_order_of_the_names_does_not_matter(tmp_path, unit_features):
    tensors = {"positive": unit_features(3, 8), "negative": unit_features(3, 8, seed=1), "a": unit_features(1, 8)}
    write_part(tmp_path / "text-1.safetensors", tensors, "key")
    assert is_whole(tmp_path / "text-1.safetensors", "key")
    found = read_part(tmp_path / "text-1.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize("change", [swap_rows, swap_views, zero_a_block, flip_one_bit, lose_the_checksum])
def test_what_has_changed_since_is_not_used_and_that_is_said(part, caplog, change):
    rewrite(part, change)
    with caplog.at_level(logging.WARNING):
        assert not is_whole(part, "key")
    assert f"{part} cannot be used" in caplog.text
    assert "encoding anew" in caplog.text
