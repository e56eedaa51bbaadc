"""Training batches: every image once per epoch, and an epoch depends on its number and the seed alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from trainers.hegraph.backbones.loading import load_backbone
from trainers.hegraph.datasets import load_dataset
from trainers.hegraph.features.images import ImageViews
from trainers.hegraph.training import batches as module
from trainers.hegraph.training.batches import BankBatches, OnlineBatches, products_with_cache

VIEWS, IMAGES = 3, 10


@pytest.fixture
def bank() -> BankBatches:
    """Feature (v, n) of image n in view v, so that a batch shows where its rows come from."""
    view, image = torch.meshgrid(torch.arange(VIEWS), torch.arange(IMAGES), indexing="ij")
    return BankBatches(torch.stack([view, image], dim=-1).float(), torch.arange(IMAGES) % 4, batch_size=4, seed=1)


def rows(batches) -> torch.Tensor:
    return torch.cat([batch.features for batch in batches])


def order(batches) -> list[int]:
    return torch.cat([batch.positions for batch in batches]).tolist()


@pytest.mark.parametrize(("batch_size", "steps"), [(1, 10), (4, 3), (5, 2), (256, 1)])
def test_every_image_comes_once_per_epoch_with_its_features_and_label(bank, batch_size, steps):
    bank = replace(bank, batch_size=batch_size)
    batches = list(bank.epoch(1))
    assert sorted(order(batches)) == list(range(IMAGES))
    assert len(batches) == bank.steps_per_epoch == steps
    assert all(len(batch.labels) == batch_size for batch in batches[:-1])
    for batch in batches:
        assert batch.features[:, 1].long().equal(batch.positions)
        assert batch.labels.equal(bank.labels[batch.positions])
        assert batch.products is None


def test_an_image_shows_different_views_in_different_epochs(bank):
    for image in range(IMAGES):
        seen = {int(row[0]) for epoch in range(20) for row in rows(bank.epoch(epoch)) if row[1] == image}
        assert seen == {0, 1, 2}
    assert len(rows(bank.epoch(0))[:, 0].unique()) > 1  # and views vary within an epoch


def test_epochs_and_seeds_differ_and_the_same_ones_give_the_same_batches(bank):
    state = torch.get_rng_state()
    assert rows(bank.epoch(5)).equal(rows(bank.epoch(5)))
    assert torch.get_rng_state().equal(state)  # the global generator is left alone
    orders = {tuple(order(b.epoch(e))) for b in (bank, replace(bank, seed=2), replace(bank, seed=0)) for e in range(4)}
    assert len(orders) == 12


def test_online_features_are_the_encoded_view_of_their_image():
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


def test_a_batch_has_the_products_of_its_rows_with_every_key(bank, unit_features):
    features, keys = unit_features(VIEWS, IMAGES, 4), unit_features(IMAGES, 4, seed=1)
    kept = replace(bank, features=features, products=products_with_cache(features, keys))
    for batch in kept.epoch(2):
        torch.testing.assert_close(batch.products, batch.features @ keys.t())


@pytest.mark.parametrize(("size", "kept"), [(4 * VIEWS * IMAGES**2, True), (4 * VIEWS * IMAGES**2 - 1, False)])
def test_products_are_kept_within_their_budget(monkeypatch, unit_features, size, kept):
    monkeypatch.setattr(module, "PRODUCTS_BYTES", size)
    products = products_with_cache(unit_features(VIEWS, IMAGES, 4), unit_features(IMAGES, 4))
    assert (products is not None) == kept
