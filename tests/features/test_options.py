"""What encoding takes from the configuration: each option follows its own key."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from trainers.hegraph.config_files import load_cfg

CHANGES = {
    "views": ("TRAINER.HEGRAPHADAPTER.FEATURES.VIEWS", 3),
    "transforms": ("INPUT.TRANSFORMS", ("random_flip", "normalize")),
    "crop_scale": ("INPUT.RRCROP_SCALE", (0.5, 0.75)),
    "interpolation": ("INPUT.INTERPOLATION", "bilinear"),
    "batch_size": ("DATALOADER.TEST.BATCH_SIZE", 7),
    "num_workers": ("DATALOADER.NUM_WORKERS", 2),
    "source": ("TRAINER.HEGRAPHADAPTER.PROMPTS.SOURCE", "both"),
    "templates": ("TRAINER.HEGRAPHADAPTER.PROMPTS.TEMPLATES", ["a {}."]),
    "negative_templates": ("TRAINER.HEGRAPHADAPTER.PROMPTS.NEGATIVE_TEMPLATES", ["no {}."]),
    "descriptions": ("TRAINER.HEGRAPHADAPTER.PROMPTS.DESCRIPTIONS", "mine.json"),
}


def test_every_option_has_a_key():
    assert asdict(load_cfg().encoding).keys() == CHANGES.keys()


@pytest.mark.parametrize(("name", "key", "value"), [(name, *change) for name, change in CHANGES.items()])
def test_an_option_follows_its_key_and_no_other(name, key, value):
    default = asdict(load_cfg().encoding)
    assert default[name] != value
    assert asdict(load_cfg(opts=[key, value]).encoding) == {**default, name: value}
