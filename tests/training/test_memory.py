"""The estimate of a training's memory: against the tensors of one, and when it is said."""

from __future__ import annotations

import logging

import pytest
import torch

from trainers.hegraph.config_files import load_cfg
from trainers.hegraph.experiments.fitting import new_model
from trainers.hegraph.features.bank import load_bank
from trainers.hegraph.method.model import build_model
from trainers.hegraph.training import memory
from trainers.hegraph.training.batches import products_bytes
from trainers.hegraph.training.memory import free_bytes, log_large, refuse_beyond_memory, training_bytes
from trainers.hegraph.utils.errors import UserError


@pytest.mark.parametrize("width", [2, 5, 16])  # K above, at and below d
def test_the_estimate_counts_what_a_model_holds(width, model_options):
    from benchmarks.tasks import random_bank

    bank = random_bank(5, width, shots=3)
    model = build_model(bank, model_options(noise=1.0))
    parts = training_bytes(5, 15, width, views=1, batch=8)
    assert parts["parameters"] == 4 * sum(4 * parameter.numel() for parameter in model.parameters())
    buffers = {buffer.data_ptr(): 4 * buffer.numel() for name, buffer in model.named_buffers() if "labels" not in name}
    cached = 4 * model.cache_keys.numel()
    assert parts["keys"] == 2 * cached
    kept, guess = model.closed_form.to_text, model.closed_form.guess
    tensors = [kept.weights, kept.whitening, kept.nodes, model.closed_form.noise, guess.left_out, guess.texts]
    dual = guess.left_out if guess.dual is None else guess.dual  # there is none where text says nothing of images
    assert parts["messages"] == sum(tensor.numel() * tensor.element_size() for tensor in [*tensors, dual])
    # Some of the ten features per class are there while the graph is built
    assert 0.5 * parts["graph"] < sum(buffers.values()) - cached <= parts["graph"]


def test_products_count_where_they_are_kept():
    assert training_bytes(10, 100, 16, views=3, batch=8)["products"] == products_bytes(3, 100) == 4 * 3 * 100**2
    large = training_bytes(10, 100_000, 16, views=3, batch=8)
    assert large["products"] == products_bytes(3, 100_000) == 0
    assert large["step"] == 4 * (100_000 * 8 + 24 * 10 * 16)


def test_messages_count_where_there_are_any_and_so_does_the_end_where_it_takes_more_than_a_step():
    large = training_bytes(1000, 16_000, 1024, views=1, batch=256)
    double = 3 * 4096 * 1024 + 3 * 1000 * 1024 + 5 * 1024**2  # three blocks of keys, nodes, matrices
    assert large["step"] + large["at the end"] == 8 * double
    small = training_bytes(10, 160, 16, views=1, batch=256)
    assert small["at the end"] == 0 < small["messages"]
    without = training_bytes(1000, 16_000, 1024, views=1, batch=256, messages=False)
    assert without["messages"] == without["at the end"] == 0


def test_free_memory_is_some_or_none_where_the_system_does_not_say_and_more_is_refused(monkeypatch, tmp_path):
    assert 2**20 < free_bytes() < 2**50
    refuse_beyond_memory(2**20, "this", "cpu")
    with pytest.raises(UserError, match="this would take about 9007199.3 GB of memory, and .* are free"):
        refuse_beyond_memory(2**53, "this", "cpu")
    monkeypatch.setattr(memory, "Path", lambda _: tmp_path / "no such file")
    assert free_bytes() is None
    refuse_beyond_memory(2**53, "this", "cpu")


@pytest.mark.parametrize(("free", "said"), [(4_000_000_000, False), (3_999_999_999, True), (None, False)])
def test_the_estimate_is_said_above_half_of_the_free_memory(caplog, free, said):
    log_large({"keys": 1_500_000_000, "step": 500_000_000, "products": 0}, free)
    lines = ["training will take about 2.00 GB (keys 1.50, step 0.50) of 4.00 GB free"] if said else []
    assert caplog.messages == lines


def test_a_run_says_it_before_it_trains(tiny_bank, caplog, monkeypatch):
    from trainers.hegraph.experiments import fitting as module

    monkeypatch.setattr(module, "free_bytes", lambda device: 1000)
    with caplog.at_level(logging.WARNING):
        new_model(load_bank(tiny_bank), load_cfg(opts=["DATASET.NUM_SHOTS", 2]), seed=1)
    assert [line.partition(" GB")[0] for line in caplog.messages] == ["training will take about 0.00"]
    assert load_bank(tiny_bank).train_features.dtype == torch.float32  # four bytes, as the estimate counts
