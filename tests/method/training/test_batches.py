"""Training batches, and the estimate of a training's memory.

An epoch has every image once, and depends on its number and the seed alone.
"""

import logging
import os
import re
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from benchmarks.tasks import random_bank
from trainers.hegraph import UserError, load_backbone, load_bank, load_cfg, load_dataset
from trainers.hegraph.baselines import hegraph
from trainers.hegraph.features.images import ImageViews
from trainers.hegraph.method.model import build_model
from trainers.hegraph.method.training import batches as module, memory
from trainers.hegraph.method.training.batches import BankBatches, OnlineBatches, products_bytes, products_with_cache
from trainers.hegraph.method.training.memory import free_bytes, log_large, refuse_beyond_memory, training_bytes

VIEWS, IMAGES = 3, 10


# Feature (v, n) of image n in view v, so that a batch shows where its rows come from
GRID = torch.stack(torch.meshgrid(torch.arange(VIEWS), torch.arange(IMAGES), indexing="ij"), dim=-1).float()
BANK = BankBatches(GRID, torch.arange(IMAGES) % 4, batch_size=4, seed=1)


def rows(batches) -> torch.Tensor:
    return torch.cat([batch.features for batch in batches])


def order(batches) -> list[int]:
    return torch.cat([batch.positions for batch in batches]).tolist()


@pytest.mark.parametrize(("batch_size", "steps"), [(1, 10), (4, 3), (5, 2), (256, 1)])
def test_every_image_comes_once_per_epoch(batch_size, steps):
    bank = replace(BANK, batch_size=batch_size)
    batches = list(bank.epoch(1))
    assert sorted(order(batches)) == list(range(IMAGES)) and len(batches) == bank.steps_per_epoch == steps
    assert all(len(batch.labels) == batch_size for batch in batches[:-1])
    for batch in batches:
        assert batch.features[:, 1].long().equal(batch.positions)
        assert batch.labels.equal(bank.labels[batch.positions]) and batch.products is None


def test_views_differ_between_epochs():
    for image in range(IMAGES):
        seen = {int(row[0]) for epoch in range(20) for row in rows(BANK.epoch(epoch)) if row[1] == image}
        assert seen == {0, 1, 2}
    assert len(rows(BANK.epoch(0))[:, 0].unique()) > 1  # and views vary within an epoch


def test_batches_depend_on_epoch_and_seed():
    state = torch.get_rng_state()
    assert rows(BANK.epoch(5)).equal(rows(BANK.epoch(5)))
    assert torch.get_rng_state().equal(state)  # the global generator is unchanged
    orders = {tuple(order(b.epoch(e))) for b in (BANK, replace(BANK, seed=2), replace(BANK, seed=0)) for e in range(4)}
    assert len(orders) == 12


def test_online_features_are_encoded_views():
    digits, backbone = load_dataset("Digits"), load_backbone("hegraph-mini")
    augmentation = backbone.training_transform(("random_resized_crop",), (0.08, 1.0), "bicubic")
    images, labels = ImageViews(digits, digits.train[:5], augmentation), torch.arange(5)
    online = OnlineBatches(images, backbone, labels, batch_size=2, seed=1)
    images = replace(images, views=3, seed=1)
    assert sorted(order(online.epoch(2))) == [0, 1, 2, 3, 4] and online.steps_per_epoch == 3
    for batch in online.epoch(2):
        for feature, position in zip(batch.features, batch.positions.tolist()):
            alone = backbone.encode_images(next(images.batches([2 * 5 + position], 1)))[0]
            torch.testing.assert_close(feature, alone, rtol=0, atol=1e-5)


# Products with the cache


def test_batch_has_products_with_every_key(unit_features):
    features, keys = unit_features(VIEWS, IMAGES, 4), unit_features(IMAGES, 4, seed=1)
    kept = replace(BANK, features=features, products=products_with_cache(features, keys))
    for batch in kept.epoch(2):
        torch.testing.assert_close(batch.products, batch.features @ keys.t())


@pytest.mark.parametrize(("size", "kept"), [(4 * VIEWS * IMAGES**2, True), (4 * VIEWS * IMAGES**2 - 1, False)])
def test_products_are_stored_within_their_budget(monkeypatch, unit_features, size, kept):
    monkeypatch.setattr(module, "PRODUCTS_BYTES", size)
    products = products_with_cache(unit_features(VIEWS, IMAGES, 4), unit_features(IMAGES, 4))
    assert (products is not None) == kept


# Memory


@pytest.mark.parametrize("width", [2, 5, 16])  # K above, at and below d
def test_estimate_counts_the_tensors_of_a_model(width, model_options):
    bank = random_bank(5, width, shots=3)
    model = build_model(bank, model_options(noise=1.0))
    parts = training_bytes(5, 15, width, views=1, batch=8)
    assert parts["parameters"] == 4 * sum(4 * parameter.numel() for parameter in model.parameters())
    buffers = {buffer.data_ptr(): 4 * buffer.numel() for name, buffer in model.named_buffers() if "labels" not in name}
    cached = 4 * model.cache_keys.numel()
    assert parts["keys"] == 2 * cached
    messages, prior = model.closed_form.to_text, model.closed_form.prior
    tensors = [
        messages.weights, messages.whitening, messages.nodes, model.closed_form.noise, prior.left_out, prior.texts,
    ]  # fmt: skip
    dual = prior.left_out if prior.dual is None else prior.dual  # None where text does not predict class means
    assert parts["closed form"] == sum(tensor.numel() * tensor.element_size() for tensor in [*tensors, dual])
    # Some of the ten features per class are there while the graph is built
    assert 0.5 * parts["graph"] < sum(buffers.values()) - cached <= parts["graph"]


