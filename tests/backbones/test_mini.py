"""The training of the mini backbone. The weights that ship are known by their hash in test_backbone_loading.py."""

from __future__ import annotations

import torch

from tools.mini.__main__ import main, parse_arguments
from trainers.hegraph.backbones.identity import MINI_WEIGHTS


def test_training_is_deterministic_and_never_writes_to_the_package_by_default(tmp_path):
    assert parse_arguments([]).out.resolve() != MINI_WEIGHTS
    threads, files = torch.get_num_threads(), [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for file in files:
        assert main(["--steps", "1", "--out", str(file)]) == 0
    torch.set_num_threads(threads)  # the command sets them for its process, which is here the tests'
    assert sorted(tmp_path.iterdir()) == files and files[0].read_bytes() == files[1].read_bytes()
