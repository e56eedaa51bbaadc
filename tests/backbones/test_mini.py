"""The training of the mini backbone. The weights that ship are known by their hash in test_backbone_loading.py."""

from __future__ import annotations

import torch

from tools.mini import train
from tools.mini.__main__ import main, parse_arguments
from trainers.hegraph.backbones.identity import MINI_NAME, MINI_WEIGHTS
from trainers.hegraph.backbones.loading import create_model

QUICK = train.Settings(steps=2, batch_size=12, negative_captions=4, warmup_steps=1)


def test_training_is_deterministic():
    states = []
    for _ in range(2):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model, _, tokenizer = create_model(MINI_NAME)
        states.append(train.train(model, tokenizer, QUICK))
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_retraining_never_writes_to_the_package_by_default(tmp_path):
    assert parse_arguments([]).out.resolve() != MINI_WEIGHTS
    threads = torch.get_num_threads()
    assert main(["--steps", "1", "--out", str(tmp_path / "weights.safetensors")]) == 0
    torch.set_num_threads(threads)  # the command sets them for its process, which is here the tests'
    assert [path.name for path in tmp_path.iterdir()] == ["weights.safetensors"]