def test_stored_products_are_counted():
    assert training_bytes(10, 100, 16, views=3, batch=8)["products"] == products_bytes(3, 100) == 4 * 3 * 100**2
    large = training_bytes(10, 100_000, 16, views=3, batch=8)
    assert large["products"] == products_bytes(3, 100_000) == 0
    assert large["step"] == 4 * (100_000 * 8 + 24 * 10 * 16)


def test_closed_form_and_end_of_training_are_counted():
    large = training_bytes(1000, 16_000, 1024, views=1, batch=256)
    double = 3 * 4096 * 1024 + 3 * 1000 * 1024 + 5 * 1024**2  # three blocks of keys, nodes, matrices
    assert large["step"] + large["at the end"] == 8 * double
    small = training_bytes(10, 160, 16, views=1, batch=256)
    assert small["at the end"] == 0 < small["closed form"]
    without = training_bytes(1000, 16_000, 1024, views=1, batch=256, closed_form=False)
    assert without["closed form"] == without["at the end"] == 0


def test_more_than_the_free_memory_is_refused(monkeypatch, tmp_path):
    assert 2**20 < free_bytes() < 2**50
    refuse_beyond_memory(2**20, "this", "cpu")
    with pytest.raises(UserError, match="this would take 9007199.3 GB of memory, .* are free"):
        refuse_beyond_memory(2**53, "this", "cpu")
    monkeypatch.setattr(memory, "ROOT", tmp_path)
    assert free_bytes() is None
    refuse_beyond_memory(2**53, "this", "cpu")


V1 = {
    "memory.limit_in_bytes": "3000",
    "memory.usage_in_bytes": "1500",
    "memory.stat": "active_file 7\ntotal_active_file 100\ntotal_inactive_file 200\n",
}
V2 = {"memory.max": "3000", "memory.current": "1500", "memory.stat": "anon 9\nactive_file 100\ninactive_file 200\n"}


@pytest.mark.parametrize(("groups", "files", "free"), [
    ("0::/a/b", {}, 10240), ("0::/a/b", {"a/b": V2}, 1800),
    ("0::/a/b", {"a": V2, "a/b": V2 | {"memory.max": "max"}}, 1800),
    ("0::/a/b", {"": V2}, 1800),  # a container that sees its own group as the root
    ("0::/a/b", {"a/b": V2 | {"memory.max": "1000"}}, 0),
    ("0::/a/b", {"a/b": V2 | {"memory.max": "99999"}}, 10240),
    ("9:cpu:/\n4:cpuset,memory:/a/b\n0::/", {"memory/a/b": V1}, 1800),
    ("9:cpu:/\n4:memory:/a/b\n0::/", {"memory": V1}, 1800),
    ("4:memory:/a", {"memory/a": V1 | {"memory.limit_in_bytes": f"{2**63 - 4096}"}}, 10240),
])  # fmt: skip
def test_free_memory_respects_control_groups(monkeypatch, tmp_path, groups, files, free):
    root = {"proc/meminfo": "MemTotal: 99 kB\nMemAvailable: 10 kB\nHugePages_Total: 0\n", "proc/self/cgroup": groups}
    root |= {f"sys/fs/cgroup/{group}/{name}": text for group, of in files.items() for name, text in of.items()}
    for name, text in root.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(memory, "ROOT", tmp_path)
    assert free_bytes() == free


@pytest.mark.slow
def test_many_classes_under_an_address_limit_are_refused():
    code = (
        "import resource, numpy as np\n"
        "from trainers.hegraph import HeGraphClassifier, UserError\n"
        "from trainers.hegraph.method.training import memory\n"
        "memory._free_of_machine = memory._free_of_groups = lambda: []\n"
        "resource.setrlimit(resource.RLIMIT_AS, (8 * 10**9, -1))\n"
        "try:\n    HeGraphClassifier().fit(np.eye(20_000, 8) + 1, np.arange(20_000))\n"
        "except UserError as error:\n    print(error)\n"
    )
    environment = os.environ | {"OMP_NUM_THREADS": "1"}  # each thread takes addresses
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    message = r"training on 20000 images of 20000 classes would take \S+ GB of memory, [4-7]\.\d GB are free; .*\n"
    assert re.fullmatch(message, done.stdout)


@pytest.mark.parametrize(("free", "logged"), [(4_000_000_000, False), (3_999_999_999, True), (None, False)])
def test_estimate_above_half_of_memory_is_logged(caplog, free, logged):
    log_large({"keys": 1_500_000_000, "step": 500_000_000, "products": 0}, free)
    lines = ["training will take about 2.00 GB (keys 1.50, step 0.50) of 4.00 GB free"] if logged else []
    assert caplog.messages == lines


def test_run_logs_the_estimate_before_training(tiny_bank, caplog, monkeypatch):
    monkeypatch.setattr(hegraph, "free_bytes", lambda device: 1000)
    with caplog.at_level(logging.WARNING):
        hegraph.new_model(load_bank(tiny_bank), load_cfg(opts=["DATASET.NUM_SHOTS", 2]), seed=1)
    assert [line.partition(" GB")[0] for line in caplog.messages] == ["training will take about 0.00"]
    assert load_bank(tiny_bank).train_features.dtype == torch.float32  # four bytes, as the estimate counts
